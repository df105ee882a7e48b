/*
 * spec_field.h - fields of a config.json, checked as they are read
 *
 * What:      for the readers of spec.c and spec_blocks.c. A field that is null counts as absent: Hugging Face
 *            writes both for "not set".
 * Ownership: the JSON text owns what is read.
 * Thread:    any
 * Errors:    DATA_LOSS: NAME: FIELD is VALUE, RULE.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* One JSON object and the name it goes by in messages. */
struct spec_source {
    const json_t *root;
    const char *name;
};

/* The value, or NULL when it is absent or null. */
const json_t *spec_field_get(const struct spec_source *src, const char *field);

/* The error for a value that breaks the rule; NULL: a field that is missing. */
status_t spec_field_error(const struct spec_source *src, const char *field, const json_t *value,
                          const char *rule);

/* Which of two spellings the file has: field when it has neither. Both: they must agree. */
MUST_USE status_t spec_field_spelling(const struct spec_source *src, const char *field,
                                      const char *alias, const char **field_out);

/* A required integer in [min, max]. */
MUST_USE status_t spec_field_int(const struct spec_source *src, const char *field, int32_t min,
                                 int32_t max, int32_t *value_out);

/* A finite number above zero; absent: the fallback. */
MUST_USE status_t spec_field_positive(const struct spec_source *src, const char *field,
                                      double fallback, double *value_out);

/* A boolean; absent: false. */
MUST_USE status_t spec_field_bool(const struct spec_source *src, const char *field,
                                  bool *value_out);

/* A text that fits into buf: a longer one is an error. Absent: "". */
MUST_USE status_t spec_field_string(const struct spec_source *src, const char *field, char *buf,
                                    size_t buf_bytes);

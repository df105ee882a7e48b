/*
 * json_field.h - a JSON text of bounded size, and fields of its objects with errors that name them
 *
 * Ownership: fields are borrowed from the object.
 * Thread:    any
 * Errors:    DATA_LOSS naming the field and what it should have been.
 */
#pragma once

#include <stdbool.h>

#include <jansson.h>

#include "base/json_limits.h"
#include "base/status.h"

/* The value of a text, which need not end in NUL, by jansson's flags; json_decref it. */
MUST_USE status_t json_field_parse(const void *text, size_t size, size_t flags,
                                   const struct json_limits *limits, json_t **root_out);

/* NULL for an absent field and for null. */
json_t *json_field_get(const json_t *object, const char *name);

MUST_USE status_t json_field_object(const json_t *object, const char *name, json_t **value_out);
MUST_USE status_t json_field_array(const json_t *object, const char *name, json_t **value_out);
MUST_USE status_t json_field_string(const json_t *object, const char *name, const char **value_out);

/* Absent or null: `otherwise`. */
MUST_USE status_t json_field_bool(const json_t *object, const char *name, bool otherwise,
                                  bool *value_out);

/* From 0 to max. */
MUST_USE status_t json_field_count(const json_t *object, const char *name, json_int_t max,
                                   json_int_t *value_out);

/* "type" of a step of the tokenizer; DATA_LOSS when the step is no object. */
MUST_USE status_t json_field_type(const json_t *step, const char **type_out);

/* "a string", "an array" ... */
const char *json_field_kind(const json_t *value);

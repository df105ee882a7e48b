/*
 * tokenizer_json.h - tokenizer.json from memory
 *
 * What:   the whole file, as tokenizer_load finds it in a directory. A seam for tests and fuzzing.
 * Thread: any
 * Errors: DATA_LOSS naming the field.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

struct json_t;
struct tokenizer;

/* From the file's value. */
MUST_USE status_t tokenizer_json_read(const struct json_t *root, struct tokenizer **tokenizer_out);

/* The text need not end in NUL and is not used after the call. */
MUST_USE status_t tokenizer_json_parse(const void *json, size_t size,
                                       struct tokenizer **tokenizer_out);

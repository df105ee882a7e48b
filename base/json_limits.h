/*
 * json_limits.h - how large a JSON text may be before it is given to the parser
 *
 * What:      one pass over the bytes that counts containers and values, so that a small hostile file ("[],[],...")
 *            cannot make the parser allocate many times its own size. It does not validate: the parser does.
 * Thread:    any
 * Errors:    DATA_LOSS naming the limit and the value that passed it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct json_limits {
    int32_t max_depth;      /* of nested objects and arrays */
    int64_t max_containers; /* objects and arrays */
    int64_t max_values;     /* containers and commas outside of strings */
};

MUST_USE status_t json_limits_check(const char *text, size_t size,
                                    const struct json_limits *limits);

#include "base/json_limits.h"

#include <stdbool.h>

struct scan {
    int32_t depth;
    int64_t n_containers;
    int64_t n_commas;
    bool in_string;
};

/* Index of the byte after text[at] that matters: an escaped character inside a string is skipped. */
static size_t scan_byte(struct scan *scan, const char *text, size_t at)
{
    const char c = text[at];
    if (scan->in_string) {
        if (c == '\\') {
            return at + 2;
        }
        scan->in_string = c != '"';
        return at + 1;
    }
    switch (c) {
    case '"':
        scan->in_string = true;
        break;
    case '{':
    case '[':
        scan->depth++;
        scan->n_containers++;
        break;
    case '}':
    case ']':
        scan->depth--;
        break;
    case ',':
        scan->n_commas++;
        break;
    default:
        break;
    }
    return at + 1;
}

status_t json_limits_check(const char *text, size_t size, const struct json_limits *limits)
{
    struct scan scan = {0};
    for (size_t at = 0; at < size;) {
        at = scan_byte(&scan, text, at);
        if (scan.depth > limits->max_depth) {
            return status_errorf(STATUS_DATA_LOSS, "json nested deeper than %d at byte %zu",
                                 limits->max_depth, at);
        }
        if (scan.n_containers > limits->max_containers) {
            return status_errorf(STATUS_DATA_LOSS, "json with more than %lld objects and arrays",
                                 (long long)limits->max_containers);
        }
        if (scan.n_containers + scan.n_commas > limits->max_values) {
            return status_errorf(STATUS_DATA_LOSS, "json with more than %lld values",
                                 (long long)limits->max_values);
        }
    }
    return status_ok();
}

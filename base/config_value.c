#include "base/config_parts.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- numbers ----

/* "" is 1; K, M, G are powers of 1024 and k, m, g of 1000; 0 for anything else. */
static int64_t suffix_factor(const char *suffix)
{
    static const struct {
        char letter;
        int64_t factor;
    } suffixes[] = {
        {'k', 1000},    {'m', 1000000}, {'g', 1000000000},
        {'K', 1 << 10}, {'M', 1 << 20}, {'G', 1 << 30},
    };

    if (suffix[0] == '\0') {
        return 1;
    }
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        if (suffix[0] == suffixes[i].letter && suffix[1] == '\0') {
            return suffixes[i].factor;
        }
    }
    return 0;
}

static status_t parse_int(const char *text, const char *label, int64_t *value_out)
{
    const char *digits = text[0] == '-' || text[0] == '+' ? text + 1 : text;
    char *end = NULL;
    errno = 0;
    const long long number = strtoll(text, &end, 10);
    const int64_t factor = suffix_factor(end);
    if (!isdigit((unsigned char)digits[0]) || factor == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "%s: '%.64s' is not a whole number (8, 32k, 2M)", label, text);
    }
    int64_t value;
    if (errno == ERANGE || __builtin_mul_overflow((int64_t)number, factor, &value)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: '%.64s' is too large", label, text);
    }
    *value_out = value;
    return status_ok();
}

static status_t parse_float(const char *text, const char *label, double *value_out)
{
    char *end = NULL;
    const double value = strtod(text, &end);
    // strtod alone would take " 1", "0x10", "inf" and "nan".
    const bool plain = text[0] != '\0' && strspn(text, "+-.0123456789eE") == strlen(text);
    if (!plain || *end != '\0' || !isfinite(value)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: '%.64s' is not a number", label, text);
    }
    *value_out = value;
    return status_ok();
}

static status_t check_range(const struct config_row *row, double value, const char *text,
                            const char *label)
{
    if (row->min == 0 && row->max == 0) {
        return status_ok();
    }
    if (value < row->min) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %s is below the least allowed, %.15g",
                             label, text, row->min);
    }
    if (value > row->max) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %s is above the most allowed, %.15g",
                             label, text, row->max);
    }
    return status_ok();
}

// ---- words ----

static status_t parse_bool(const char *text, const char *label, bool *value_out)
{
    static const char *const words[2][4] = {{"false", "no", "off", "0"},
                                            {"true", "yes", "on", "1"}};
    for (int value = 0; value < 2; value++) {
        for (size_t i = 0; i < 4; i++) {
            if (strcasecmp(text, words[value][i]) == 0) {
                *value_out = value == 1;
                return status_ok();
            }
        }
    }
    return status_errorf(STATUS_INVALID_ARGUMENT, "%s: '%.64s' is neither true nor false", label,
                         text);
}

/* "auto|cpu|cuda" -> "auto, cpu, cuda" */
static void list_choices(const char *choices, char *buf, size_t buf_bytes)
{
    size_t at = 0;
    for (const char *c = choices; *c != '\0' && at + 3 < buf_bytes; c++) {
        if (*c == '|') {
            buf[at++] = ',';
            buf[at++] = ' ';
        } else {
            buf[at++] = *c;
        }
    }
    buf[at] = '\0';
}

static status_t parse_choice(const struct config_row *row, const char *text, const char *label,
                             int *value_out)
{
    assert(row->choices != NULL);
    const size_t size = strlen(text);
    int index = 0;
    for (const char *choice = row->choices; choice != NULL; index++) {
        const char *bar = strchr(choice, '|');
        const size_t length = bar != NULL ? (size_t)(bar - choice) : strlen(choice);
        if (length == size && memcmp(choice, text, size) == 0) {
            *value_out = index;
            return status_ok();
        }
        choice = bar != NULL ? bar + 1 : NULL;
    }
    char list[256];
    list_choices(row->choices, list, sizeof list);
    return status_errorf(STATUS_INVALID_ARGUMENT, "%s: '%.64s' is none of %s", label, text, list);
}

// ---- storing ----

static status_t store_number(const struct config_row *row, const char *text, const char *label,
                             void *field)
{
    if (row->type == CONFIG_INT) {
        int64_t value;
        TRY(parse_int(text, label, &value));
        TRY(check_range(row, (double)value, text, label));
        memcpy(field, &value, sizeof value);
    } else {
        double value;
        TRY(parse_float(text, label, &value));
        TRY(check_range(row, value, text, label));
        memcpy(field, &value, sizeof value);
    }
    return status_ok();
}

static status_t store_string(struct config_set *set, const char *text, const char *label,
                             void *field)
{
    const char *copy = arena_strndup(&set->strings, text, strlen(text));
    if (copy == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: text of %zu bytes is too long", label,
                             strlen(text));
    }
    memcpy(field, &copy, sizeof copy);
    return status_ok();
}

status_t config_value_set(struct config_set *set, size_t index, const char *text, int origin,
                          const char *label)
{
    const struct config_row *row = &set->rows[index];
    void *field = (char *)set->target + row->offset;
    switch (row->type) {
    case CONFIG_INT:
    case CONFIG_FLOAT:
        TRY(store_number(row, text, label, field));
        break;
    case CONFIG_BOOL:
        TRY(parse_bool(text, label, field));
        break;
    case CONFIG_STRING:
        TRY(store_string(set, text, label, field));
        break;
    case CONFIG_CHOICE:
        TRY(parse_choice(row, text, label, field));
        break;
    default:
        return status_errorf(STATUS_INTERNAL, "%s: the table has type %d", label, row->type);
    }
    set->origin[index] = (uint8_t)origin;
    return status_ok();
}

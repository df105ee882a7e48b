#include "parallel/spec_field.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const json_t *spec_field_get(const struct spec_source *src, const char *field)
{
    const json_t *value = json_object_get(src->root, field);
    return json_is_null(value) ? NULL : value;
}

status_t spec_field_error(const struct spec_source *src, const char *field, const json_t *value,
                          const char *rule)
{
    if (value == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "%s: %s is missing, %s", src->name, field, rule);
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    status_t s = status_errorf(STATUS_DATA_LOSS, "%s: %s is %.60s%s, %s", src->name, field,
                               text != NULL ? text : "?",
                               text != NULL && strlen(text) > 60 ? "..." : "", rule);
    free(text);
    return s;
}

status_t spec_field_spelling(const struct spec_source *src, const char *field, const char *alias,
                             const char **field_out)
{
    const json_t *value = spec_field_get(src, field);
    const json_t *other = spec_field_get(src, alias);
    if (value != NULL && other != NULL && json_number_value(value) != json_number_value(other)) {
        char rule[96];
        snprintf(rule, sizeof rule, "and %s is another number; they must be equal", alias);
        return spec_field_error(src, field, value, rule);
    }
    *field_out = value == NULL && other != NULL ? alias : field;
    return status_ok();
}

status_t spec_field_int(const struct spec_source *src, const char *field, int32_t min, int32_t max,
                        int32_t *value_out)
{
    const json_t *value = spec_field_get(src, field);
    const json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < min || number > max) {
        char rule[80];
        snprintf(rule, sizeof rule, "must be an integer from %d to %d", min, max);
        return spec_field_error(src, field, value, rule);
    }
    *value_out = (int32_t)number;
    return status_ok();
}

status_t spec_field_positive(const struct spec_source *src, const char *field, double fallback,
                             double *value_out)
{
    const json_t *value = spec_field_get(src, field);
    if (value == NULL) {
        *value_out = fallback;
        return status_ok();
    }
    const double number = json_number_value(value);
    if (!json_is_number(value) || !(number > 0) || !isfinite(number)) {
        return spec_field_error(src, field, value, "must be a finite number above 0");
    }
    *value_out = number;
    return status_ok();
}

status_t spec_field_bool(const struct spec_source *src, const char *field, bool *value_out)
{
    const json_t *value = spec_field_get(src, field);
    if (value != NULL && !json_is_boolean(value)) {
        return spec_field_error(src, field, value, "must be true or false");
    }
    *value_out = json_is_true(value);
    return status_ok();
}

status_t spec_field_string(const struct spec_source *src, const char *field, char *buf,
                           size_t buf_bytes)
{
    const json_t *value = spec_field_get(src, field);
    const char *text = value != NULL ? json_string_value(value) : "";
    if (text == NULL || strlen(text) >= buf_bytes) {
        char rule[64];
        snprintf(rule, sizeof rule, "must be a text of fewer than %zu bytes", buf_bytes);
        return spec_field_error(src, field, value, rule);
    }
    memcpy(buf, text, strlen(text) + 1);
    return status_ok();
}

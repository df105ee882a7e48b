#include "coordinator/tokenizer/json_field.h"

status_t json_field_parse(const void *text, size_t size, size_t flags,
                          const struct json_limits *limits, json_t **root_out)
{
    TRY(json_limits_check(text, size, limits));
    json_error_t error;
    json_t *root = json_loadb(text, size, flags, &error);
    if (root == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "line %d, column %d: %s", error.line, error.column,
                             error.text);
    }
    *root_out = root;
    return status_ok();
}

json_t *json_field_get(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

const char *json_field_kind(const json_t *value)
{
    if (value == NULL) {
        return "absent";
    }
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    default:
        return "null";
    }
}

static status_t wrong_kind(const char *name, const json_t *value, const char *wanted)
{
    return status_errorf(STATUS_DATA_LOSS, "%s: is %s, not %s", name, json_field_kind(value),
                         wanted);
}

status_t json_field_object(const json_t *object, const char *name, json_t **value_out)
{
    json_t *value = json_object_get(object, name);
    if (!json_is_object(value)) {
        return wrong_kind(name, value, "an object");
    }
    *value_out = value;
    return status_ok();
}

status_t json_field_array(const json_t *object, const char *name, json_t **value_out)
{
    json_t *value = json_object_get(object, name);
    if (!json_is_array(value)) {
        return wrong_kind(name, value, "an array");
    }
    *value_out = value;
    return status_ok();
}

status_t json_field_string(const json_t *object, const char *name, const char **value_out)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value)) {
        return wrong_kind(name, value, "a string");
    }
    *value_out = json_string_value(value);
    return status_ok();
}

status_t json_field_bool(const json_t *object, const char *name, bool otherwise, bool *value_out)
{
    const json_t *value = json_field_get(object, name);
    if (value != NULL && !json_is_boolean(value)) {
        return wrong_kind(name, value, "a boolean");
    }
    *value_out = value != NULL ? json_is_true(value) : otherwise;
    return status_ok();
}

status_t json_field_count(const json_t *object, const char *name, json_int_t max,
                          json_int_t *value_out)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_integer(value)) {
        return wrong_kind(name, value, "an integer");
    }
    const json_int_t count = json_integer_value(value);
    if (count < 0 || count > max) {
        return status_errorf(STATUS_DATA_LOSS, "%s: %lld, not from 0 to %lld", name,
                             (long long)count, (long long)max);
    }
    *value_out = count;
    return status_ok();
}

status_t json_field_type(const json_t *step, const char **type_out)
{
    if (!json_is_object(step)) {
        return status_errorf(STATUS_DATA_LOSS, "is %s, not an object", json_field_kind(step));
    }
    return json_field_string(step, "type", type_out);
}

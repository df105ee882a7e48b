#include <jansson.h>
#include <math.h>
#include <string.h>

#include "parallel/cost_rates.h"

/* A number of the rates by name. */
struct field {
    const char *name;
    size_t offset;
};

#define AT(type_, name_)                                        \
    {                                                           \
        .name = #name_, .offset = offsetof(struct type_, name_) \
    }

static const struct field device_fields[] = {
    AT(cost_rates, memory_bytes),
    AT(cost_rates, read_bytes_per_s),
    AT(cost_rates, flops_per_s),
    AT(cost_rates, int8_flops_per_s),
};
static const struct field efficiency_fields[] = {
    AT(cost_efficiency, matmul_read),      AT(cost_efficiency, matmul_flops),
    AT(cost_efficiency, matmul_half_rows), AT(cost_efficiency, kv_read),
    AT(cost_efficiency, attention_flops),  AT(cost_efficiency, elementwise),
    AT(cost_efficiency, sampling),         AT(cost_efficiency, op_s),
    AT(cost_efficiency, step_s),           AT(cost_efficiency, row_s),
};
static const struct field link_fields[] = {
    AT(cost_link, base_s),
    AT(cost_link, per_rank_s),
    AT(cost_link, second_s),
    AT(cost_link, bytes_per_s),
};

#define N(array_) (sizeof(array_) / sizeof(array_)[0])

// ---- out ----

static json_t *fields_json(const struct field *fields, size_t n, const void *from)
{
    json_t *object = json_object();
    for (size_t i = 0; i < n; i++) {
        double value;
        memcpy(&value, (const char *)from + fields[i].offset, sizeof value);
        json_object_set_new(object, fields[i].name, json_real(value));
    }
    return object;
}

static json_t *link_json(const struct cost_link *link)
{
    json_t *object = fields_json(link_fields, N(link_fields), link);
    json_object_set_new(object, "algorithm",
                        json_string(link->algorithm == COST_RING ? "ring" : "shots"));
    return object;
}

static json_t *numbers_json(const double *numbers, int32_t n)
{
    json_t *array = json_array();
    for (int32_t i = 0; i < n; i++) {
        json_array_append_new(array, json_real(numbers[i]));
    }
    return array;
}

static json_t *matmuls_json(const struct cost_rates *rates)
{
    json_t *array = json_array();
    for (int32_t i = 0; i < rates->n_matmuls; i++) {
        const struct cost_matmul_rate *at = &rates->matmuls[i];
        json_array_append_new(array, json_pack("{sisisoso}", "n_out", at->n_out, "n_in", at->n_in,
                                               "rows", numbers_json(at->rows, at->n_points),
                                               "seconds", numbers_json(at->seconds, at->n_points)));
    }
    return array;
}

static json_t *attentions_json(const struct cost_rates *rates)
{
    json_t *array = json_array();
    for (int32_t i = 0; i < rates->n_attentions; i++) {
        const struct cost_attention_rate *at = &rates->attentions[i];
        json_array_append_new(array, json_pack("{sisfsf}", "group", at->group, "kv_bytes_per_s",
                                               at->kv_bytes_per_s, "flops_per_s", at->flops_per_s));
    }
    return array;
}

static int append(const char *data, size_t size, void *out)
{
    return bytes_append(out, data, size).code == STATUS_OK ? 0 : -1;
}

status_t cost_rates_print(const struct cost_rates *rates, struct bytes *out)
{
    json_t *json = fields_json(device_fields, N(device_fields), rates);
    json_object_set_new(json, "name", json_string(rates->name));
    json_object_set_new(json, "activation_bytes", json_integer(rates->activation_bytes));
    json_object_set_new(json, "n_ranks", json_integer(rates->n_ranks));
    json_object_set_new(json, "efficiency",
                        fields_json(efficiency_fields, N(efficiency_fields), &rates->efficiency));
    json_object_set_new(json, "all_reduce", link_json(&rates->all_reduce));
    json_object_set_new(json, "exchange", link_json(&rates->exchange));
    json_object_set_new(json, "stage", link_json(&rates->stage));
    json_object_set_new(json, "matmuls", matmuls_json(rates));
    json_object_set_new(json, "attentions", attentions_json(rates));
    const int failed = json == NULL || json_dump_callback(json, append, out,
                                                          JSON_INDENT(1) | JSON_SORT_KEYS |
                                                              JSON_REAL_PRECISION(6)) != 0;
    json_decref(json);
    return failed ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "rates: no memory to print them")
                  : status_ok();
}

// ---- in ----

static status_t bad(const char *where, const char *name, const char *rule)
{
    return status_errorf(STATUS_DATA_LOSS,
                         "rates: %s%s%s: %s" STATUS_FIX
                         "write the file anew with kvasir plan --measure --rates",
                         where, where[0] != '\0' ? "." : "", name, rule);
}

static status_t read_number(const json_t *object, const char *where, const char *name,
                            double *number_out)
{
    const json_t *value = json_object_get(object, name);
    const double number = json_is_number(value) ? json_number_value(value) : NAN;
    if (!isfinite(number) || number < 0) {
        return bad(where, name, "a number that is not negative is needed");
    }
    *number_out = number;
    return status_ok();
}

static status_t read_fields(const json_t *object, const char *where, const struct field *fields,
                            size_t n, void *to)
{
    for (size_t i = 0; i < n; i++) {
        double number;
        TRY(read_number(object, where, fields[i].name, &number));
        memcpy((char *)to + fields[i].offset, &number, sizeof number);
    }
    return status_ok();
}

static status_t read_integer(const json_t *object, const char *where, const char *name,
                             int32_t *integer_out)
{
    const json_t *value = json_object_get(object, name);
    const json_int_t integer = json_integer_value(value);
    if (!json_is_integer(value) || integer < 0 || integer > INT32_MAX) {
        return bad(where, name, "a whole number is needed");
    }
    *integer_out = (int32_t)integer;
    return status_ok();
}

static status_t read_link(const json_t *json, const char *name, struct cost_link *link_out)
{
    const json_t *object = json_object_get(json, name);
    const char *algorithm = json_string_value(json_object_get(object, "algorithm"));
    if (algorithm == NULL || (strcmp(algorithm, "ring") != 0 && strcmp(algorithm, "shots") != 0)) {
        return bad(name, "algorithm", "ring or shots is needed");
    }
    link_out->algorithm = strcmp(algorithm, "ring") == 0 ? COST_RING : COST_SHOTS;
    TRY(read_fields(object, name, link_fields, N(link_fields), link_out));
    return link_out->bytes_per_s > 0 ? status_ok() : bad(name, "bytes_per_s", "is 0");
}

static status_t read_points(const json_t *object, struct cost_matmul_rate *rate)
{
    const json_t *rows = json_object_get(object, "rows");
    const json_t *seconds = json_object_get(object, "seconds");
    const size_t n = json_array_size(rows);
    if (n < 1 || n > COST_MAX_POINTS || json_array_size(seconds) != n) {
        return bad("matmuls", "rows", "as many rows as seconds are needed, 1 to 12");
    }
    rate->n_points = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        rate->rows[i] = json_number_value(json_array_get(rows, i));
        rate->seconds[i] = json_number_value(json_array_get(seconds, i));
        if (!(rate->rows[i] > (i > 0 ? rate->rows[i - 1] : 0)) || !(rate->seconds[i] > 0)) {
            return bad("matmuls", "rows", "are not ascending, or seconds not positive");
        }
    }
    return status_ok();
}

static status_t read_matmuls(const json_t *json, struct cost_rates *rates)
{
    const json_t *array = json_object_get(json, "matmuls");
    if (!json_is_array(array) || json_array_size(array) > COST_MAX_SHAPES) {
        return bad("", "matmuls", "a list of at most 48 is needed");
    }
    rates->n_matmuls = (int32_t)json_array_size(array);
    for (int32_t i = 0; i < rates->n_matmuls; i++) {
        const json_t *object = json_array_get(array, (size_t)i);
        struct cost_matmul_rate *rate = &rates->matmuls[i];
        TRY(read_integer(object, "matmuls", "n_out", &rate->n_out));
        TRY(read_integer(object, "matmuls", "n_in", &rate->n_in));
        if (rate->n_out < 1 || rate->n_in < 1) {
            return bad("matmuls", "n_out", "sides are at least 1");
        }
        TRY(read_points(object, rate));
    }
    return status_ok();
}

static status_t read_attentions(const json_t *json, struct cost_rates *rates)
{
    const json_t *array = json_object_get(json, "attentions");
    if (!json_is_array(array) || json_array_size(array) > COST_MAX_ATTENTIONS) {
        return bad("", "attentions", "a list of at most 8 is needed");
    }
    rates->n_attentions = (int32_t)json_array_size(array);
    for (int32_t i = 0; i < rates->n_attentions; i++) {
        const json_t *object = json_array_get(array, (size_t)i);
        struct cost_attention_rate *rate = &rates->attentions[i];
        TRY(read_integer(object, "attentions", "group", &rate->group));
        TRY(read_number(object, "attentions", "kv_bytes_per_s", &rate->kv_bytes_per_s));
        TRY(read_number(object, "attentions", "flops_per_s", &rate->flops_per_s));
        if (!(rate->kv_bytes_per_s > 0) || !(rate->flops_per_s > 0)) {
            return bad("attentions", "flops_per_s", "a rate is 0");
        }
    }
    return status_ok();
}

static status_t read_rates(const json_t *json, struct cost_rates *rates)
{
    const char *name = json_string_value(json_object_get(json, "name"));
    if (name == NULL) {
        return bad("", "name", "a text is needed");
    }
    snprintf(rates->name, sizeof rates->name, "%s", name);
    TRY(read_fields(json, "", device_fields, N(device_fields), rates));
    if (!(rates->read_bytes_per_s > 0) || !(rates->flops_per_s > 0)) {
        return bad("", "read_bytes_per_s", "or flops_per_s is 0");
    }
    TRY(read_integer(json, "", "activation_bytes", &rates->activation_bytes));
    TRY(read_integer(json, "", "n_ranks", &rates->n_ranks));
    TRY(read_fields(json_object_get(json, "efficiency"), "efficiency", efficiency_fields,
                    N(efficiency_fields), &rates->efficiency));
    const struct cost_efficiency *e = &rates->efficiency;
    if (!(e->matmul_read > 0) || !(e->matmul_flops > 0) || !(e->kv_read > 0) ||
        !(e->attention_flops > 0)) {
        return bad("efficiency", "matmul_read", "or matmul_flops, kv_read, attention_flops is 0");
    }
    TRY(read_link(json, "all_reduce", &rates->all_reduce));
    TRY(read_link(json, "exchange", &rates->exchange));
    TRY(read_link(json, "stage", &rates->stage));
    TRY(read_matmuls(json, rates));
    return read_attentions(json, rates);
}

status_t cost_rates_parse(const char *text, size_t size, struct cost_rates *rates_out)
{
    json_error_t error;
    struct cost_rates rates = {.n_matmuls = 0};
    json_t *json = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (json == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "rates: line %d: %s", error.line, error.text);
    }
    const status_t s = read_rates(json, &rates);
    json_decref(json);
    if (s.code == STATUS_OK) {
        *rates_out = rates;
    }
    return s;
}

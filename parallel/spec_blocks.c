#include "parallel/spec_blocks.h"

#include <string.h>

#define NAME_BYTES 4352 /* the path of config.json, and where in it */
#define WIDTH_STEP 256  /* FFN widths are rounded up to a multiple of this */

/* The fields of a block that mean something here; all end with NULL. */
static const char *const attention_fields[] = {"n_heads_in_group", "no_op", "replace_with_linear",
                                               NULL};
static const char *const ffn_fields[] = {"ffn_mult", "no_op", "replace_with_linear", NULL};

static bool is_listed(const char *const *list, const char *field)
{
    while (*list != NULL && strcmp(*list, field) != 0) {
        list++;
    }
    return *list != NULL;
}

/* Whatever is set and not known would be left out of the arithmetic, silently. */
static status_t check_unknown(const struct spec_source *block, const char *const *known)
{
    json_t *object = (json_t *)block->root; // iterating does not change it
    const char *field;
    json_t *value;
    json_object_foreach(object, field, value)
    {
        if (!json_is_null(value) && !json_is_false(value) && !is_listed(known, field)) {
            return spec_field_error(block, field, value, "is not supported; must be null or false");
        }
    }
    return status_ok();
}

/* no_op and replace_with_linear. */
static status_t read_kind(const struct spec_source *block, int *kind_out)
{
    bool none = false;
    bool linear = false;
    TRY(spec_field_bool(block, "no_op", &none));
    TRY(spec_field_bool(block, "replace_with_linear", &linear));
    if (none && linear) {
        return status_errorf(STATUS_DATA_LOSS,
                             "%s: no_op and replace_with_linear are both true; one of them may be",
                             block->name);
    }
    *kind_out = none ? SPEC_BLOCK_NONE : linear ? SPEC_BLOCK_LINEAR : SPEC_BLOCK_FULL;
    return status_ok();
}

static status_t read_attention(const struct spec_source *block, const struct model_spec *spec,
                               struct spec_layer *layer)
{
    TRY(check_unknown(block, attention_fields));
    TRY(read_kind(block, &layer->attention));
    if (layer->attention != SPEC_BLOCK_FULL) {
        return status_ok();
    }
    int32_t group = 0;
    TRY(spec_field_int(block, "n_heads_in_group", 1, spec->n_heads, &group));
    if (spec->n_heads % group != 0) {
        char rule[96];
        snprintf(rule, sizeof rule, "must be a divisor of num_attention_heads %d", spec->n_heads);
        return spec_field_error(block, "n_heads_in_group",
                                spec_field_get(block, "n_heads_in_group"), rule);
    }
    layer->n_kv_heads = spec->n_heads / group;
    return status_ok();
}

/* A model's width is 2/3 of ffn_mult times the hidden size, rounded up: 5.25 * 8192 gives 28672. */
static status_t read_ffn(const struct spec_source *block, const struct model_spec *spec,
                         struct spec_layer *layer)
{
    TRY(check_unknown(block, ffn_fields));
    TRY(read_kind(block, &layer->ffn));
    if (layer->ffn != SPEC_BLOCK_FULL) {
        return status_ok();
    }
    double mult = 0;
    TRY(spec_field_positive(block, "ffn_mult", 0, &mult));
    // In this order, so that the width is the one the model was made with.
    const double columns = 2 * mult * spec->n_hidden / 3;
    const int64_t width =
        columns <= SPEC_MAX_FF ? ((int64_t)columns + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP : 0;
    if (width < 1 || width > SPEC_MAX_FF) {
        char rule[96];
        snprintf(rule, sizeof rule, "must give a width of 1 to %d columns with hidden_size %d",
                 SPEC_MAX_FF, spec->n_hidden);
        return spec_field_error(block, "ffn_mult", spec_field_get(block, "ffn_mult"), rule);
    }
    layer->n_ff = (int32_t)width;
    return status_ok();
}

/* The object at entry.field, and in name what it is called in messages. */
static status_t open_block(const struct spec_source *entry, const char *field,
                           char name[NAME_BYTES], struct spec_source *block_out)
{
    const json_t *value = spec_field_get(entry, field);
    if (!json_is_object(value)) {
        return spec_field_error(entry, field, value, "must be an object");
    }
    snprintf(name, NAME_BYTES, "%.*s %s", NAME_BYTES - 32, entry->name, field);
    *block_out = (struct spec_source){.root = value, .name = name};
    return status_ok();
}

static status_t read_layer(const struct spec_source *entry, const struct model_spec *spec,
                           struct spec_layer *layer)
{
    char name[NAME_BYTES];
    struct spec_source block = {0};
    TRY(open_block(entry, "attention", name, &block));
    TRY(read_attention(&block, spec, layer));
    TRY(open_block(entry, "ffn", name, &block));
    return read_ffn(&block, spec, layer);
}

static status_t check_list(const struct spec_source *src, const json_t *blocks,
                           const struct model_spec *spec)
{
    if (!json_is_array(blocks)) {
        return spec_field_error(src, "block_configs", blocks, "must be a list");
    }
    if (json_array_size(blocks) != (size_t)spec->n_layers) {
        return status_errorf(
            STATUS_DATA_LOSS,
            "%s: block_configs has %zu entries, num_hidden_layers is %d; they must be equal",
            src->name, json_array_size(blocks), spec->n_layers);
    }
    const json_t *heads = spec_field_get(src, "num_key_value_heads_per_layer");
    return heads == NULL ? status_ok()
                         : spec_field_error(src, "num_key_value_heads_per_layer", heads,
                                            "must be left out where block_configs says it");
}

status_t spec_blocks_read(const struct spec_source *src, const json_t *blocks,
                          struct model_spec *spec)
{
    TRY(check_list(src, blocks, spec));
    for (int32_t i = 0; i < spec->n_layers; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%.*s: block_configs of layer %d", NAME_BYTES - 48, src->name,
                 i);
        const struct spec_source entry = {.root = json_array_get(blocks, (size_t)i), .name = name};
        if (!json_is_object(entry.root)) {
            return status_errorf(STATUS_DATA_LOSS, "%s: must be an object", name);
        }
        TRY(read_layer(&entry, spec, &spec->layers[i]));
    }
    return status_ok();
}

/*
 * spec_sizes.c - how large a model is
 */
#include "parallel/spec.h"

int64_t spec_norm_parameters(const struct model_spec *spec)
{
    return (spec->norm == SPEC_NORM_LAYER ? 2 : 1) * (int64_t)spec->n_hidden;
}

int64_t spec_parameters(const struct model_spec *spec)
{
    const int64_t hidden = spec->n_hidden;
    int64_t total = (spec->tied_head ? 1 : 2) * (int64_t)spec->n_vocab * hidden;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        const struct spec_layer *layer = &spec->layers[i];
        const int64_t heads = 2 * (int64_t)spec->n_heads + 2 * (int64_t)layer->n_kv_heads;
        total += heads * spec->head_dim * hidden + 3 * (int64_t)layer->n_ff * hidden;
    }
    total += (2 * (int64_t)spec->n_layers + 1) * spec_norm_parameters(spec);
    return total;
}

int64_t spec_kv_bytes_per_token(const struct model_spec *spec, int kv_dtype)
{
    int64_t heads = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        heads += spec->layers[i].n_kv_heads;
    }
    return 2 * heads * spec->head_dim * (int64_t)dtype_bytes(kv_dtype);
}

/*
 * spec_sizes.c - how large a model is, how long a context it takes, and the names of its blocks
 */
#include "parallel/spec.h"

#include <stdio.h>

#include "kernels/kv_format.h"

const char *spec_block_name(int block)
{
    static const char *const names[SPEC_N_BLOCKS] = {
        [SPEC_BLOCK_FULL] = "full",
        [SPEC_BLOCK_LINEAR] = "linear",
        [SPEC_BLOCK_NONE] = "none",
    };
    return block >= 0 && block < SPEC_N_BLOCKS ? names[block] : "unknown";
}

int64_t spec_norm_parameters(const struct model_spec *spec)
{
    return (spec->norm == SPEC_NORM_LAYER ? 2 : 1) * (int64_t)spec->n_hidden;
}

int64_t spec_layer_norms(const struct model_spec *spec, int32_t layer)
{
    const struct spec_layer *at = &spec->layers[layer];
    return (at->attention != SPEC_BLOCK_NONE) + (at->ffn != SPEC_BLOCK_NONE);
}

int64_t spec_n_norms(const struct model_spec *spec)
{
    int64_t n = 1; // before the head
    for (int32_t i = 0; i < spec->n_layers; i++) {
        n += spec_layer_norms(spec, i);
    }
    return n;
}

/* Rows of n_hidden elements in the matrices of the attention block: q, o, k and v, or the one of a linear block. */
static int64_t attention_rows(const struct model_spec *spec, const struct spec_layer *layer)
{
    if (layer->attention == SPEC_BLOCK_FULL) {
        return 2 * ((int64_t)spec->n_heads + layer->n_kv_heads) * spec->head_dim;
    }
    return layer->attention == SPEC_BLOCK_LINEAR ? spec->n_hidden : 0;
}

static int64_t ffn_rows(const struct model_spec *spec, const struct spec_layer *layer)
{
    return layer->ffn == SPEC_BLOCK_LINEAR ? spec->n_hidden : 3 * (int64_t)layer->n_ff;
}

int64_t spec_layer_parameters(const struct model_spec *spec, int32_t layer)
{
    const struct spec_layer *at = &spec->layers[layer];
    return (attention_rows(spec, at) + ffn_rows(spec, at)) * spec->n_hidden +
           spec_layer_norms(spec, layer) * spec_norm_parameters(spec);
}

int64_t spec_parameters(const struct model_spec *spec)
{
    int64_t n = (spec->tied_head ? 1 : 2) * (int64_t)spec->n_vocab * spec->n_hidden +
                spec_norm_parameters(spec);
    for (int32_t i = 0; i < spec->n_layers; i++) {
        n += spec_layer_parameters(spec, i);
    }
    return n;
}

int64_t spec_kv_bytes_per_token(const struct model_spec *spec, int kv_dtype)
{
    int64_t heads = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        heads += spec->layers[i].n_kv_heads;
    }
    return 2 * heads * kv_row_bytes(spec->head_dim, kv_dtype);
}

status_t spec_check_context(const struct model_spec *spec, int64_t n_tokens)
{
    char dynamic[128] = "";
    if (n_tokens <= spec->max_positions) {
        return status_ok();
    }
    if (spec->dynamic_factor > 0) {
        snprintf(
            dynamic, sizeof dynamic,
            ": rope_scaling dynamic (factor %g) would change the angles of keys already stored",
            spec->dynamic_factor);
    }
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "--max-model-len %lld is more than the model's %d (config.json: "
                         "max_position_embeddings)%s" STATUS_FIX "leave it out, or use at most %d",
                         (long long)n_tokens, spec->max_positions, dynamic, spec->max_positions);
}

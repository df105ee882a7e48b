/*
 * spec.h - what a model is, read from its Hugging Face config.json
 *
 * What:      a model is data: sizes and a list of layers. Each says what its attention and its feed-forward are, and
 *            has its own number of KV heads and FFN width. A family of models is a row of the table in spec.c.
 * Ownership: the spec owns its layers; free with spec_destroy.
 * Thread:    any, once filled.
 * Errors:    DATA_LOSS naming the file, the field, its value and the rule; NOT_FOUND for a missing directory
 *            or config.json (the message says how a model directory looks).
 * Source:    MODELS of the README; field names are Hugging Face transformers'.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

#define SPEC_MAX_LAYERS 1024
#define SPEC_MAX_HEADS  1024
#define SPEC_MAX_FF     (1 << 24)
#define SPEC_MAX_EOS    8

enum spec_norm {
    SPEC_NORM_RMS,   /* a weight */
    SPEC_NORM_LAYER, /* mean subtracted; a weight and a bias */
};

/* What a layer has for attention, and for a feed-forward. */
enum spec_block {
    SPEC_BLOCK_FULL,   /* attention with keys and values; a gated feed-forward */
    SPEC_BLOCK_LINEAR, /* its norm and one matrix [n_hidden, n_hidden] instead */
    SPEC_BLOCK_NONE,   /* nothing, not even a norm: x passes through */
    SPEC_N_BLOCKS
};

struct spec_layer {
    int attention, ffn; /* enum spec_block */
    int32_t n_kv_heads; /* divides n_heads; 0 unless attention is full */
    int32_t n_ff;       /* feed-forward columns; 0 unless ffn is full */
};

/* Llama 3: slow pairs turn `factor` times slower, fast ones as they are, those between something between. */
struct spec_rope_scaling {
    double factor; /* 0: none, and the other fields mean nothing */
    double low_freq_factor,
        high_freq_factor; /* turns within original_positions: below low slow, above high fast */
    int32_t original_positions;
};

struct model_spec {
    char name[128];        /* last component of the directory */
    char architecture[64]; /* "DeciLMForCausalLM" */
    char model_type[32];
    int32_t n_layers;
    int32_t n_hidden;
    int32_t n_heads;
    int32_t head_dim;
    int32_t rotary_dim; /* <= head_dim, even */
    int32_t n_vocab;
    int32_t max_positions;
    int32_t sliding_window; /* 0: none */
    int norm;               /* enum spec_norm, of all norms */
    double norm_eps;
    double rope_theta;
    struct spec_rope_scaling rope_scaling;
    double dynamic_factor; /* of rope_scaling type dynamic, which is not applied; 0: another type */
    bool tied_head;        /* lm_head is embed_tokens */
    int dtype;             /* enum dtype, of the checkpoint as config.json says */
    int32_t bos_id;        /* -1: none */
    int32_t eos_ids[SPEC_MAX_EOS];
    int32_t n_eos;
    struct spec_layer *layers; /* [n_layers] */
};

/* Reads DIR/config.json (and eos ids of generation_config.json when it is there). */
MUST_USE status_t spec_load(const char *dir, struct model_spec *spec_out);

/* The same from text; name is used in messages. For tests and fuzzing. */
MUST_USE status_t spec_parse(const char *text, size_t size, const char *name,
                             struct model_spec *spec_out);

void spec_destroy(struct model_spec *spec); /* accepts a zeroed spec */

/* Parameters of one norm, and how many norms there are, in a layer and in all. */
int64_t spec_norm_parameters(const struct model_spec *spec);
int64_t spec_layer_norms(const struct model_spec *spec, int32_t layer);
int64_t spec_n_norms(const struct model_spec *spec);

/*
 * Whether the model can be served with this context. INVALID_ARGUMENT when it is longer than what it was trained for.
 * Type dynamic is no way around: its angles depend on how long the sequence is, for every position of it, so that each
 * new token would ask for all earlier keys turned anew, and the keys of a request would depend on how it was cut into
 * chunks. The published implementations do not agree there either.
 */
MUST_USE status_t spec_check_context(const struct model_spec *spec, int64_t n_tokens);

/* Number of parameters: of a layer with its norms, and of all there is. Bytes of KV one token needs over all layers, stored
 * once. */
int64_t spec_layer_parameters(const struct model_spec *spec, int32_t layer);
int64_t spec_parameters(const struct model_spec *spec);
int64_t spec_kv_bytes_per_token(const struct model_spec *spec, int kv_dtype);

const char *spec_block_name(int block); /* "full", "linear", "none" */

/* The architectures a spec can be read for, one static NULL-terminated list. */
const char *const *spec_architectures(void);

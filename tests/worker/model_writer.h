/*
 * model_writer.h - small random models, in memory and as a Hugging Face directory, for tests
 *
 * What:      a model is a function of its shape and seed alone, so that every rank of a test makes the same one. The
 *            values in memory are those in the file: rounded to the file's dtype already.
 * Ownership: struct test_model owns its arrays.
 * Thread:    any
 * Errors:    a failure fails the running test.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "parallel/spec.h"

#define TEST_MODEL_MAX_LAYERS 8

struct test_model_shape {
    int32_t n_hidden, n_heads, head_dim, n_vocab, n_layers;
    int32_t kv_heads[TEST_MODEL_MAX_LAYERS];
    int32_t n_ff[TEST_MODEL_MAX_LAYERS];
    int attention[TEST_MODEL_MAX_LAYERS],
        ffn[TEST_MODEL_MAX_LAYERS]; /* enum spec_block, where nas */
    int32_t max_positions;
    int32_t sliding_window; /* 0: none; else every layer has kv_heads[0] */
    int32_t rotary_dim; /* StableLM: LayerNorm, and this much of a head is turned; 0: no StableLM */
    int32_t n_shards;   /* 0, 1: model.safetensors; more: an index and shards */
    int dtype;          /* of the file */
    double rope_theta;  /* 0: 10000 */
    uint64_t seed;
    bool tied_head;
    bool nas; /* Nemotron-NAS: kv_heads and n_ff are 0 where a block is not full */
};

/* [out, in] row major; the shapes of a Hugging Face checkpoint. */
struct test_layer {
    float *attention_norm, *q, *k, *v, *o;
    float *ffn_norm, *gate, *up, *down;
    float *linear_attention, *linear_ffn;       /* NULL: no such block */
    float *attention_norm_bias, *ffn_norm_bias; /* NULL: RMSNorm */
};

struct test_model {
    struct test_model_shape shape;
    float *embedding, *final_norm;
    float *final_norm_bias; /* NULL: RMSNorm */
    float *head;            /* the embedding when it is tied */
    struct test_layer layers[TEST_MODEL_MAX_LAYERS];
};

void model_writer_make(const struct test_model_shape *shape, struct test_model *model);
void model_writer_free(struct test_model *model);

/* The layers' matrices become what int8 with a scale for each row holds of them; head, embedding and norms stay. */
void model_writer_round(struct test_model *model);

/* How the file differs from the model; zeroed: not at all. */
struct model_writer_flaws {
    const char *leave_out;   /* name of a tensor that is not written */
    const char *transpose;   /* name of a tensor whose shape is written reversed */
    const char *extra;       /* name of one more tensor */
    uint64_t truncate_bytes; /* cut from the end of the last file */
};

/* Writes config.json and the weights into dir. */
void model_writer_write(const struct test_model *model, const char *dir,
                        const struct model_writer_flaws *flaws);

/* Bytes of the tensors a server needs. */
uint64_t model_writer_bytes(const struct test_model *model);

/* spec_load of what was written, with each layer's own FFN width, which config.json cannot say. */
void model_writer_spec(const struct test_model *model, const char *dir, struct model_spec *spec);

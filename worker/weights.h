/*
 * weights.h - a rank's slices of the checkpoint, packed for the device
 *
 * What:      allocates the rank's matrices and loads them from a checkpoint that weights_check has approved.
 * Layout:    H query heads, F columns and V rows below are the rank's own; D is the hidden size, h the head size.
 *              qkv [H*h + 2*G*h, D]: q, then k and v of the G KV heads, where one KV run covers every lane; elsewhere
 *              qkv [H*h, D]: q alone, and kv [2*G*h, D]: k, then v, one a run      o [D, H*h]
 *              gate_up [2F, D]: the F rows of gate, then those of up   down [D, F]
 *              attention_linear, ffn_linear [rows, D]: a linear block's rows of this rank
 *              embedding [V, D] as plain rows   head [V, D]   norms [D] float32, weight and bias, whole on every rank
 *            Formats are weight_formats_of's. The scales of int8 are those of whole rows of the checkpoint, for o and down too, of
 *            which a rank has columns: every rank count has the same quantised weights.
 *            A rank has the layers of its stage alone; the embedding is on the first stage, the final norm and the head are
 *            on the last.
 * Ownership: the weights own matrices and arrays.
 * Thread:    owner:the rank's main thread.
 * Collective: weights_load: yes, of the ranks of a stage; the others: no.
 * Errors:    DATA_LOSS naming the tensor, as weights_check.h says.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/comm.h"
#include "parallel/plan.h"
#include "parallel/spec.h"
#include "worker/weight_loader.h"

/* bias NULL: the model's norm has none. Both NULL: the layer has no such block. */
struct norm_weights {
    float *weight, *bias;
};

struct layer_weights {
    struct norm_weights attention_norm, ffn_norm;
    struct matrix *qkv, *o;
    struct matrix *kv[PLAN_MAX_RUNS]; /* in the order of plan_kv_runs; none where qkv has them */
    struct matrix *gate_up, *down;    /* NULL: the rank has no columns here */
    struct matrix *attention_linear, *ffn_linear; /* NULL: no rows, or no such block */
};

struct weights {
    const struct backend *backend;
    struct backend_stream *stream;
    const struct model_spec *spec;
    const struct plan *plan;
    int32_t rank;          /* of all stages */
    int32_t tp_rank;       /* of its own */
    plan_interval_t stage; /* its layers */
    struct weight_formats formats;

    void *embedding; /* NULL: the rank has no rows */
    int embedding_dtype;
    struct norm_weights final_norm;
    struct matrix *head; /* NULL: the rank has no rows */
    struct layer_weights *layers;
    uint64_t bytes;
};

struct weights_request {
    const struct backend *backend;
    struct backend_stream *stream;
    const struct model_spec *spec;
    const struct plan *plan;
    int32_t rank;                  /* of all stages */
    struct weight_formats formats; /* dtype: DTYPE_F32 or DTYPE_BF16 */
    int checkpoint_dtype; /* of embed_tokens: the rows stay as they are when nothing is lost by it */
};

MUST_USE status_t weights_alloc(const struct weights_request *request, struct weights *weights_out);
void weights_free(struct weights *weights); /* accepts zeroed weights */

/* Every matrix and the dtype of its products, activation but for the head's float32; returns how many: at most
 * WEIGHTS_MATRICES_OF_LAYER a layer and one. */
#define WEIGHTS_MATRICES_OF_LAYER (PLAN_MAX_RUNS + 6)
int32_t weights_uses(const struct weights *weights, struct matmul_use *uses_out);

/* Bytes of the tensors done so far: ranks go through them in step, so that rank 0's count is about the group's,
 * and so is, of stages that are about equal, what the first has loaded. */
struct weights_progress {
    void (*report)(void *user, uint64_t bytes_done, uint64_t bytes_total); /* may be NULL */
    void *user;
    uint64_t bytes_total;
};

/* Bytes of the longest row of any tensor: what weight_loader_init asks for. */
size_t weights_max_row_bytes(const struct model_spec *spec);

/* Fills what weights_alloc made. Every rank returns from it, whatever its own reads did. */
MUST_USE status_t weights_load(struct weights *weights, struct weight_loader *loader,
                               const struct weights_progress *progress);

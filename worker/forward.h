/*
 * forward.h - one step through the model, on this rank
 *
 * What:      token ids in, logits out: embedding, the layers, the final norm and the head. Each layer is
 *              x += o( attention( q, k, v of norm(x) ) )      summed over ranks
 *              x += down( silu(gate) * up of norm(x) )        summed over ranks
 *            A layer may have one matrix in the place of either, x += linear( norm(x) ), or nothing there at all.
 * Layout:    R rows of a step, D hidden size, h head size; H, F and V are this rank's heads, columns and rows.
 *            Activations are float32, [R, ..], and whole on every rank between the blocks.
 * Ownership: owns its buffers, all made by forward_init; a step allocates nothing.
 * Thread:    owner:the rank's main thread.
 * Collective: forward_run: yes.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"
#include "kernels/rope_table.h"
#include "parallel/comm.h"
#include "parallel/plan.h"
#include "parallel/spec.h"
#include "worker/exchange.h"
#include "worker/kv_pool.h"
#include "worker/step_plan.h"
#include "worker/weights.h"

/* What forward works with; borrowed. */
struct forward_parts {
    const struct model_spec *spec;
    const struct plan *plan;
    const struct backend *backend;
    struct backend_stream *stream;
    struct comm *comm;
    const struct weights *weights;
    struct kv_pool *pool;
};

struct forward {
    struct forward_parts parts;
    struct rope_table rope;
    struct exchange exchange;

    float *x;        /* [R, D]: the residual stream */
    float *normed;   /* [R, D] */
    float *partial;  /* [R, D]: this rank's part of a sum over ranks */
    float *q;        /* [R, H, h] */
    float *attended; /* [R, H, h] */
    float *k, *v;    /* [R, KV heads of a run, h] */
    float *
        by_head; /* [2, R, H, h]: queries and outputs of a split class, head after head; NULL: no such class */
    float *gate_up;             /* [R, 2F] */
    float *logits;              /* rank 0: [n_logits, n_vocab] */
    float *slice;               /* several ranks: [n_logits, V] */
    float *gathered;            /* rank 0 of several: the ranks' slices one after the other */
    int64_t *counts, *displs;   /* [ranks] */
    struct attention_seq *seqs; /* [max_seqs] */
};

struct forward_limits {
    int32_t max_seqs, max_rows, max_model_len;
};

MUST_USE status_t forward_init(struct forward *forward, const struct forward_parts *parts,
                               const struct forward_limits *limits);
void forward_destroy(struct forward *forward); /* accepts a zeroed one */

/* *logits_out on rank 0: [n_logits, n_vocab], valid until the next step; NULL elsewhere. */
MUST_USE status_t forward_run(struct forward *forward, const struct step_plan *step,
                              const float **logits_out);

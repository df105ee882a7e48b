/*
 * forward.h - one step through the model, on this rank
 *
 * What:      token ids in, logits out, and ids drawn from them: embedding, the layers, the final norm, the head, sampling. Each
 *            layer is
 *              x += o( attention( q, k, v of norm(x) ) )      summed over ranks
 *              x += down( silu(gate) * up of norm(x) )        summed over ranks
 *            A layer may have one matrix in the place of either, x += linear( norm(x) ), or nothing there at all.
 *            A sum waits in `partial` until the next norm takes it in: adding and norming are one op; so is summing over
 *            ranks, for steps of few rows on devices that see each other's memory.
 *            A stage of a pipeline computes its own layers: the first one begins with the embedding, the last one ends with
 *            the logits; between them x travels in float32, with what was pending added, so that stages change no bit.
 * Layout:    R rows of a step, D hidden size, h head size; H, G, F and V are this rank's query heads, KV heads, columns and
 *            rows. x is float32, the other activations are of the backend's dtype; all are whole on every rank between
 *            the blocks. Rows of q, k, v and attention's output are `ld` elements apart in every layer.
 * Ownership: owns its buffers, all made by forward_init; a step allocates nothing.
 * Thread:    owner:the rank's main thread.
 * Collective: forward_run: yes.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "kernels/rope_table.h"
#include "parallel/comm.h"
#include "parallel/plan.h"
#include "parallel/spec.h"
#include "parallel/stages.h"
#include "worker/device_array.h"
#include "worker/exchange.h"
#include "worker/kv_moves.h"
#include "worker/kv_pool.h"
#include "worker/step_plan.h"
#include "worker/weights.h"

/* What forward works with; borrowed. */
struct forward_parts {
    const struct model_spec *spec;
    const struct plan *plan;
    const struct backend *backend;
    struct backend_stream *stream;
    struct comm *comm;     /* of the rank's stage, over the backend's memory */
    struct stages *stages; /* NULL: there is one */
    int32_t rank;          /* of all stages */
    const struct weights *weights;
    struct kv_pool *pool;
    struct kv_moves *moves;
    int32_t batch_invariant; /* 1: see attention_shape */
};

struct forward_limits {
    int32_t max_seqs, max_rows, max_model_len;
    int32_t max_blocks; /* of a step, over all sequences */
    int32_t max_logits; /* rows of a step whose logits are wanted */
    int32_t max_sample_tokens;
    int32_t max_steps; /* under way at once */
};

/* Layers whose attention is cut into work in the same way share this: a lane class, or one KV head of a split class together
 * with the number of its query heads that are here, or a run of a class split by token. */
struct forward_attention {
    int32_t class_index;
    int32_t head;  /* of those held, or by token the run; -1: all of them */
    int32_t group; /* query heads of a KV head */
    int kv_dtype;
    bool
        exchanged; /* queries leave their rank: they are attended to in the exchange's rows, not in their own */
    struct attention_plan *plan;
};

/* A step of one token a sequence, kept as the device's list of ops. */
struct forward_recording {
    int32_t n_rows;
    int32_t n_sampled;           /* rows that are drawn from: all or none */
    struct backend_graph *graph; /* NULL: seen once */
};

#define FORWARD_RECORDINGS 40

enum forward_pending {
    FORWARD_PENDING_NOTHING,
    FORWARD_PENDING_SUM,   /* partial is the sum over ranks */
    FORWARD_PENDING_PARTS, /* partial is this rank's part: who adds it sums over ranks too */
};

struct forward {
    struct forward_parts parts;
    struct forward_limits limits;
    plan_interval_t stage; /* its layers */
    struct exchange exchange;

    float *x;      /* [R, D]: the residual stream */
    void *normed;  /* [R, D] */
    void *partial; /* [R, D]: this rank's part of a sum over ranks, then the sum: one of */
    void *partials
        [3]; /* own, then those of the comm for sums that the next norm takes, by turns; NULL: it has none */
    void *qkv;       /* [R, ld]: H + 2G heads, or H where k and v are computed apart */
    void *kv;        /* [R, 2 KV heads of a run, h]; NULL: always with q */
    void *attended;  /* [R, ld]: H heads */
    void *gate_up;   /* [R, 2F] */
    void *scratch;   /* rows rounded to int8; NULL: no matrix of the rank is MATRIX_W8A8 */
    float *logits;   /* where they are drawn from: [n_logits, n_vocab] */
    float *slice;    /* several ranks of the last stage: [n_logits, V] */
    float *gathered; /* the first of them: the ranks' slices one after the other */
    float *cos, *sin;
    int64_t ld;
    int32_t pending; /* enum forward_pending: partial is still to be added to x */

    struct device_array tokens, positions; /* int32 [max_rows] */
    struct device_array blocks;            /* int32 [max_blocks] */
    struct device_array logit_rows;        /* int32 [max_logits]: rows whose logits are wanted */

    int32_t *drawn; /* [max_seqs]: the last id of each slot */
    /* Where ids are drawn. */
    struct device_array sample_rows;   /* struct sample_row [max_logits] */
    struct device_array sample_tokens; /* struct sample_token [max_sample_tokens] */
    struct sample_result *results;     /* [max_logits] */

    struct forward_attention *attentions;
    int32_t n_attentions;
    struct attention_seq *seqs; /* [max_seqs] */
    struct forward_recording recordings[FORWARD_RECORDINGS];
    int32_t n_recordings;
    int64_t *counts, *displs; /* [ranks] */
    struct strip *strips;     /* [ranks] */
};

MUST_USE status_t forward_init(struct forward *forward, const struct forward_parts *parts,
                               const struct forward_limits *limits);
void forward_destroy(struct forward *forward); /* accepts a zeroed one */

/* The attention of the layer's class, and for a split class of one of its held KV heads, for one split by token of one of its
 * runs; made by forward_init. */
const struct forward_attention *forward_find_attention(const struct forward *f, int32_t layer,
                                                       int32_t head);

/* The rank's query heads of a held KV head of a split class, in the layer. */
plan_interval_t forward_query_heads(const struct forward_parts *parts, int32_t layer, int32_t head);

/* True on the rank that has the logits and draws: the first of the last stage. */
bool forward_draws(const struct forward *forward);

/*
 * Puts the step into the stream, behind the one before; step and sampling may change on return. Where ids are drawn the step's
 * logits are then in forward->logits until the next step's. Unless sampling is NULL, what is drawn comes to results_out
 * [n_logits], host memory of host_alloc, or with several stages to rank 0's stages. sampling is NULL on the other ranks.
 */
MUST_USE status_t forward_run(struct forward *forward, const struct step_plan *step,
                              const struct step_sampling *sampling,
                              struct sample_result *results_out);

/* The drawing, in forward_sample.c: what it needs, the op, and its ids to the ranks that embed. */
MUST_USE status_t forward_send_sampling(struct forward *f, const struct step_sampling *sampling,
                                        int32_t n_rows, int32_t n_padded);
MUST_USE status_t forward_sample(struct forward *f, int32_t n_rows);
MUST_USE status_t forward_share_drawn(struct forward *f, int32_t n_results);

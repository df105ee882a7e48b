/*
 * step_plan.h - one step of the engine as plain data
 *
 * What:      everything a rank must know to compute a step: made by the leader's scheduler, broadcast, executed by
 *            every rank. It holds no state from the step before: block tables travel whole.
 * Layout:    sequences are ordered by lane, so that the rows of a lane, and of a run of lanes, are contiguous.
 *            Row order = sequences in order, each sequence's tokens in order.
 *            Moves of KV blocks come first: every rank carries them out behind all steps before this one and before any of its rows,
 *            one after the other as they are listed, each for what the rank holds of the block.
 *            A token below 0, step_placeholder(slot), stands for the id that was drawn last for the slot: plans can be made
 *            before that id is known, because steps are computed in the order they are made.
 * Ownership: a plan owns one growing buffer per array; reuse it from step to step.
 * Thread:    owner:the rank's main thread.
 * Errors:    unpack checks every count and index against the limits and fails with INTERNAL.
 */
#pragma once

#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "parallel/plan_memory.h"

struct step_seq {
    uint64_t seq_id; /* for messages only */
    int32_t lane;
    int32_t slot; /* of max_seqs; its own as long as it runs: where the id drawn last is kept */
    int32_t n_computed;  /* tokens already in the KV cache = position of the first row */
    int32_t n_tokens;    /* rows of this step, >= 1 */
    int32_t first_row;   /* sum of n_tokens before it */
    int32_t n_blocks;    /* ceil((n_computed + n_tokens) / PLAN_BLOCK_TOKENS) */
    int32_t first_block; /* index into step_plan.blocks */
    int32_t n_logits;    /* the last so many rows' logits are needed */
};

enum step_move_kind {
    STEP_MOVE_COPY, /* one block of the lane to another one: all layers, K and V */
    STEP_MOVE_OUT,  /* a block to a slot of the lane in host memory */
    STEP_MOVE_IN,   /* and back, into any block */
};

struct step_move {
    int32_t kind; /* enum step_move_kind */
    int32_t lane;
    int32_t from, to;
};

/* Bounds of every array, fixed when the engine is made. */
struct step_limits {
    int32_t max_seqs, max_rows;
    int32_t max_blocks; /* over all sequences */
    int32_t max_moves;
    int32_t n_lanes, n_vocab;
    int64_t blocks_per_lane;
    int64_t host_blocks_per_lane; /* slots in host memory */
    int32_t max_logits; /* rows whose logits are needed, over all sequences: at least max_seqs */
    int32_t max_sample_tokens; /* of step_sampling */
};

/* See plan_memory.h, which counts them. */
static inline int32_t step_max_sample_tokens(int32_t max_seqs, int32_t n_vocab)
{
    return plan_memory_sample_tokens(max_seqs, n_vocab);
}

/* What is to be drawn from a step's logits. It travels from rank 0 where another rank draws. */
struct step_sampling {
    const struct sample_row *rows; /* [n_logits], in the order of the sequences that want them */
    const struct sample_token *tokens; /* [n_tokens] */
    int32_t n_tokens;
};

static inline int32_t step_placeholder(int32_t slot)
{
    return -1 - slot;
}

struct step_plan {
    uint64_t step;
    int32_t n_seqs, n_rows, n_blocks, n_logits, n_moves;
    struct step_seq *seqs;   /* [max_seqs] */
    int32_t *tokens;         /* [max_rows] */
    int32_t *positions;      /* [max_rows] */
    int32_t *blocks;         /* [max_blocks] */
    struct step_move *moves; /* [max_moves] */
    struct step_limits limits;
};

MUST_USE status_t step_plan_init(struct step_plan *plan, const struct step_limits *limits);
void step_plan_destroy(struct step_plan *plan); /* accepts a zeroed plan */
void step_plan_clear(struct step_plan *plan);

/* Appends a sequence (fills first_row, first_block and the positions). Sequences must come in lane order. */
MUST_USE status_t step_plan_add(struct step_plan *plan, const struct step_seq *seq,
                                const int32_t *tokens, const int32_t *blocks);

/* Appends a move, to be carried out behind those before it. */
MUST_USE status_t step_plan_add_move(struct step_plan *plan, const struct step_move *move);

MUST_USE status_t step_plan_pack(const struct step_plan *plan, struct bytes *out);
MUST_USE status_t step_plan_unpack(struct step_plan *plan, const void *data, size_t size);

/* Room for the sampling of one step on a rank that is told what to draw. */
struct step_draw {
    struct step_limits limits;
    struct sample_row *rows;     /* [max_logits] */
    struct sample_token *tokens; /* [max_sample_tokens] */
    int32_t n_rows, n_tokens;    /* of the step unpacked last */
};

MUST_USE status_t step_draw_init(struct step_draw *draw, const struct step_limits *limits);
void step_draw_destroy(struct step_draw *draw); /* accepts a zeroed one */

/* n_rows: the n_logits of the step's plan, or 0 where nobody has to be told. Both ends run the same program: structs travel as
 * they are. */
MUST_USE status_t step_draw_pack(const struct step_sampling *sampling, int32_t n_rows,
                                 struct bytes *out);

/* Leaves the reader behind it. A draw without room, zeroed, passes over what is not for it. */
MUST_USE status_t step_draw_unpack(struct step_draw *draw, struct bytes_reader *reader);

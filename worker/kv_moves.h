/*
 * kv_moves.h - KV blocks from one place to another, before a step's rows are computed
 *
 * What:      carries out the moves of a step plan for what this rank holds of the blocks: every layer of its stage, K and V,
 *            scales too. A block of a layer is one strip of each plane, or one of a row for each KV head of a split class; strips of
 *            several moves go to the device together (copy_strips).
 * Ownership: owns its list of strips; the pool is borrowed and must outlive it. A step allocates nothing.
 * Thread:    owner:the rank's main thread.
 * Invariant: as if the moves were made one after the other, though the device makes those of a launch at once: a move that
 *            touches what another one of the launch writes, or writes what it reads, begins a new one.
 */
#pragma once

#include "worker/kv_pool.h"
#include "worker/step_plan.h"

struct kv_moves {
    const struct kv_pool *pool;
    struct strip *strips; /* [max_strips] */
    int32_t max_strips;
};

MUST_USE status_t kv_moves_init(struct kv_moves *moves, const struct kv_pool *pool);
void kv_moves_destroy(struct kv_moves *moves); /* accepts a zeroed one */

/* Puts the step's moves into the stream. */
MUST_USE status_t kv_moves_run(struct kv_moves *moves, const struct step_plan *step);

/*
 * kv_moves.h - KV blocks from one place to another, before a step's rows are computed
 *
 * What:      carries out the moves of a step plan for what this rank holds of the blocks: every layer of its stage, K and V,
 *            scales too. A block of a layer is one strip of each plane, or one of a row for each KV head of a split class; strips of
 *            several moves go to the device together (copy_strips).
 *            Blocks can wait in host memory meanwhile: in slots, of which each lane has as many, and which lie there as blocks do
 *            in the pool. The device reads and writes them itself.
 * Ownership: owns its list of strips and the slots; the pool is borrowed and must outlive it. A step allocates nothing.
 * Thread:    owner:the rank's main thread.
 * Errors:    RESOURCE_EXHAUSTED for memory.
 * Invariant: as if the moves were made one after the other, though the device makes those of a launch at once: a move that
 *            touches what another one of the launch writes, or writes what it reads, begins a new one.
 */
#pragma once

#include "worker/kv_pool.h"
#include "worker/step_plan.h"

/* Where blocks lie: in the pool, or in slots. */
struct kv_place {
    const struct kv_planes *layers; /* [n_layers] */
    int64_t blocks_per_lane;
};

struct kv_moves {
    const struct kv_pool *pool;
    struct strip *strips; /* [max_strips] */
    int32_t max_strips;
    struct kv_place device, host;
    struct kv_planes *host_layers; /* [n_layers], parts of host_memory */
    void *host_memory;             /* NULL: there are no slots */
    uint64_t host_bytes;
};

/* Slots of a lane that swap_bytes of the host's room hold, block_bytes being what one in every lane takes; INT32_MAX where the rank
 * keeps nothing. FAILED_PRECONDITION where they are too many bytes or too few. */
MUST_USE status_t kv_moves_fit(uint64_t swap_bytes, uint64_t room_bytes, int64_t block_bytes,
                               int64_t *slots_out);

/* host_blocks_per_lane: slots; 0: none. */
MUST_USE status_t kv_moves_init(struct kv_moves *moves, const struct kv_pool *pool,
                                int64_t host_blocks_per_lane);
void kv_moves_destroy(struct kv_moves *moves); /* accepts a zeroed one */

/* Puts the step's moves into the stream. */
MUST_USE status_t kv_moves_run(struct kv_moves *moves, const struct step_plan *step);

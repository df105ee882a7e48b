/*
 * block_pool.h - free KV blocks, lane by lane
 *
 * What:      lends block ids 0..blocks_per_lane-1 of each lane, lowest first when fresh, then last returned first.
 * Ownership: a block id is borrowed from take until give.
 * Thread:    one owner.
 * Errors:    -1 when the lane has no free block: expected, the caller preempts or waits.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

struct block_pool {
    int32_t *free_ids; /* [n_lanes][blocks_per_lane], a stack per lane */
    int64_t *n_free;   /* [n_lanes] */
    int32_t n_lanes;
    int64_t blocks_per_lane;
};

MUST_USE status_t block_pool_init(struct block_pool *pool, int32_t n_lanes,
                                  int64_t blocks_per_lane);
void block_pool_destroy(struct block_pool *pool); /* accepts a zeroed pool */

int32_t block_pool_take(struct block_pool *pool, int32_t lane);
void block_pool_give(struct block_pool *pool, int32_t lane, int32_t id);

static inline int64_t block_pool_free_count(const struct block_pool *pool, int32_t lane)
{
    return pool->n_free[lane];
}

/* The lane with the most free blocks, the lowest on ties. */
int32_t block_pool_emptiest_lane(const struct block_pool *pool);

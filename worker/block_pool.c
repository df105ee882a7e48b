#include "worker/block_pool.h"

#include <assert.h>
#include <stdlib.h>

status_t block_pool_init(struct block_pool *pool, int32_t n_lanes, int64_t blocks_per_lane)
{
    if (n_lanes < 1 || blocks_per_lane < 1 || blocks_per_lane > INT32_MAX) {
        return status_errorf(STATUS_INTERNAL, "block pool: %d lanes of %lld blocks", n_lanes,
                             (long long)blocks_per_lane);
    }
    const size_t n = (size_t)n_lanes * (size_t)blocks_per_lane;
    int32_t *free_ids = calloc(n, sizeof *free_ids);
    int64_t *n_free = calloc((size_t)n_lanes, sizeof *n_free);
    if (free_ids == NULL || n_free == NULL) {
        free(free_ids);
        free(n_free);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "block pool: no memory for %zu block ids",
                             n);
    }
    for (int32_t lane = 0; lane < n_lanes; lane++) {
        int32_t *stack = free_ids + (size_t)lane * (size_t)blocks_per_lane;
        for (int64_t i = 0; i < blocks_per_lane; i++) {
            stack[i] = (int32_t)(blocks_per_lane - 1 - i); // the top of the stack is block 0
        }
        n_free[lane] = blocks_per_lane;
    }
    *pool = (struct block_pool){.free_ids = free_ids,
                                .n_free = n_free,
                                .n_lanes = n_lanes,
                                .blocks_per_lane = blocks_per_lane};
    return status_ok();
}

void block_pool_destroy(struct block_pool *pool)
{
    free(pool->free_ids);
    free(pool->n_free);
    *pool = (struct block_pool){0};
}

int32_t block_pool_take(struct block_pool *pool, int32_t lane)
{
    assert(lane >= 0 && lane < pool->n_lanes);
    if (pool->n_free[lane] == 0) {
        return -1;
    }
    pool->n_free[lane]--;
    return pool->free_ids[(int64_t)lane * pool->blocks_per_lane + pool->n_free[lane]];
}

void block_pool_give(struct block_pool *pool, int32_t lane, int32_t id)
{
    assert(lane >= 0 && lane < pool->n_lanes);
    assert(id >= 0 && id < pool->blocks_per_lane && pool->n_free[lane] < pool->blocks_per_lane);
    pool->free_ids[(int64_t)lane * pool->blocks_per_lane + pool->n_free[lane]] = id;
    pool->n_free[lane]++;
}

int32_t block_pool_emptiest_lane(const struct block_pool *pool)
{
    int32_t best = 0;
    for (int32_t lane = 1; lane < pool->n_lanes; lane++) {
        if (pool->n_free[lane] > pool->n_free[best]) {
            best = lane;
        }
    }
    return best;
}

/*
 * block_pool.h - KV blocks, lane by lane: who holds them, and which tokens those nobody holds still keep
 *
 * What:      lends block ids 0..blocks_per_lane-1 of each lane. A block may have several holders. A full block can be published
 *            under what it contains: its tokens and the published block before it. Whoever finds it can hold it too instead
 *            of computing it again. A published block without holders stays as it is until its lane needs the
 *            memory: then the one that was given back longest ago is used anew.
 *
 *              holders   published
 *              none      no           free: lent first
 *              none      yes          cached: lent when no other is left, oldest first
 *              some      any          held
 *
 *            Contents are compared, not only hashed: equal serials are equal prefixes, also between tenants, whose
 *            chains begin at roots of their own.
 * Units:     blocks of PLAN_BLOCK_TOKENS tokens; a serial is never used twice, 0 is none.
 * Ownership: a block id is borrowed from take or share until give.
 * Thread:    one owner.
 * Errors:    -1 when the lane has no free block: expected, the caller preempts or waits.
 * Invariant: free + cached + held blocks of a lane == blocks_per_lane.
 * Source:    Kwon et al. 2023, arXiv:2309.06180 (paged KV with shared blocks); vLLM's automatic prefix caching.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

struct pool_block; /* one block's holders and contents */
struct pool_lane;  /* one lane's free and cached blocks */
struct pool_root;  /* one tenant's salt */

struct block_pool {
    int32_t n_lanes;
    int64_t blocks_per_lane;
    int32_t
        stripe; /* places, id % stripe, that a sequence's blocks are to go round (parallel/plan.h) */
    struct pool_block *blocks; /* [n_lanes][blocks_per_lane] */
    struct pool_lane *lanes;   /* [n_lanes] */
    int64_t *buckets;          /* [n_buckets]: first published block of a hash, -1: none */
    uint64_t n_buckets;        /* a power of two */
    struct pool_root *roots;   /* [BLOCK_POOL_ROOTS] */
    uint64_t last_serial;
    uint64_t n_root_uses;
};

/* Salts that are remembered; the one not used for longest gives way, and what was published under it is found no more. */
#define BLOCK_POOL_ROOTS      256
#define BLOCK_POOL_SALT_BYTES 128 /* its end included */

MUST_USE status_t block_pool_init(struct block_pool *pool, int32_t n_lanes,
                                  int64_t blocks_per_lane);
void block_pool_destroy(struct block_pool *pool); /* accepts a zeroed pool */

/* Before anything is taken: places to go round, 1 at first. */
MUST_USE status_t block_pool_stripe(struct block_pool *pool, int32_t stripe);

/* A block with one holder, its contents forgotten. */
int32_t block_pool_take(struct block_pool *pool, int32_t lane);
/* The same for the index-th block of a sequence: of place index % stripe while such a one is free. */
int32_t block_pool_take_near(struct block_pool *pool, int32_t lane, int32_t index);
/* One holder more, of a block that is held or cached. */
void block_pool_share(struct block_pool *pool, int32_t lane, int32_t id);
/* One holder less. Blocks of a sequence are given back last first: a prefix outlives what follows it. */
void block_pool_give(struct block_pool *pool, int32_t lane, int32_t id);

/* Blocks that take can lend: free and cached. */
int64_t block_pool_free_count(const struct block_pool *pool, int32_t lane);
int32_t block_pool_holders(const struct block_pool *pool, int32_t lane, int32_t id);

/* Where the chains of a salt begin; shorter than BLOCK_POOL_SALT_BYTES. */
uint64_t block_pool_root(struct block_pool *pool, const char *salt);

/* What a full block is known by. */
struct block_contents {
    uint64_t before;       /* serial of the block before it, or a root */
    const int32_t *tokens; /* [PLAN_BLOCK_TOKENS] */
};

/*
 * Makes a held block findable, and returns the serial for the block that follows it. When the lane has such a block already,
 * that one stays the one to find, and its serial is returned.
 */
uint64_t block_pool_publish(struct block_pool *pool, int32_t lane, int32_t id,
                            const struct block_contents *contents);

/* The lane's published block with these contents, or -1; the caller shares it before the next take. */
int32_t block_pool_find(const struct block_pool *pool, int32_t lane,
                        const struct block_contents *contents, uint64_t *serial_out);

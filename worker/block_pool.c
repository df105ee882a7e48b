#include "worker/block_pool.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"

#define NONE ((int64_t)-1)

struct pool_block {
    int32_t n_holders;
    int32_t tokens[PLAN_BLOCK_TOKENS]; /* of a published block */
    uint64_t before;
    uint64_t serial;      /* 0: not published */
    int64_t older, newer; /* in the lane's queue of cached blocks: indices, NONE at its ends */
    int64_t next_of_bucket;
};

struct pool_lane {
    int32_t *free_ids;      /* [stripe][blocks of a place], stacks */
    int64_t *n_free_at;     /* [stripe] */
    int64_t n_free;         /* of all places */
    int64_t oldest, newest; /* cached blocks: indices, NONE: no such block */
    int64_t n_cached;
};

struct pool_root {
    uint64_t serial; /* 0: not in use */
    uint64_t used;   /* when, by count of uses */
    char salt[BLOCK_POOL_SALT_BYTES];
};

// ---- life ----

static status_t allocate(struct block_pool *pool)
{
    const size_t n_lanes = (size_t)pool->n_lanes;
    const size_t n = n_lanes * (size_t)pool->blocks_per_lane;
    pool->n_buckets = 1;
    while (pool->n_buckets < n) {
        pool->n_buckets *= 2;
    }
    pool->blocks = calloc(n, sizeof *pool->blocks);
    pool->lanes = calloc(n_lanes, sizeof *pool->lanes);
    pool->buckets = malloc(pool->n_buckets * sizeof *pool->buckets);
    pool->roots = calloc(BLOCK_POOL_ROOTS, sizeof *pool->roots);
    bool made =
        pool->blocks != NULL && pool->lanes != NULL && pool->buckets != NULL && pool->roots != NULL;
    return made ? status_ok()
                : status_errorf(STATUS_RESOURCE_EXHAUSTED, "block pool: no memory for %zu blocks",
                                n);
}

/* Ids of a place, the most there are of any. */
static int64_t place_ids(const struct block_pool *pool)
{
    return (pool->blocks_per_lane + pool->stripe - 1) / pool->stripe;
}

static void push_free(const struct block_pool *pool, struct pool_lane *lane, int32_t id)
{
    const int32_t place = id % pool->stripe;
    lane->free_ids[place * place_ids(pool) + lane->n_free_at[place]++] = id;
    lane->n_free++;
}

static bool fill(const struct block_pool *pool, struct pool_lane *lane)
{
    free(lane->free_ids);
    free(lane->n_free_at);
    lane->free_ids = calloc((size_t)pool->stripe * (size_t)place_ids(pool), sizeof *lane->free_ids);
    lane->n_free_at = calloc((size_t)pool->stripe, sizeof *lane->n_free_at);
    lane->n_free = 0;
    lane->oldest = NONE;
    lane->newest = NONE;
    const bool made = lane->free_ids != NULL && lane->n_free_at != NULL;
    for (int64_t id = pool->blocks_per_lane - 1; made && id >= 0; id--) {
        push_free(pool, lane, (int32_t)id); // the top of a stack is its first
    }
    return made;
}

status_t block_pool_stripe(struct block_pool *pool, int32_t stripe)
{
    pool->stripe = stripe > 1 ? stripe : 1;
    bool made = true;
    for (int32_t lane = 0; lane < pool->n_lanes; lane++) {
        made = fill(pool, &pool->lanes[lane]) && made;
    }
    return made ? status_ok()
                : status_errorf(STATUS_RESOURCE_EXHAUSTED, "block pool: no memory for %d places",
                                stripe);
}

status_t block_pool_init(struct block_pool *pool, int32_t n_lanes, int64_t blocks_per_lane)
{
    if (n_lanes < 1 || blocks_per_lane < 1 || blocks_per_lane > INT32_MAX) {
        return status_errorf(STATUS_INTERNAL, "block pool: %d lanes of %lld blocks", n_lanes,
                             (long long)blocks_per_lane);
    }
    struct block_pool made = {.n_lanes = n_lanes, .blocks_per_lane = blocks_per_lane};
    status_t s = allocate(&made);
    if (status_is_ok(&s)) {
        s = block_pool_stripe(&made, 1);
    }
    if (!status_is_ok(&s)) {
        block_pool_destroy(&made);
        return s;
    }
    for (uint64_t i = 0; i < made.n_buckets; i++) {
        made.buckets[i] = NONE;
    }
    *pool = made;
    return status_ok();
}

void block_pool_destroy(struct block_pool *pool)
{
    for (int32_t lane = 0; pool->lanes != NULL && lane < pool->n_lanes; lane++) {
        free(pool->lanes[lane].free_ids);
        free(pool->lanes[lane].n_free_at);
    }
    free(pool->lanes);
    free(pool->blocks);
    free(pool->buckets);
    free(pool->roots);
    *pool = (struct block_pool){0};
}

// ---- contents ----

static int64_t index_of(const struct block_pool *pool, int32_t lane, int32_t id)
{
    assert(lane >= 0 && lane < pool->n_lanes && id >= 0 && id < pool->blocks_per_lane);
    return (int64_t)lane * pool->blocks_per_lane + id;
}

/* splitmix64's finisher, over lane, predecessor and tokens. */
static uint64_t mix(uint64_t h, uint64_t value)
{
    h = (h ^ value) * 0x9e3779b97f4a7c15u;
    h ^= h >> 30;
    h *= 0xbf58476d1ce4e5b9u;
    return h ^ h >> 27;
}

static int64_t *bucket_of(const struct block_pool *pool, int32_t lane, uint64_t before,
                          const int32_t *tokens)
{
    uint64_t h = mix((uint64_t)lane, before);
    for (int32_t i = 0; i < PLAN_BLOCK_TOKENS; i += 2) {
        h = mix(h, (uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]);
    }
    return &pool->buckets[h & (pool->n_buckets - 1)];
}

static bool holds(const struct pool_block *block, const struct block_contents *contents)
{
    return block->before == contents->before &&
           memcmp(block->tokens, contents->tokens, sizeof block->tokens) == 0;
}

static int64_t find(const struct block_pool *pool, int32_t lane,
                    const struct block_contents *contents)
{
    int64_t at = *bucket_of(pool, lane, contents->before, contents->tokens);
    while (at != NONE &&
           (at / pool->blocks_per_lane != lane || !holds(&pool->blocks[at], contents))) {
        at = pool->blocks[at].next_of_bucket;
    }
    return at;
}

int32_t block_pool_find(const struct block_pool *pool, int32_t lane,
                        const struct block_contents *contents, uint64_t *serial_out)
{
    const int64_t at = find(pool, lane, contents);
    if (at == NONE) {
        return -1;
    }
    *serial_out = pool->blocks[at].serial;
    return (int32_t)(at % pool->blocks_per_lane);
}

uint64_t block_pool_publish(struct block_pool *pool, int32_t lane, int32_t id,
                            const struct block_contents *contents)
{
    const int64_t at = index_of(pool, lane, id);
    struct pool_block *block = &pool->blocks[at];
    assert(block->n_holders > 0 && block->serial == 0);
    const int64_t other = find(pool, lane, contents);
    if (other != NONE) {
        return pool->blocks[other].serial;
    }
    block->before = contents->before;
    memcpy(block->tokens, contents->tokens, sizeof block->tokens);
    block->serial = ++pool->last_serial;
    int64_t *bucket = bucket_of(pool, lane, block->before, block->tokens);
    block->next_of_bucket = *bucket;
    *bucket = at;
    return block->serial;
}

static void unpublish(struct block_pool *pool, int32_t lane, int64_t at)
{
    struct pool_block *block = &pool->blocks[at];
    int64_t *link = bucket_of(pool, lane, block->before, block->tokens);
    while (*link != at) {
        link = &pool->blocks[*link].next_of_bucket;
    }
    *link = block->next_of_bucket;
    block->serial = 0;
}

// ---- cached blocks ----

static void queue_push(struct block_pool *pool, struct pool_lane *lane, int64_t at)
{
    struct pool_block *block = &pool->blocks[at];
    block->older = lane->newest;
    block->newer = NONE;
    *(lane->newest == NONE ? &lane->oldest : &pool->blocks[lane->newest].newer) = at;
    lane->newest = at;
    lane->n_cached++;
}

static void queue_remove(struct block_pool *pool, struct pool_lane *lane, int64_t at)
{
    const struct pool_block *block = &pool->blocks[at];
    *(block->older == NONE ? &lane->oldest : &pool->blocks[block->older].newer) = block->newer;
    *(block->newer == NONE ? &lane->newest : &pool->blocks[block->newer].older) = block->older;
    lane->n_cached--;
}

// ---- lending ----

/* A free id of the place, or of the next one that has any. */
static int32_t pop_free(const struct block_pool *pool, struct pool_lane *lane, int32_t place)
{
    while (lane->n_free_at[place] == 0) {
        place = (place + 1) % pool->stripe;
    }
    lane->n_free--;
    return lane->free_ids[place * place_ids(pool) + --lane->n_free_at[place]];
}

int32_t block_pool_take(struct block_pool *pool, int32_t lane)
{
    return block_pool_take_near(pool, lane, 0);
}

int32_t block_pool_take_near(struct block_pool *pool, int32_t lane, int32_t index)
{
    assert(lane >= 0 && lane < pool->n_lanes && index >= 0);
    struct pool_lane *from = &pool->lanes[lane];
    int32_t id = -1;
    if (from->n_free > 0) {
        id = pop_free(pool, from, index % pool->stripe);
    } else if (from->oldest != NONE) {
        const int64_t at = from->oldest;
        queue_remove(pool, from, at);
        unpublish(pool, lane, at);
        id = (int32_t)(at % pool->blocks_per_lane);
    }
    if (id >= 0) {
        pool->blocks[index_of(pool, lane, id)].n_holders = 1;
    }
    return id;
}

void block_pool_share(struct block_pool *pool, int32_t lane, int32_t id)
{
    const int64_t at = index_of(pool, lane, id);
    struct pool_block *block = &pool->blocks[at];
    assert(block->n_holders > 0 || block->serial != 0);
    if (block->n_holders == 0) {
        queue_remove(pool, &pool->lanes[lane], at);
    }
    block->n_holders++;
}

void block_pool_give(struct block_pool *pool, int32_t lane, int32_t id)
{
    const int64_t at = index_of(pool, lane, id);
    struct pool_block *block = &pool->blocks[at];
    assert(block->n_holders > 0);
    if (--block->n_holders > 0) {
        return;
    }
    struct pool_lane *to = &pool->lanes[lane];
    if (block->serial != 0) {
        queue_push(pool, to, at);
    } else {
        push_free(pool, to, id);
    }
}

int64_t block_pool_free_count(const struct block_pool *pool, int32_t lane)
{
    return pool->lanes[lane].n_free + pool->lanes[lane].n_cached;
}

int32_t block_pool_holders(const struct block_pool *pool, int32_t lane, int32_t id)
{
    return pool->blocks[index_of(pool, lane, id)].n_holders;
}

// ---- roots ----

uint64_t block_pool_root(struct block_pool *pool, const char *salt)
{
    struct pool_root *root = &pool->roots[0];
    assert(strlen(salt) < BLOCK_POOL_SALT_BYTES);
    for (int32_t i = 0; i < BLOCK_POOL_ROOTS; i++) {
        struct pool_root *other = &pool->roots[i];
        if (other->serial != 0 && strcmp(other->salt, salt) == 0) {
            other->used = ++pool->n_root_uses;
            return other->serial;
        }
        root = other->used < root->used ? other : root;
    }
    memcpy(root->salt, salt, strlen(salt) + 1);
    root->serial = ++pool->last_serial;
    root->used = ++pool->n_root_uses;
    return root->serial;
}

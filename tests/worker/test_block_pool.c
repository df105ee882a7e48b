/*
 * test_block_pool.c - lending, sharing and finding blocks, against a model that keeps lists and searches them
 */
#include <stdio.h>
#include <string.h>

#include "parallel/plan.h"
#include "tests/support/test.h"
#include "worker/block_pool.h"

enum { N_LANES = 3, N_BLOCKS = 12, N_WORDS = 3 };

static void fill_tokens(int32_t *tokens, int32_t word)
{
    for (int32_t i = 0; i < PLAN_BLOCK_TOKENS; i++) {
        tokens[i] = word * 1000 + i;
    }
}

/* What the model knows of a block. */
struct shadow {
    int32_t n_holders;
    bool published;
    uint64_t before, serial;
    int32_t word;
    uint64_t given; /* when it was given back last */
};

struct model {
    struct block_pool pool;
    struct shadow blocks[N_LANES][N_BLOCKS];
    uint64_t now;
};

static int32_t shadow_find(const struct model *m, int32_t lane, uint64_t before, int32_t word)
{
    for (int32_t id = 0; id < N_BLOCKS; id++) {
        const struct shadow *b = &m->blocks[lane][id];
        if (b->published && b->before == before && b->word == word) {
            return id;
        }
    }
    return -1;
}

static int64_t shadow_free(const struct model *m, int32_t lane)
{
    int64_t n = 0;
    for (int32_t id = 0; id < N_BLOCKS; id++) {
        n += m->blocks[lane][id].n_holders == 0;
    }
    return n;
}

/* A free block before any cached one; of the cached ones the one given back first. */
static void check_taken(const struct model *m, int32_t lane, int32_t id)
{
    if (id < 0) {
        assert_int_equal(shadow_free(m, lane), 0);
        return;
    }
    const struct shadow *taken = &m->blocks[lane][id];
    assert_int_equal(taken->n_holders, 0);
    for (int32_t i = 0; i < N_BLOCKS; i++) {
        const struct shadow *b = &m->blocks[lane][i];
        if (taken->published && b->n_holders == 0) {
            assert_true(b->published && b->given >= taken->given);
        }
    }
}

static void take(struct model *m, int32_t lane)
{
    const int32_t id = block_pool_take(&m->pool, lane);
    check_taken(m, lane, id);
    if (id >= 0) {
        m->blocks[lane][id] = (struct shadow){.n_holders = 1};
    }
}

static void give(struct model *m, int32_t lane, int32_t id)
{
    struct shadow *b = &m->blocks[lane][id];
    if (b->n_holders > 0) {
        block_pool_give(&m->pool, lane, id);
        b->n_holders--;
        b->given = ++m->now;
    }
}

/* A predecessor that is as often a block of the lane as a root. */
static uint64_t any_serial(struct model *m, int32_t lane)
{
    const struct shadow *b = &m->blocks[lane][test_random_below(N_BLOCKS)];
    char salt[16];
    snprintf(salt, sizeof salt, "tenant %d", (int)test_random_below(2));
    return b->published ? b->serial : block_pool_root(&m->pool, salt);
}

static void publish(struct model *m, int32_t lane, int32_t id)
{
    struct shadow *b = &m->blocks[lane][id];
    if (b->n_holders == 0 || b->published) {
        return;
    }
    int32_t tokens[PLAN_BLOCK_TOKENS];
    const uint64_t before = any_serial(m, lane);
    const int32_t word = (int32_t)test_random_below(N_WORDS);
    fill_tokens(tokens, word);
    const struct block_contents contents = {before, tokens};
    const int32_t other = shadow_find(m, lane, before, word);
    const uint64_t serial = block_pool_publish(&m->pool, lane, id, &contents);
    if (other >= 0) {
        assert_true(serial == m->blocks[lane][other].serial);
        return;
    }
    b->published = true;
    b->before = before;
    b->word = word;
    b->serial = serial;
}

static void find(struct model *m, int32_t lane)
{
    int32_t tokens[PLAN_BLOCK_TOKENS];
    const uint64_t before = any_serial(m, lane);
    const int32_t word = (int32_t)test_random_below(N_WORDS + 1);
    fill_tokens(tokens, word);
    const struct block_contents contents = {before, tokens};
    uint64_t serial = 0;
    const int32_t id = block_pool_find(&m->pool, lane, &contents, &serial);
    assert_int_equal(id, shadow_find(m, lane, before, word));
    if (id >= 0) {
        assert_true(serial == m->blocks[lane][id].serial);
        block_pool_share(&m->pool, lane, id);
        m->blocks[lane][id].n_holders++;
    }
}

static void test_block_pool_agrees_with_a_model(void **state)
{
    (void)state;
    static struct model m;
    memset(&m, 0, sizeof m);
    assert_status_ok(block_pool_init(&m.pool, N_LANES, N_BLOCKS));
    for (int32_t i = 0; i < 200000; i++) {
        const int32_t lane = (int32_t)test_random_below(N_LANES);
        const int32_t id = (int32_t)test_random_below(N_BLOCKS);
        switch (test_random_below(4)) {
        case 0:
            take(&m, lane);
            break;
        case 1:
            give(&m, lane, id);
            break;
        case 2:
            publish(&m, lane, id);
            break;
        default:
            find(&m, lane);
        }
        assert_int_equal(block_pool_free_count(&m.pool, lane), shadow_free(&m, lane));
    }
    block_pool_destroy(&m.pool);
}

static void test_block_pool_lends_lowest_first(void **state)
{
    (void)state;
    struct block_pool pool;
    assert_status_ok(block_pool_init(&pool, 2, 3));
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(block_pool_take(&pool, 1), i);
    }
    assert_int_equal(block_pool_take(&pool, 1), -1);
    assert_int_equal(block_pool_holders(&pool, 1, 2), 1);
    assert_int_equal(block_pool_holders(&pool, 0, 2), 0);
    block_pool_give(&pool, 1, 1);
    assert_int_equal(block_pool_take(&pool, 1), 1);
    block_pool_destroy(&pool);
}

/* Chains of one tenant are not found by another, nor by itself once its salt has been forgotten. */
static void test_block_pool_keeps_salts_apart(void **state)
{
    (void)state;
    struct block_pool pool;
    int32_t tokens[PLAN_BLOCK_TOKENS];
    uint64_t serial;
    fill_tokens(tokens, 1);
    assert_status_ok(block_pool_init(&pool, 1, 4));
    const uint64_t mine = block_pool_root(&pool, "mine");
    assert_true(block_pool_root(&pool, "mine") == mine);
    assert_true(block_pool_root(&pool, "yours") != mine);
    const int32_t id = block_pool_take(&pool, 0);
    const struct block_contents contents = {mine, tokens};
    (void)block_pool_publish(&pool, 0, id, &contents);
    assert_int_equal(block_pool_find(&pool, 0, &contents, &serial), id);
    const struct block_contents other = {block_pool_root(&pool, "yours"), tokens};
    assert_int_equal(block_pool_find(&pool, 0, &other, &serial), -1);
    for (int32_t i = 0; i < BLOCK_POOL_ROOTS; i++) {
        char salt[16];
        snprintf(salt, sizeof salt, "salt %d", i);
        (void)block_pool_root(&pool, salt);
    }
    assert_true(block_pool_root(&pool, "mine") != mine);
    block_pool_destroy(&pool);
}

static void test_block_pool_refuses_bad_sizes(void **state)
{
    (void)state;
    struct block_pool pool;
    assert_status_says(block_pool_init(&pool, 0, 4), STATUS_INTERNAL, "0 lanes");
    assert_status_says(block_pool_init(&pool, 1, 0), STATUS_INTERNAL, "of 0 blocks");
    assert_status_says(block_pool_init(&pool, 1, (int64_t)INT32_MAX + 1), STATUS_INTERNAL,
                       "blocks");
}

/* Blocks of a sequence go round the places; where one has no free block, the next one lends. */
static void test_block_pool_goes_round_the_stripe(void **state)
{
    (void)state;
    struct block_pool pool;
    assert_status_ok(block_pool_init(&pool, 2, 8)); // places 0, 1, 2 have 3, 3 and 2
    assert_status_ok(block_pool_stripe(&pool, 3));
    static const int32_t indices[] = {0, 1, 2, 3, 4, 2, 2, 0};
    static const int32_t ids[] = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int i = 0; i < 8; i++) {
        assert_int_equal(block_pool_free_count(&pool, 1), 8 - i);
        assert_int_equal(block_pool_take_near(&pool, 1, indices[i]), ids[i]);
    }
    assert_int_equal(block_pool_take_near(&pool, 1, 0), -1);
    assert_int_equal(block_pool_free_count(&pool, 0), 8);
    block_pool_give(&pool, 1, 4);
    block_pool_give(&pool, 1, 2);
    assert_int_equal(block_pool_take_near(&pool, 1, 5), 2);
    assert_int_equal(block_pool_take_near(&pool, 1, 5), 4); // of place 1: no other is free
    block_pool_destroy(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block_pool_goes_round_the_stripe),
        cmocka_unit_test(test_block_pool_agrees_with_a_model),
        cmocka_unit_test(test_block_pool_lends_lowest_first),
        cmocka_unit_test(test_block_pool_keeps_salts_apart),
        cmocka_unit_test(test_block_pool_refuses_bad_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

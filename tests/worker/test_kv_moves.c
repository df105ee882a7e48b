/*
 * test_kv_moves.c - moves of KV blocks against copies made head by head on the host
 *
 * The pools of every rank of random models' plans, in one process: on the CPU, and on CUDA's simulator.
 */
#include "tests/support/test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tests/parallel/models.h"
#include "tests/worker/ahead_backend.h"
#include "worker/kv_moves.h"

enum { BLOCKS = 6, SLOTS = 3, MOVES = 40, PLANES = 4 };

/* A rank's pool, and on the host what its planes should hold. */
struct fixture {
    const struct backend *backend;
    struct backend_stream *stream;
    struct kv_pool pool;
    struct kv_moves moves;
    struct step_plan step;
    unsigned char **want;    /* [layers][PLANES]; NULL: no such plane */
    unsigned char **waiting; /* the same, [lanes][SLOTS][heads]: what is in slots */
};

static size_t unit_bytes(const struct fixture *f, int dtype, int plane)
{
    const size_t head_dim = (size_t)f->pool.plan->head_dim;
    return PLAN_BLOCK_TOKENS * (plane < 2 ? head_dim * dtype_bytes(dtype) : 2);
}

static int32_t heads_of(const struct fixture *f, int32_t layer)
{
    return f->pool.plan->classes[f->pool.plan->layers[layer].class_index].n_kv_heads;
}

static void *plane_of(const struct kv_planes *planes, int plane)
{
    void *const all[PLANES] = {planes->k, planes->v, planes->k_scales, planes->v_scales};
    return all[plane];
}

static size_t plane_bytes(const struct fixture *f, int32_t layer, int plane)
{
    const struct kv_pool *pool = &f->pool;
    const int32_t class_index = pool->plan->layers[layer].class_index;
    const int64_t units = plan_units(pool->plan, class_index, pool->tp_rank, BLOCKS);
    return (size_t)units * unit_bytes(f, pool->layers[layer].dtype, plane);
}

/* Random bytes in every plane. */
static void fill(struct fixture *f)
{
    const int32_t n_layers = f->pool.plan->n_layers;
    f->want = calloc((size_t)n_layers * PLANES, sizeof *f->want);
    f->waiting = calloc((size_t)n_layers * PLANES, sizeof *f->waiting);
    assert_non_null(f->want);
    assert_non_null(f->waiting);
    for (int32_t i = 0; i < n_layers * PLANES; i++) {
        void *plane = plane_of(&f->pool.layers[i / PLANES], i % PLANES);
        if (plane == NULL) {
            continue;
        }
        const size_t size = plane_bytes(f, i / PLANES, i % PLANES);
        f->want[i] = malloc(size);
        f->waiting[i] =
            calloc((size_t)f->pool.plan->n_lanes * SLOTS * (size_t)heads_of(f, i / PLANES),
                   unit_bytes(f, f->pool.layers[i / PLANES].dtype, i % PLANES));
        assert_non_null(f->want[i]);
        assert_non_null(f->waiting[i]);
        for (size_t at = 0; at < size; at++) {
            f->want[i][at] = (unsigned char)test_random_u64();
        }
        assert_status_ok(f->backend->upload(f->stream, plane, f->want[i], size));
    }
    assert_status_ok(f->backend->stream_sync(f->stream)); // then `want` may change
}

static void check(struct fixture *f)
{
    for (int32_t i = 0; i < f->pool.plan->n_layers * PLANES; i++) {
        if (f->want[i] == NULL) {
            continue;
        }
        const size_t size = plane_bytes(f, i / PLANES, i % PLANES);
        unsigned char *got = malloc(size);
        assert_non_null(got);
        const void *plane = plane_of(&f->pool.layers[i / PLANES], i % PLANES);
        assert_status_ok(f->backend->download(f->stream, got, plane, size));
        assert_status_ok(f->backend->stream_sync(f->stream));
        assert_memory_equal(got, f->want[i], size);
        free(got);
    }
}

/* The unit of one of the heads that the rank holds of a block: where rope_append would put it. */
static int64_t unit_of(const struct kv_class *kv_class, int32_t lane_index, int32_t block,
                       int32_t head)
{
    const struct kv_lane *lane = &kv_class->lanes[lane_index];
    return kv_class->split ? head * kv_class->part_units + lane->unit_base + block
                           : lane->unit_base + (int64_t)block * lane->n_heads + head;
}

/* Where the shadow has a head of a block, or of a slot. */
static unsigned char *shadow_of(const struct fixture *f, int32_t plane, int32_t lane, int32_t at,
                                int32_t head)
{
    const int32_t layer = plane / PLANES;
    const struct kv_pool *pool = &f->pool;
    const size_t size = unit_bytes(f, pool->layers[layer].dtype, plane % PLANES);
    if (at < 0) {
        const int32_t slot = (lane * SLOTS - 1 - at) * heads_of(f, layer) + head;
        return f->waiting[plane] + (size_t)slot * size;
    }
    const struct kv_class *kv_class = &pool->classes[pool->plan->layers[layer].class_index];
    return f->want[plane] + (size_t)unit_of(kv_class, lane, at, head) * size;
}

/* from, to: blocks, or slots as -1 - slot. */
static void copy_on_host(struct fixture *f, int32_t lane, int32_t from, int32_t to)
{
    const struct kv_pool *pool = &f->pool;
    for (int32_t i = 0; i < pool->plan->n_layers * PLANES; i++) {
        if (f->want[i] == NULL) {
            continue;
        }
        const int32_t layer = i / PLANES;
        const struct kv_class *kv_class = &pool->classes[pool->plan->layers[layer].class_index];
        const size_t size = unit_bytes(f, pool->layers[layer].dtype, i % PLANES);
        for (int32_t head = 0; head < kv_class->lanes[lane].n_heads; head++) {
            memcpy(shadow_of(f, i, lane, to, head), shadow_of(f, i, lane, from, head), size);
        }
    }
}

/* Of any kind; a slot is read after it was written alone. */
static void add_move(struct fixture *f, bool *written)
{
    const int32_t lane = (int32_t)test_random_below((uint64_t)f->pool.plan->n_lanes);
    const int32_t slot = (int32_t)test_random_below(SLOTS);
    const int32_t from = (int32_t)test_random_below(BLOCKS);
    const int32_t other = (from + 1 + (int32_t)test_random_below(BLOCKS - 1)) % BLOCKS;
    struct step_move move = {.lane = lane, .from = from, .to = other};
    move.kind = (int32_t)test_random_below(3);
    if (move.kind == STEP_MOVE_IN && !written[lane * SLOTS + slot]) {
        move.kind = STEP_MOVE_OUT;
    }
    move.from = move.kind == STEP_MOVE_IN ? slot : from;
    move.to = move.kind == STEP_MOVE_OUT ? slot : other;
    written[lane * SLOTS + slot] = written[lane * SLOTS + slot] || move.kind == STEP_MOVE_OUT;
    assert_status_ok(step_plan_add_move(&f->step, &move));
    copy_on_host(f, lane, move.kind == STEP_MOVE_IN ? -1 - slot : from,
                 move.kind == STEP_MOVE_OUT ? -1 - slot : other);
}

/* Few blocks and many moves: most begin where another one ended. What is in slots shows when it is back. */
static void check_moves(struct fixture *f, bool *written)
{
    step_plan_clear(&f->step);
    const int32_t n = (int32_t)test_random_below(MOVES + 1);
    for (int32_t i = 0; i < n; i++) {
        add_move(f, written);
    }
    assert_status_ok(kv_moves_run(&f->moves, &f->step));
    check(f);
}

/* No slot is padded to the largest lane or layer: all take what so many blocks of every lane do, and what aligns planes. */
static void check_slot_bytes(const struct fixture *f, const struct plan *plan, int32_t rank,
                             int kv_dtype)
{
    const uint64_t want = (uint64_t)plan_kv_bytes(plan, rank, kv_dtype, SLOTS);
    const uint64_t padding = (uint64_t)plan->n_layers * PLANES * 64;
    assert_in_range(f->moves.host_bytes, want, want + padding);
}

static void check_rank(const struct plan *plan, int32_t rank, int kv_dtype)
{
    struct fixture f = {.backend = ahead_backend()};
    const struct stream_options options = {.n_threads = 1};
    assert_status_ok(f.backend->stream_new(&options, &f.stream));
    const struct kv_pool_request request = {
        .backend = f.backend,
        .stream = f.stream,
        .plan = plan,
        .rank = rank,
        .kv_dtype = kv_dtype,
        .blocks_per_lane = BLOCKS,
        .max_rows = 1,
        .max_steps = 1,
    };
    const struct step_limits limits = {.max_seqs = 1,
                                       .max_rows = 1,
                                       .max_blocks = 1,
                                       .max_logits = 1,
                                       .max_moves = MOVES,
                                       .n_lanes = plan->n_lanes,
                                       .blocks_per_lane = BLOCKS,
                                       .host_blocks_per_lane = SLOTS};
    assert_status_ok(kv_pool_init(&f.pool, &request));
    assert_status_ok(kv_moves_init(&f.moves, &f.pool, SLOTS));
    assert_status_ok(step_plan_init(&f.step, &limits));
    fill(&f);
    check_slot_bytes(&f, plan, rank, kv_dtype);
    bool *written = calloc((size_t)plan->n_lanes * SLOTS, sizeof *written);
    assert_non_null(written);
    for (int round = 0; round < 4; round++) {
        check_moves(&f, written);
    }
    free(written);
    for (int32_t i = 0; i < plan->n_layers * PLANES; i++) {
        free(f.want[i]);
        free(f.waiting[i]);
    }
    free(f.want);
    free(f.waiting);
    step_plan_destroy(&f.step);
    kv_moves_destroy(&f.moves);
    kv_pool_destroy(&f.pool);
    f.backend->stream_free(f.stream);
}

/* Heads of 8 or 16 columns, as bytes of any number are moved alike; stages cut the layers. */
static void check_model(int32_t tp, int placement)
{
    static const int dtypes[] = {DTYPE_BF16, DTYPE_I8, DTYPE_F32};
    const int n_dtypes = ahead_backend()->host_memory ? 3 : 2; // float32 is the CPU's alone
    struct model_spec spec = models_random(false);
    while (spec.n_heads < tp) {
        spec_destroy(&spec);
        spec = models_random(false);
    }
    spec.head_dim = (int32_t)(8 * (1 + test_random_below(2)));
    const int32_t working = models_working_layers(&spec);
    const struct plan_request request = {
        .tp = tp, .pp = working > 1 ? 2 : 1, .placement = placement};
    struct plan plan = models_plan_stages(&spec, &request);
    for (int32_t rank = 0; rank < plan_n_ranks(&plan); rank++) {
        check_rank(&plan, rank, dtypes[test_random_below((uint64_t)n_dtypes)]);
    }
    plan_destroy(&plan);
    spec_destroy(&spec);
}

static void test_kv_moves_move_what_the_rank_holds(void **state)
{
    (void)state;
    static const int32_t tps[] = {3, 1, 2, 5};
    const size_t n = ahead_backend()->host_memory ? 4 : 1; // the simulator is slow
    for (size_t i = 0; i < n; i++) {
        check_model(tps[i], PLAN_SHARE);
        check_model(tps[i], PLAN_REPLICATE);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_moves_move_what_the_rank_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

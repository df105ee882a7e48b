/*
 * test_engine_memory.c - what a rank allocates is what the plan says, and nothing is added while it computes
 *
 * The engine gets the CPU's backend with a count on everything that allocates. Under mpirun: in stages, and with ranks that
 * exchange queries.
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "parallel/plan_memory.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"

enum { N_SEQS = 8, MAX_ROWS = 80, N_ROUNDS = 40, SWAP_BYTES = 1 << 20 };

static const struct test_model_shape shape = {.n_hidden = 96,
                                              .n_heads = 8,
                                              .head_dim = 16,
                                              .n_vocab = 500,
                                              .n_layers = 4,
                                              .kv_heads = {4, 1, 8, 2},
                                              .n_ff = {192, 128, 320, 64},
                                              .max_positions = 128,
                                              .dtype = DTYPE_BF16,
                                              .seed = 3};

// ---- a backend that counts ----

static struct {
    int64_t n;      /* allocations */
    uint64_t bytes; /* of mem_alloc, host_alloc and matrices */
} counted;

static status_t count_alloc(struct backend_stream *stream, size_t size, void **ptr_out)
{
    counted.n++;
    counted.bytes += size;
    return backend_cpu()->mem_alloc(stream, size, ptr_out);
}

static status_t count_matrix(struct backend_stream *stream, int dtype, int32_t n_out, int32_t n_in,
                             struct matrix **matrix_out)
{
    counted.n++;
    counted.bytes += backend_cpu()->matrix_bytes(dtype, n_out, n_in);
    return backend_cpu()->matrix_new(stream, dtype, n_out, n_in, matrix_out);
}

static status_t count_plan(struct backend_stream *stream, const struct attention_shape *of,
                           struct attention_plan **plan_out)
{
    counted.n++;
    return backend_cpu()->attention_plan_new(stream, of, plan_out);
}

static const struct backend *counting_backend(void)
{
    static struct backend table;
    table = *backend_cpu();
    table.mem_alloc = count_alloc;
    table.host_alloc = count_alloc;
    table.matrix_new = count_matrix;
    table.attention_plan_new = count_plan;
    return &table;
}

// ---- the plan ----

static void check_against_plan(const struct engine_driver *driver, const struct test_model *model)
{
    const struct plan_memory_request request = {
        .plan = &driver->plan,
        .spec = &driver->spec,
        .dtype = DTYPE_F32,
        .kv_dtype = DTYPE_BF16,
        .embedding_dtype = model->shape.dtype,
        .max_seqs = driver->step.limits.max_seqs,
        .max_rows = MAX_ROWS,
        .max_model_len = 96,
        .blocks_per_lane = driver->step.limits.blocks_per_lane,
        .host_blocks_per_lane = driver->step.limits.host_blocks_per_lane,
        .max_steps = driver->plan.pp > 1 ? driver->plan.pp + 1 : 1,
    };
    struct plan_memory memory;
    plan_memory_of(&request, group_rank(driver->group), &memory);
    const uint64_t planned =
        memory.weights + memory.kv + memory.buffers + memory.comm + memory.swap;
    assert_true((memory.swap > 0) == (driver->plan.stripe == 1) && memory.swap <= SWAP_BYTES);
    assert_int_equal(engine_swap_bytes(driver->engine), memory.swap);
    print_message("rank %d of %d x %d: planned %llu, allocated %llu\n", group_rank(driver->group),
                  driver->plan.pp, driver->plan.tp, (unsigned long long)planned,
                  (unsigned long long)counted.bytes);
    assert_close(counted.bytes, planned, 0, 0.001); // the CPU keeps a few bytes beside a matrix
}

// ---- computing ----

struct batch {
    struct driver_seq seqs[N_SEQS];
    int32_t tokens[N_SEQS][64];
    float *logits;
};

static void batch_make(struct batch *batch, const struct engine_driver *driver)
{
    const size_t n_vocab = (size_t)driver->spec.n_vocab;
    batch->logits = calloc((size_t)N_SEQS * 64 * n_vocab, sizeof *batch->logits);
    assert_non_null(batch->logits);
    for (int32_t i = 0; i < N_SEQS; i++) {
        const int32_t n = 1 + (int32_t)(i * 23 + 5) % 60;
        for (int32_t t = 0; t < n; t++) {
            batch->tokens[i][t] = (i * 31 + t * 7) % driver->spec.n_vocab;
        }
        batch->seqs[i] = (struct driver_seq){
            .tokens = batch->tokens[i],
            .n_tokens = n,
            .lane = i * driver->plan.n_lanes / N_SEQS,
            .logits = batch->logits + (size_t)i * 64 * n_vocab,
        };
    }
}

static void check_layout(struct group *group, const struct test_model *model, const char *dir,
                         int32_t pp, int placement)
{
    struct engine_driver driver;
    struct batch batch;
    const struct driver_options options = {.placement = placement,
                                           .dtype = DTYPE_F32,
                                           .kv_dtype = DTYPE_BF16,
                                           .max_rows = MAX_ROWS,
                                           .max_steps = pp > 1 ? pp + 1 : 1,
                                           .pp = pp,
                                           .swap_bytes = placement == PLAN_TOKEN ? 0 : SWAP_BYTES,
                                           .backend = counting_backend()};
    memset(&counted, 0, sizeof counted);
    engine_driver_open(&driver, group, model, dir, &options);
    check_against_plan(&driver, model);
    const int64_t before = counted.n;
    batch_make(&batch, &driver);
    for (int32_t round = 0; round < N_ROUNDS; round++) {
        engine_driver_run(&driver, batch.seqs, N_SEQS, 1 + round * 7 % 64);
    }
    assert_int_equal(counted.n, before);
    free(batch.logits);
    engine_driver_close(&driver);
}

static void test_engine_memory_is_what_the_plan_says(void **state)
{
    struct group *group = engine_driver_group(state);
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    engine_driver_dir(group, dir);
    model_writer_make(&shape, &model);
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok())); // written
    for (int32_t pp = 1; pp <= group_size(group); pp++) {
        if (group_size(group) % pp == 0) {
            check_layout(group, &model, dir, pp, PLAN_SHARE);
            check_layout(group, &model, dir, pp, PLAN_REPLICATE);
        }
    }
    if (group_size(group) == 2) {
        check_layout(group, &model, dir, 1, PLAN_TOKEN);
    }
    engine_driver_dir_end(group, dir);
    model_writer_free(&model);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_memory_is_what_the_plan_says),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

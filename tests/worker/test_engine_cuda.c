/*
 * test_engine_cuda.c - the engine over the CUDA backend, on the simulator, against a float64 reference
 *
 * Every rank runs the same program, with 1 and with 2 ranks; with the argument "nccl" over the library of
 * tests/parallel/nccl_sim.c, where steps of several ranks are recorded too.
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend_plugin.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "tests/worker/reference_forward.h"

static const struct test_model_shape shapes[] = {
    // RMSNorm, KV heads that differ from layer to layer, sizes that are no multiple of 8.
    {.n_hidden = 100,
     .n_heads = 8,
     .head_dim = 64,
     .n_vocab = 61,
     .n_layers = 3,
     .kv_heads = {4, 1, 8},
     .n_ff = {100, 300, 64},
     .max_positions = 128,
     .dtype = DTYPE_BF16,
     .seed = 11},
    // LayerNorm with bias, a part of each head turned.
    {.n_hidden = 72,
     .n_heads = 4,
     .head_dim = 80,
     .n_vocab = 59,
     .n_layers = 2,
     .kv_heads = {4, 2},
     .n_ff = {90, 133},
     .max_positions = 128,
     .rotary_dim = 20,
     .dtype = DTYPE_BF16,
     .seed = 12},
    // A sliding window, tied head.
    {.n_hidden = 64,
     .n_heads = 4,
     .head_dim = 128,
     .n_vocab = 50,
     .n_layers = 2,
     .kv_heads = {2, 2},
     .n_ff = {96, 96},
     .max_positions = 128,
     .sliding_window = 11,
     .tied_head = true,
     .dtype = DTYPE_BF16,
     .seed = 13},
};

/* One KV head for two ranks, and small. */
static const struct test_model_shape split_shape = {.n_hidden = 32,
                                                    .n_heads = 4,
                                                    .head_dim = 32,
                                                    .n_vocab = 30,
                                                    .n_layers = 2,
                                                    .kv_heads = {1, 1},
                                                    .n_ff = {64, 64},
                                                    .max_positions = 128,
                                                    .dtype = DTYPE_BF16,
                                                    .seed = 14};

static int comm_choice = COMM_AUTO; /* main's */

/* An int8 cache with the first shapes and on one rank alone, NCCL with the first shape: the simulator takes its time, and kernels
 * and sums have tests of their own. */
enum {
    N_SHAPES = sizeof shapes / sizeof shapes[0],
    N_INT8_SHAPES = 2,
    N_SEQS = 4,
    MAX_TOKENS = 40
};

/* Of the largest logit: activations, weights and cache are rounded to bfloat16 some ten times a layer. With rows rounded to int8
 * the error is theirs. */
static const double tolerances[] = {
    [QUANTIZATION_NONE] = 0.04,
    [QUANTIZATION_INT8] = 0.07,
    [QUANTIZATION_W8A8] = 0.15,
};
static const double mean_tolerance = 0.02;

/* What differs between the runs of a shape. */
struct formats {
    int kv_dtype, quantization, determinism;
    int placement;
};

static const struct formats plain = {DTYPE_BF16, QUANTIZATION_NONE, ENGINE_DETERMINISM_DEFAULT,
                                     PLAN_REPLICATE};
static const struct formats int8_cache = {DTYPE_I8, QUANTIZATION_NONE, ENGINE_DETERMINISM_DEFAULT,
                                          PLAN_REPLICATE};

/* Sequences in lane order, with the reference's logits. */
struct batch {
    struct driver_seq seqs[N_SEQS];
    int32_t tokens[N_SEQS][MAX_TOKENS];
    double *want[N_SEQS];
    double tolerance; /* of the row's largest logit */
    double squares;   /* of errors in those terms */
    int32_t n_values;
};

static void batch_make(struct batch *batch, const struct engine_driver *driver,
                       const struct test_model *model, int kv_dtype)
{
    static const int32_t lengths[N_SEQS] = {1, 18, 7, 40};
    const int32_t n_vocab = driver->spec.n_vocab;
    // Keys and values that are off by bfloat16's rounding fall on other sides of ties than the reference's, and then an int8 is
    // another one: single logits were 0.11 away, all of them 0.009 in the mean square.
    batch->squares = 0.0;
    batch->n_values = 0;
    batch->tolerance = kv_dtype == DTYPE_I8 ? 0.15 : tolerances[QUANTIZATION_NONE];
    for (int32_t i = 0; i < N_SEQS; i++) {
        for (int32_t t = 0; t < lengths[i]; t++) {
            batch->tokens[i][t] = (t * t * 7 + t * 3 + i * 11 + 5) % n_vocab;
        }
        const size_t n = (size_t)lengths[i] * (size_t)n_vocab;
        batch->want[i] = calloc(n, sizeof(double));
        batch->seqs[i] = (struct driver_seq){
            .tokens = batch->tokens[i],
            .n_tokens = lengths[i],
            .lane = i * driver->plan.n_lanes / N_SEQS,
            .logits = calloc(n, sizeof(float)),
        };
        assert_non_null(batch->seqs[i].logits);
        assert_non_null(batch->want[i]);
        const struct reference_input input = {batch->tokens[i], lengths[i], kv_dtype};
        reference_forward(model, &input, batch->want[i]);
    }
}

static void batch_free(struct batch *batch)
{
    for (int32_t i = 0; i < N_SEQS; i++) {
        free(batch->seqs[i].logits);
        free(batch->want[i]);
    }
}

static void check_row(struct batch *batch, int32_t index, int32_t token, int32_t n_vocab)
{
    const struct driver_seq *const seq = &batch->seqs[index];
    const double *const want = batch->want[index];
    const size_t at = (size_t)token * (size_t)n_vocab;
    double largest = 0.0;
    for (int32_t v = 0; v < n_vocab; v++) {
        largest = fmax(largest, fabs(want[at + (size_t)v]));
    }
    for (int32_t v = 0; v < n_vocab; v++) {
        const double error = ((double)seq->logits[at + (size_t)v] - want[at + (size_t)v]) / largest;
        batch->squares += error * error;
        batch->n_values++;
        assert_close(seq->logits[at + (size_t)v], want[at + (size_t)v], batch->tolerance * largest,
                     0.0);
    }
}

/* Chunks of several tokens: the last token's logits, which every chunking computes. */
static void check_chunks(struct engine_driver *driver, struct batch *batch)
{
    for (int32_t chunk = 13; chunk <= MAX_TOKENS; chunk += 27) {
        engine_driver_run(driver, batch->seqs, N_SEQS, chunk);
        for (int32_t i = 0; group_rank(driver->group) == 0 && i < N_SEQS; i++) {
            check_row(batch, i, batch->seqs[i].n_tokens - 1, driver->spec.n_vocab);
        }
    }
}

/*
 * One token a step, as in decoding: on one rank steps are recorded from the second of a size on, and three sequences run as
 * the four that a recording is made for. Every token's logits are looked at.
 */
static void check_tokens(struct engine_driver *driver, struct batch *batch)
{
    engine_driver_run(driver, batch->seqs, N_SEQS, 1);
    for (int32_t i = 0; group_rank(driver->group) == 0 && i < N_SEQS; i++) {
        for (int32_t t = 0; t < batch->seqs[i].n_tokens; t++) {
            check_row(batch, i, t, driver->spec.n_vocab);
        }
    }
}

/* The last logits of each sequence by itself, then beside the others in chunks as before: the same bits. */
static void check_alone(struct engine_driver *driver, struct batch *batch)
{
    const size_t n_vocab = (size_t)driver->spec.n_vocab;
    float *alone = calloc(N_SEQS * n_vocab, sizeof *alone);
    assert_non_null(alone);
    for (int32_t i = 0; i < N_SEQS; i++) { // long enough for a second chunk
        batch->seqs[i].n_tokens = batch->seqs[i].n_tokens < 14 ? batch->seqs[i].n_tokens : 14;
    }
    for (int32_t chunk = 1; chunk <= 13; chunk += 12) {
        for (int32_t i = 0; i < N_SEQS; i++) {
            const struct driver_seq *seq = &batch->seqs[i];
            engine_driver_run(driver, &batch->seqs[i], 1, chunk);
            memcpy(alone + (size_t)i * n_vocab, seq->logits + (size_t)(seq->n_tokens - 1) * n_vocab,
                   n_vocab * sizeof *alone);
        }
        engine_driver_run(driver, batch->seqs, N_SEQS, chunk);
        for (int32_t i = 0; group_rank(driver->group) == 0 && i < N_SEQS; i++) {
            const struct driver_seq *seq = &batch->seqs[i];
            assert_memory_equal(seq->logits + (size_t)(seq->n_tokens - 1) * n_vocab,
                                alone + (size_t)i * n_vocab, n_vocab * sizeof *alone);
        }
    }
    free(alone);
}

/* In a chunk, then a token a step, with the same sequences in other lanes the second time: what was recorded for some lanes is not
 * run for others. */
static void check_lanes(struct engine_driver *driver, struct batch *batch)
{
    static const int32_t chunks[] = {13, 1, 1};
    const int n_rounds = driver->plan.n_lanes > 1 ? 3 : 2;
    for (int32_t i = 0; i < N_SEQS; i++) {
        batch->seqs[i].n_tokens = batch->seqs[i].n_tokens < 18 ? batch->seqs[i].n_tokens : 18;
    }
    for (int round = 0; round < n_rounds; round++) {
        for (int32_t i = 0; i < N_SEQS; i++) {
            batch->seqs[i].lane = driver->plan.n_lanes > 1 && i > round;
        }
        engine_driver_run(driver, batch->seqs, N_SEQS, chunks[round]);
        for (int32_t i = 0; group_rank(driver->group) == 0 && i < N_SEQS; i++) {
            check_row(batch, i, batch->seqs[i].n_tokens - 1, driver->spec.n_vocab);
        }
    }
}

typedef void check_fn(struct engine_driver *driver, struct batch *batch);

static void check_shape(struct group *group, const struct test_model_shape *shape, check_fn *check,
                        const struct formats *formats)
{
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    struct engine_driver driver;
    struct batch batch;
    engine_driver_dir(group, dir);
    model_writer_make(shape, &model);
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok())); // written
    if (formats->quantization != QUANTIZATION_NONE) {
        model_writer_round(&model);
    }
    const struct driver_options options = {.placement = formats->placement,
                                           .dtype = DTYPE_BF16,
                                           .kv_dtype = formats->kv_dtype,
                                           .quantization = formats->quantization,
                                           // Batches for check_alone are not cut.
                                           .max_rows = check == check_alone ? 64 : 48,
                                           .determinism = formats->determinism,
                                           .comm_choice = comm_choice,
                                           .all_logits = true,
                                           .backend = kvasir_cuda_backend(BACKEND_ABI)};
    engine_driver_open(&driver, group, &model, dir, &options);
    batch_make(&batch, &driver, &model, formats->kv_dtype);
    if (formats->quantization != QUANTIZATION_NONE) {
        batch.tolerance = tolerances[formats->quantization];
    }
    check(&driver, &batch);
    const bool compares = group_rank(group) == 0 && check != check_alone;
    if (compares && formats->quantization == QUANTIZATION_NONE) {
        assert_true(batch.n_values > 0);
        assert_true(sqrt(batch.squares / batch.n_values) <= mean_tolerance);
    }
    batch_free(&batch);
    engine_driver_close(&driver);
    engine_driver_dir_end(group, dir);
    model_writer_free(&model);
}

static void test_engine_cuda_matches_float64(void **state)
{
    struct group *group = engine_driver_group(state);
    for (int32_t i = 0; i < N_SHAPES; i++) {
        check_shape(group, &shapes[i], check_chunks, &plain);
        if (i < N_INT8_SHAPES && group_size(group) == 1) {
            check_shape(group, &shapes[i], check_chunks, &int8_cache);
        }
    }
}

static void test_engine_cuda_records_steps_of_one_token(void **state)
{
    struct group *group = engine_driver_group(state);
    for (int32_t i = 0; i < N_SHAPES; i++) {
        check_shape(group, &shapes[i], check_tokens, &plain);
        if (i < N_INT8_SHAPES && group_size(group) == 1) {
            check_shape(group, &shapes[i], check_tokens, &int8_cache);
        }
    }
}

static void test_engine_cuda_batch_determinism(void **state)
{
    const struct formats formats = {DTYPE_BF16, QUANTIZATION_NONE, ENGINE_DETERMINISM_BATCH,
                                    PLAN_REPLICATE};
    check_shape(engine_driver_group(state), &shapes[0], check_alone, &formats);
}

/* Of two ranks that share a KV head each has all of some sequences, or some blocks of each, or none. */
static void test_engine_cuda_shares_a_head(void **state)
{
    struct group *group = engine_driver_group(state);
    struct formats formats = plain;
    if (group_size(group) == 1) {
        return;
    }
    formats.placement = PLAN_TOKEN;
    check_shape(group, &split_shape, check_lanes, &formats);
    if (comm_choice == COMM_NCCL) { // where steps are recorded
        formats.placement = PLAN_SHARE;
        check_shape(group, &split_shape, check_lanes, &formats);
    }
}

static void test_engine_cuda_takes_int8_weights(void **state)
{
    struct group *group = engine_driver_group(state);
    const struct formats int8 = {DTYPE_BF16, QUANTIZATION_INT8, ENGINE_DETERMINISM_DEFAULT,
                                 PLAN_REPLICATE};
    const struct formats w8a8 = {DTYPE_BF16, QUANTIZATION_W8A8, ENGINE_DETERMINISM_DEFAULT,
                                 PLAN_REPLICATE};
    check_shape(group, &shapes[0], check_chunks, &int8);
    check_shape(group, &shapes[0], check_tokens, &w8a8);
}

static void test_engine_cuda_over_nccl(void **state)
{
    struct group *group = engine_driver_group(state);
    check_shape(group, &shapes[0], check_chunks, &plain);
    check_shape(group, &shapes[0], check_tokens, &plain);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest nccl_tests[] = {
        cmocka_unit_test(test_engine_cuda_over_nccl),
        cmocka_unit_test(test_engine_cuda_shares_a_head),
    };
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_cuda_batch_determinism),
        cmocka_unit_test(test_engine_cuda_matches_float64),
        cmocka_unit_test(test_engine_cuda_records_steps_of_one_token),
        cmocka_unit_test(test_engine_cuda_shares_a_head),
        cmocka_unit_test(test_engine_cuda_takes_int8_weights),
    };
    if (argc > 1 && strcmp(argv[1], "nccl") == 0) {
        comm_choice = COMM_NCCL;
        return engine_driver_main(nccl_tests, sizeof nccl_tests / sizeof nccl_tests[0]);
    }
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

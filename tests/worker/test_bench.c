/*
 * test_bench.c - what kvasir-worker --bench measures: log probabilities against float64, and what a trace counts
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/worker/engine_driver.h"
#include "tests/worker/reference_forward.h"
#include "worker/bench_perplexity.h"
#include "worker/bench_speed.h"
#include "worker/worker_config.h"

enum { N_TOKENS = 75 };

static const struct test_model_shape shape = {
    .n_hidden = 48,
    .n_heads = 8,
    .head_dim = 6,
    .n_vocab = 67,
    .n_layers = 3,
    .kv_heads = {4, 1, 2},
    .n_ff = {128, 128, 128},
    .max_positions = 96,
    .dtype = DTYPE_F32,
    .seed = 31,
};

struct fixture {
    struct group *group;
    struct test_model model;
    char dir[TEST_PATH_BYTES];
    struct bench_config config;
    struct bench_session_request request;
    bool broken;
};

static void open_fixture(struct fixture *f, void **state)
{
    memset(f, 0, sizeof *f);
    f->group = engine_driver_group(state);
    model_writer_make(&shape, &f->model);
    engine_driver_dir(f->group, f->dir);
    if (group_rank(f->group) == 0) {
        model_writer_write(&f->model, f->dir, NULL);
    }
    assert_status_ok(group_agree(f->group, status_ok()));
    f->config = (struct bench_config){
        .device = WORKER_DEVICE_CPU,
        .dtype = DTYPE_WANTED_F32,
        .kv_dtype = DTYPE_WANTED_F32,
        .batch = "3",
        .prompt = 20,
        .generate = 5,
        .max_num_batched_tokens = 16,
        .threads = 1,
        .gpu_memory_utilization = 0.9,
    };
    f->request = (struct bench_session_request){.group = f->group,
                                                .config = &f->config,
                                                .model_dir = f->dir,
                                                .log = {.fd = -1},
                                                .broken = &f->broken};
}

static void close_fixture(struct fixture *f)
{
    assert_false(f->broken);
    engine_driver_dir_end(f->group, f->dir);
    model_writer_free(&f->model);
}

// ---- perplexity ----

/* -log p of tokens [score, end) where the model sees [begin, end) alone. */
static double reference_nll(const struct test_model *model, const int32_t *ids, int64_t begin,
                            int64_t score, int64_t end)
{
    const int32_t n = (int32_t)(end - begin), n_vocab = model->shape.n_vocab;
    double *logits = calloc((size_t)n * (size_t)n_vocab, sizeof *logits);
    assert_non_null(logits);
    const struct reference_input input = {.tokens = ids + begin, .n_tokens = n};
    reference_forward(model, &input, logits);
    double nll = 0;
    for (int64_t at = score; at < end; at++) {
        const double *row = logits + (at - 1 - begin) * n_vocab;
        double sum = 0;
        for (int32_t i = 0; i < n_vocab; i++) {
            sum += exp(row[i]);
        }
        nll += log(sum) - row[ids[at]];
    }
    free(logits);
    return nll;
}

static void check_perplexity(struct fixture *f, const int32_t *ids, int32_t context, int32_t stride)
{
    struct bench_perplexity_result result = {.nll = NAN};
    f->config.context = context;
    f->config.stride = stride;
    assert_status_ok(bench_perplexity_run(&f->request, ids, N_TOKENS, &result));
    if (group_rank(f->group) != 0) {
        return;
    }
    double want = 0;
    int64_t n_scored = 0, scored = 1;
    for (int64_t begin = 0; scored < N_TOKENS; begin += stride) {
        const int64_t end = begin + context < N_TOKENS ? begin + context : N_TOKENS;
        const int64_t score = scored > begin + 1 ? scored : begin + 1;
        want += reference_nll(&f->model, ids, begin, score, end);
        n_scored += end - score;
        scored = end;
    }
    assert_int_equal(result.n_scored, n_scored);
    assert_close(result.nll, want, 1e-3, 1e-5);
}

static void test_bench_perplexity_is_the_references(void **state)
{
    struct fixture f;
    int32_t ids[N_TOKENS];
    open_fixture(&f, state);
    for (int32_t i = 0; i < N_TOKENS; i++) {
        ids[i] = (int32_t)test_random_below((uint64_t)shape.n_vocab);
    }
    check_perplexity(&f, ids, 96, 96); // one window
    check_perplexity(&f, ids, 17, 17);
    check_perplexity(&f, ids, 33, 8); // each token but the first is scored once
    close_fixture(&f);
}

static void test_bench_perplexity_refuses(void **state)
{
    struct fixture f;
    int32_t ids[N_TOKENS] = {0};
    struct bench_perplexity_result result;
    open_fixture(&f, state);
    f.config.context = 97;
    assert_status_says(bench_perplexity_run(&f.request, ids, N_TOKENS, &result),
                       STATUS_INVALID_ARGUMENT, "--context 97");
    f.config.context = 20;
    f.config.stride = 21;
    assert_status_says(bench_perplexity_run(&f.request, ids, N_TOKENS, &result),
                       STATUS_INVALID_ARGUMENT, "--stride 21");
    f.config.stride = 0;
    assert_status_says(bench_perplexity_run(&f.request, ids, 1, &result), STATUS_INVALID_ARGUMENT,
                       "nothing to predict");
    ids[3] = shape.n_vocab;
    assert_status_says(bench_perplexity_run(&f.request, ids, N_TOKENS, &result),
                       STATUS_INVALID_ARGUMENT, "token 3 is 67");
    close_fixture(&f);
}

// ---- speed and trace ----

struct seen {
    int n;
    double matmul_flops, attention_flops, op_s, decode_s;
    uint64_t sample_calls;
    struct bench_speed_result last;
};

static void see(void *user, const struct bench_session *session,
                const struct bench_speed_result *result)
{
    struct seen *seen = user;
    (void)session;
    seen->n++;
    seen->last = *result;
    seen->decode_s = result->decode_s;
    for (int32_t i = 0; i < result->n_ops; i++) {
        const struct bench_trace_op *op = &result->ops[i];
        seen->op_s += (double)op->ns * 1e-9;
        seen->matmul_flops += strncmp(op->name, "matmul", 6) == 0 ? op->flops : 0;
        seen->attention_flops += strcmp(op->name, "attention") == 0 ? op->flops : 0;
        seen->sample_calls += strcmp(op->name, "sample") == 0 ? op->n_calls : 0;
    }
}

/* Flops of the decode steps, by hand: 5 steps of 3 rows. */
static void check_trace(const struct seen *seen)
{
    double weights = (double)shape.n_vocab * shape.n_hidden, pairs = 0;
    for (int32_t i = 0; i < shape.n_layers; i++) {
        weights += 2.0 * shape.n_hidden * (shape.n_heads + shape.kv_heads[i]) * shape.head_dim;
        weights += 3.0 * shape.n_hidden * shape.n_ff[i];
    }
    for (int32_t step = 0; step < 5; step++) {
        pairs += 3.0 * (20 + step + 1);
    }
    assert_close(seen->matmul_flops, 2 * weights * 3 * 5, 0, 1e-12);
    assert_close(seen->attention_flops,
                 4.0 * shape.n_layers * shape.n_heads * shape.head_dim * pairs, 0, 1e-12);
    assert_int_equal(seen->sample_calls, 5);
    assert_true(seen->op_s > 0 && seen->op_s <= seen->decode_s);
}

static void test_bench_speed_counts_what_it_does(void **state)
{
    struct fixture f;
    struct seen seen = {0};
    open_fixture(&f, state);
    f.config.batch = "1,3";
    f.config.steps_ahead = 2;
    assert_status_ok(bench_speed_run(&f.request, see, &seen));
    assert_int_equal(seen.n, group_rank(f.group) == 0 ? 2 : 0);
    if (seen.n > 0) {
        assert_int_equal(seen.last.batch, 3);
        assert_true(seen.last.prefill_s > 0 && seen.last.median_step_s > 0);
        assert_true(seen.last.p99_step_s >= seen.last.median_step_s);
        assert_true(seen.last.peak_bytes > seen.last.weight_bytes && seen.last.kv_bytes > 0);
        assert_null(seen.last.ops);
        assert_close(seen.last.floor.copy_bytes_s, 0, 0, 0);
    }
    close_fixture(&f);
}

static void test_bench_trace_counts_flops(void **state)
{
    struct fixture f;
    struct seen seen = {0};
    open_fixture(&f, state);
    f.config.trace = true;
    f.config.floor = true;
    assert_status_ok(bench_speed_run(&f.request, see, &seen));
    if (group_rank(f.group) == 0) {
        assert_int_equal(seen.n, 1);
        assert_true(seen.last.floor.copy_bytes_s > 0 && seen.last.floor.matmul_flops_s > 0);
        if (group_size(f.group) == 1) {
            check_trace(&seen);
        }
    }
    close_fixture(&f);
}

static void test_bench_speed_refuses(void **state)
{
    struct fixture f;
    struct seen seen = {0};
    open_fixture(&f, state);
    static const char *const batches[] = {"0", "", "1,,2", "1,x", "9999", "1 2"};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) {
        f.config.batch = batches[i];
        assert_status_says(bench_speed_run(&f.request, see, &seen), STATUS_INVALID_ARGUMENT,
                           "--batch");
    }
    f.config.batch = "1";
    f.config.prompt = 92; // 92 + 5 > 96
    assert_status_says(bench_speed_run(&f.request, see, &seen), STATUS_INVALID_ARGUMENT,
                       "96 positions");
    assert_int_equal(seen.n, 0);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_perplexity_is_the_references),
        cmocka_unit_test(test_bench_perplexity_refuses),
        cmocka_unit_test(test_bench_speed_counts_what_it_does),
        cmocka_unit_test(test_bench_trace_counts_flops),
        cmocka_unit_test(test_bench_speed_refuses),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

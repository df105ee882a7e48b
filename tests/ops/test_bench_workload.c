/*
 * test_bench_workload.c - prompts, lengths and arrivals of a load test: exact, of the distribution asked for, and the same
 * for the same seed
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/stats.h"
#include "ops/bench_workload.h"

enum { MANY = 20000 };

static struct bench_workload_options options_of(size_t n)
{
    static const uint32_t eos[] = {2, 7};
    return (struct bench_workload_options){
        .n_prompts = n,
        .input_len = 40,
        .output_len = 20,
        .sigma = 0.5,
        .seed = test_random_u64(),
        .vocab_size = 97,
        .context_length = 4096,
        .eos_ids = eos,
        .n_eos_ids = 2,
    };
}

static void assert_same(const struct bench_workload *a, const struct bench_workload *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(a->prompts[i].n, b->prompts[i].n);
        assert_int_equal(a->prompts[i].output_len, b->prompts[i].output_len);
        assert_memory_equal(a->prompts[i].ids, b->prompts[i].ids,
                            a->prompts[i].n * sizeof(uint32_t));
        assert_close(a->prompts[i].arrival_s, b->prompts[i].arrival_s, 0, 0);
    }
}

static void test_bench_workload_lengths_are_exact(void **state)
{
    (void)state;
    struct bench_workload w;
    struct bench_workload_options o = options_of(50);
    o.shared_prefix_len = 13;
    assert_status_ok(bench_workload_make(&o, &w));
    assert_int_equal(w.n, 50);
    bool apart = false;
    for (size_t i = 0; i < w.n; i++) {
        assert_int_equal(w.prompts[i].n, 53);
        assert_int_equal(w.prompts[i].output_len, 20);
        assert_memory_equal(w.prompts[i].ids, w.prompts[0].ids, 13 * sizeof(uint32_t));
        apart = apart ||
                memcmp(w.prompts[i].ids + 13, w.prompts[0].ids + 13, 40 * sizeof(uint32_t)) != 0;
        for (size_t k = 0; k < w.prompts[i].n; k++) {
            assert_true(w.prompts[i].ids[k] < 97);
            assert_true(w.prompts[i].ids[k] != 2 && w.prompts[i].ids[k] != 7);
        }
        assert_close(w.prompts[i].arrival_s, 0, 0, 0);
    }
    assert_true(apart);
    bench_workload_destroy(&w);
}

static void test_bench_workload_is_its_seed(void **state)
{
    (void)state;
    struct bench_workload a, b, other;
    struct bench_workload_options o = options_of(200);
    o.request_rate = 10;
    o.lengths = BENCH_LENGTHS_LOGNORMAL;
    assert_status_ok(bench_workload_make(&o, &a));
    o.n_prompts = 120; // how many there are changes none of them
    assert_status_ok(bench_workload_make(&o, &b));
    assert_same(&a, &b, 120);
    o.seed++;
    assert_status_ok(bench_workload_make(&o, &other));
    assert_true(fabs(other.prompts[119].arrival_s - a.prompts[119].arrival_s) > 0);
    bench_workload_destroy(&a);
    bench_workload_destroy(&b);
    bench_workload_destroy(&other);
}

/* Gaps of a Poisson process: independent, exponential. Mean within 5 of its own deviations, Kolmogorov-Smirnov at 1e-6. */
static void test_bench_workload_arrivals_are_poisson(void **state)
{
    (void)state;
    struct bench_workload w;
    struct bench_workload_options o = options_of(MANY + 1);
    o.request_rate = 25;
    o.input_len = 1;
    assert_status_ok(bench_workload_make(&o, &w));
    double *gaps = calloc(MANY, sizeof *gaps);
    assert_non_null(gaps);
    double sum = 0, products = 0;
    assert_close(w.prompts[0].arrival_s, 0, 0, 0);
    for (int i = 0; i < MANY; i++) {
        gaps[i] = w.prompts[i + 1].arrival_s - w.prompts[i].arrival_s;
        assert_true(gaps[i] >= 0);
        sum += gaps[i];
        products += i > 0 ? (gaps[i] - 0.04) * (gaps[i - 1] - 0.04) : 0;
    }
    assert_close(sum / MANY, 0.04, 5 * 0.04 / sqrt(MANY), 0);
    assert_close(products / MANY / (0.04 * 0.04), 0, 5 / sqrt(MANY), 0); // neighbours
    stats_sort(gaps, MANY);
    double most = 0;
    for (int i = 0; i < MANY; i++) {
        const double below = 1 - exp(-25 * gaps[i]);
        most = fmax(most, fmax(below - (double)i / MANY, (double)(i + 1) / MANY - below));
    }
    assert_true(most < 2.7 / sqrt(MANY));
    free(gaps);
    bench_workload_destroy(&w);
}

static void test_bench_workload_lognormal_has_mean_and_sigma(void **state)
{
    (void)state;
    struct bench_workload w;
    struct bench_workload_options o = options_of(MANY);
    o.lengths = BENCH_LENGTHS_LOGNORMAL;
    o.input_len = 200;
    o.output_len = 300;
    o.sigma = 0.4;
    o.context_length = 1 << 20;
    assert_status_ok(bench_workload_make(&o, &w));
    double sums[2] = {0}, logs[2] = {0}, squares[2] = {0};
    for (size_t i = 0; i < MANY; i++) {
        const double lengths[] = {(double)w.prompts[i].n, (double)w.prompts[i].output_len};
        for (int k = 0; k < 2; k++) {
            sums[k] += lengths[k];
            logs[k] += log(lengths[k]);
            squares[k] += log(lengths[k]) * log(lengths[k]);
        }
    }
    const double means[] = {200, 300};
    for (int k = 0; k < 2; k++) {
        const double mean_log = logs[k] / MANY;
        // The deviation of a lognormal is mean * sqrt(exp(sigma^2) - 1) = 0.417 of the mean.
        assert_close(sums[k] / MANY, means[k], 0, 5 * 0.417 / sqrt(MANY));
        assert_close(sqrt(squares[k] / MANY - mean_log * mean_log), 0.4, 0, 5 / sqrt(2.0 * MANY));
    }
    bench_workload_destroy(&w);
}

static void test_bench_workload_cuts_to_the_context(void **state)
{
    (void)state;
    struct bench_workload w;
    struct bench_workload_options o = options_of(2000);
    o.lengths = BENCH_LENGTHS_LOGNORMAL;
    o.sigma = 2;
    o.context_length = 80;
    o.shared_prefix_len = 10;
    assert_status_ok(bench_workload_make(&o, &w));
    for (size_t i = 0; i < w.n; i++) {
        assert_true(w.prompts[i].n > 10 && w.prompts[i].output_len >= 1);
        assert_true(w.prompts[i].n + w.prompts[i].output_len <= 80);
    }
    bench_workload_destroy(&w);
    o.input_len = 70;
    assert_status_says(bench_workload_make(&o, &w), STATUS_INVALID_ARGUMENT, "context is 80");
}

// ---- files ----

static struct bench_workload_options file_of(const char *path, const char *text)
{
    struct bench_workload_options o = options_of(0);
    test_write_file(path, text, strlen(text));
    o.dataset = path;
    return o;
}

static void test_bench_workload_reads_a_file(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES + 16];
    struct bench_workload w;
    test_tmpdir(dir);
    snprintf(path, sizeof path, "%s/prompts", dir);
    struct bench_workload_options o =
        file_of(path, "{\"prompt\": \"Once upon\", \"output_len\": 7}\n \n"
                      "{\"prompt\": [5, 6, 7]}\n{\"prompt\": \"x\", \"output_len\": 1}");
    assert_status_ok(bench_workload_make(&o, &w));
    assert_int_equal(w.n, 3);
    assert_string_equal(w.prompts[0].text, "Once upon");
    assert_int_equal(w.prompts[0].n, 9);
    assert_int_equal(w.prompts[0].output_len, 7);
    assert_null(w.prompts[1].text);
    assert_int_equal(w.prompts[1].n, 3);
    assert_int_equal(w.prompts[1].ids[2], 7);
    assert_int_equal(w.prompts[1].output_len, 20);
    bench_workload_destroy(&w);
    o.n_prompts = 2;
    assert_status_ok(bench_workload_make(&o, &w));
    assert_int_equal(w.n, 2);
    bench_workload_destroy(&w);
    test_tmpdir_remove(dir);
}

static void test_bench_workload_names_the_bad_line(void **state)
{
    (void)state;

    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "no prompt"},
        {"{\"prompt\": \"a\"}\n{\"prompt\"", ":2: "},
        {"{\"prompt\": 3}", "neither text nor"},
        {"{\"prompt\": \"a\", \"output_len\": 0}", "output_len"},
        {"{\"prompt\": [1, -2]}", "element 1 is no token id"},
        {"{\"prompt\": [1, 4294967296]}", "element 1 is no token id"},
        {"{\"output_len\": 3}", "prompt"},
    };

    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES + 16];
    struct bench_workload w;
    test_tmpdir(dir);
    snprintf(path, sizeof path, "%s/prompts", dir);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct bench_workload_options o = file_of(path, cases[i].text);
        assert_status_says(bench_workload_make(&o, &w), STATUS_DATA_LOSS, cases[i].words);
    }
    test_tmpdir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bench_workload_lengths_are_exact),
        cmocka_unit_test(test_bench_workload_is_its_seed),
        cmocka_unit_test(test_bench_workload_arrivals_are_poisson),
        cmocka_unit_test(test_bench_workload_lognormal_has_mean_and_sigma),
        cmocka_unit_test(test_bench_workload_cuts_to_the_context),
        cmocka_unit_test(test_bench_workload_reads_a_file),
        cmocka_unit_test(test_bench_workload_names_the_bad_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

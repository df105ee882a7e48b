#include "tests/kernels/kernel_check.h"

#include <math.h>

#include "base/philox.h"

enum { N_ROWS = 37, N_COLUMNS = 331 };

static const struct random_args whole = {
    .seed = 0x123456789ABCDEFu,
    .tensor = 0xFEDCBA9876543210u,
    .n_rows = N_ROWS,
    .n_columns = N_COLUMNS,
    .deviation = 0.02,
};

/* From the definition: column 16 w + b of a group of 64 is word w of block b. */
static double reference(const struct random_args *a, int32_t row, int32_t column)
{
    const uint32_t counter[4] = {(uint32_t)(column / 64 * 16 + column % 16), (uint32_t)row,
                                 (uint32_t)a->tensor, (uint32_t)(a->tensor >> 32)};
    const uint32_t key[2] = {(uint32_t)a->seed, (uint32_t)(a->seed >> 32)};
    uint32_t words[4];
    philox_4x32(counter, key, words);
    const uint32_t word = words[column % 64 / 16];
    const int sum = (int)((word & 0xFF) + (word >> 8 & 0xFF) + (word >> 16 & 0xFF) + (word >> 24));
    return (sum - 510) * a->deviation / sqrt(4 * (65536.0 - 1) / 12);
}

static void check_whole(struct backend_stream *stream)
{
    float *out = guarded_new((size_t)N_ROWS * N_COLUMNS);
    struct random_args args = whole;
    args.out = out;
    assert_status_ok(cpu_random(stream, &args));
    for (int32_t i = 0; i < N_ROWS * N_COLUMNS; i++) {
        const double want = reference(&args, i / N_COLUMNS, i % N_COLUMNS);
        assert_true(fabs((double)out[i] - want) <= 1e-6 * fabs(want));
    }
    guarded_free(out);
}

static void test_random_is_philox_by_row_and_column(void **state)
{
    (void)state;
    each_stream(check_whole);
}

/* A rectangle holds, to the bit, what the whole holds there. */
static void check_rectangles(struct backend_stream *stream)
{
    float *all = guarded_new((size_t)N_ROWS * N_COLUMNS);
    struct backend_stream *other = stream_of("portable", 1);
    struct random_args args = whole;
    args.out = all;
    assert_status_ok(cpu_random(other, &args));
    stream_done(other);
    for (int round = 0; round < 40; round++) {
        args.row_begin = (int32_t)test_random_below(N_ROWS);
        args.column_begin = (int32_t)test_random_below(N_COLUMNS);
        args.n_rows = (int32_t)test_random_below((uint64_t)N_ROWS - (uint64_t)args.row_begin + 1);
        args.n_columns =
            (int32_t)test_random_below((uint64_t)N_COLUMNS - (uint64_t)args.column_begin + 1);
        args.out = guarded_new((size_t)args.n_rows * (size_t)args.n_columns);
        assert_status_ok(cpu_random(stream, &args));
        for (int32_t i = 0; i < args.n_rows; i++) {
            const float *want = all + (int64_t)(args.row_begin + i) * N_COLUMNS + args.column_begin;
            assert_same_bits(args.out + (int64_t)i * args.n_columns, want, (size_t)args.n_columns,
                             "rectangle");
        }
        guarded_free(args.out);
    }
    guarded_free(all);
}

static void test_random_gives_an_element_the_same_bits_in_any_rectangle(void **state)
{
    (void)state;
    each_stream(check_rectangles);
}

static void test_random_is_nearly_normal(void **state)
{
    (void)state;

    enum { N = 1 << 20 };

    float *out = guarded_new(N);
    struct backend_stream *stream = stream_of("auto", 2);
    const struct random_args args = {.seed = test_random_below(1u << 30),
                                     .tensor = 7,
                                     .n_rows = 1024,
                                     .n_columns = N / 1024,
                                     .deviation = 0.02,
                                     .out = out};
    assert_status_ok(cpu_random(stream, &args));
    double sum = 0, squares = 0, neighbours = 0, within = 0;
    for (int i = 0; i < N; i++) {
        const double x = (double)out[i] / 0.02;
        sum += x;
        squares += x * x;
        neighbours += x * (i > 0 ? (double)out[i - 1] / 0.02 : 0.0);
        within += fabs(x) < 1.0 ? 1.0 : 0.0;
        assert_true(fabs(x) <= 3.46);
    }
    assert_true(fabs(sum / N) < 6e-3); // six deviations of a mean
    assert_true(fabs(squares / N - 1.0) < 8e-3);
    assert_true(fabs(neighbours / N) < 6e-3);
    assert_true(fabs(within / N - 0.6827) < 0.02); // a normal's share within one deviation
    stream_done(stream);
    guarded_free(out);
}

static void test_random_depends_on_seed_and_tensor(void **state)
{
    (void)state;
    float out[3][N_COLUMNS];
    struct backend_stream *stream = stream_of("auto", 1);
    struct random_args args = whole;
    args.n_rows = 1;
    for (int i = 0; i < 3; i++) {
        args.seed = whole.seed + (i == 1 ? 1u : 0u);
        args.tensor = whole.tensor + (i == 2 ? 1u : 0u);
        args.out = out[i];
        assert_status_ok(cpu_random(stream, &args));
    }
    for (int i = 1; i < 3; i++) {
        int n_same = 0;
        for (int c = 0; c < N_COLUMNS; c++) {
            n_same += out[0][c] == out[i][c] ? 1 : 0;
        }
        assert_true(n_same < N_COLUMNS / 20);
    }
    args.row_begin = INT32_MAX;
    assert_status_code(cpu_random(stream, &args), STATUS_INVALID_ARGUMENT);
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_is_philox_by_row_and_column),
        cmocka_unit_test(test_random_gives_an_element_the_same_bits_in_any_rectangle),
        cmocka_unit_test(test_random_is_nearly_normal),
        cmocka_unit_test(test_random_depends_on_seed_and_tensor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

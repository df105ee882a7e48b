#include "tests/kernels/kernel_check.h"

#include <math.h>

/* One call and what it is told. */
struct inputs {
    int kind;
    int32_t n_rows, n_columns;
    float *x, *delta, *weight, *bias;
};

static void run(struct backend_stream *stream, const struct inputs *in, float *x,
                const float *delta, float *out)
{
    const struct add_norm_args args = {.x = x,
                                       .delta = delta,
                                       .n_rows = in->n_rows,
                                       .n_columns = in->n_columns,
                                       .kind = in->kind,
                                       .weight = in->weight,
                                       .bias = in->kind == NORM_LAYER ? in->bias : NULL,
                                       .eps = 1e-5f,
                                       .out = out};
    assert_status_ok(cpu_add_norm(stream, &args));
}

static void reference(const struct inputs *in, const float *x, double *want)
{
    const int32_t n = in->n_columns;
    double mean = 0.0;
    double sum = 0.0;
    for (int32_t i = 0; i < n && in->kind == NORM_LAYER; i++) {
        mean += (double)x[i] / (double)n;
    }
    for (int32_t i = 0; i < n; i++) {
        sum += ((double)x[i] - mean) * ((double)x[i] - mean);
    }
    const double scale = 1.0 / sqrt(sum / (double)n + (double)1e-5f);
    for (int32_t i = 0; i < n; i++) {
        const double bias = in->kind == NORM_LAYER ? (double)in->bias[i] : 0.0;
        want[i] = ((double)x[i] - mean) * scale * (double)in->weight[i] + bias;
    }
}

static struct inputs inputs_new(int kind, int32_t n_rows, int32_t n_columns)
{
    const size_t columns = (size_t)n_columns, n = (size_t)n_rows * columns;
    struct inputs in = {.kind = kind, .n_rows = n_rows, .n_columns = n_columns};
    in.x = random_new(n, n_rows == 1 ? 1e-3 : 30.0);
    in.delta = random_new(n, 1.0);
    in.weight = random_new(columns, 2.0);
    in.bias = random_new(columns, 1.0);
    for (size_t i = 0; kind == NORM_LAYER && n_rows == 2 && i < n; i++) {
        in.x[i] += 100.0f; // far from zero: squares less the squared mean would cancel
    }
    return in;
}

static void inputs_free(const struct inputs *in)
{
    guarded_free(in->x);
    guarded_free(in->delta);
    guarded_free(in->weight);
    guarded_free(in->bias);
}

/* Both halves, each half, and each row alone. */
static void check_case(struct backend_stream *stream, const struct inputs *in)
{
    const enum tolerance_of tolerance =
        in->kind == NORM_LAYER ? TOLERANCE_LAYERNORM : TOLERANCE_RMSNORM;
    const size_t columns = (size_t)in->n_columns, n = (size_t)in->n_rows * columns;
    double want[4096];
    float *x = guarded_new(n), *sum = guarded_new(n), *out = guarded_new(n),
          *other = guarded_new(n);
    memcpy(x, in->x, n * sizeof *x);
    for (size_t i = 0; i < n; i++) {
        sum[i] = in->x[i] + in->delta[i];
    }
    run(stream, in, x, in->delta, out);
    assert_same_bits(x, sum, n, "the sum is exact");
    for (int32_t row = 0; row < in->n_rows; row++) {
        const size_t at = (size_t)row * columns;
        reference(in, sum + at, want);
        assert_all_close(out + at, want, columns, kernel_tolerance(tolerance), "norm");
        struct inputs alone = *in;
        alone.n_rows = 1;
        run(stream, &alone, x + at, NULL, other + at);
    }
    assert_same_bits(other, out, n, "rows alone, without a sum");
    memcpy(x, in->x, n * sizeof *x);
    run(stream, in, x, in->delta, NULL);
    assert_same_bits(x, sum, n, "without a norm");
    guarded_free(x);
    guarded_free(sum);
    guarded_free(out);
    guarded_free(other);
}

static void check_sizes(struct backend_stream *stream)
{
    static const int32_t columns[] = {1, 3, 8, 15, 16, 17, 31, 64, 577, 4096};
    static const int32_t rows[] = {0, 1, 2, 7, 33};
    static const int kinds[] = {NORM_RMS, NORM_LAYER};
    for (size_t k = 0; k < 2; k++) {
        for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
                const struct inputs in = inputs_new(kinds[k], rows[r], columns[c]);
                check_case(stream, &in);
                inputs_free(&in);
            }
        }
    }
}

static void test_add_norm_matches_float64_whole_and_by_halves(void **state)
{
    (void)state;
    each_stream(check_sizes);
}

/* Rows named by a list: those change, the others do not, and results come in the list's order. */
static void check_lists(struct backend_stream *stream)
{
    enum { ROWS = 6, COLUMNS = 37 };

    static const int32_t rows[] = {4, 0, 5};
    const struct inputs in = inputs_new(NORM_RMS, ROWS, COLUMNS);
    float *all = guarded_new((size_t)ROWS * COLUMNS), *x = guarded_new((size_t)ROWS * COLUMNS);
    float *want = guarded_new((size_t)ROWS * COLUMNS), *out = guarded_new((size_t)3 * COLUMNS);
    memcpy(all, in.x, sizeof *all * ROWS * COLUMNS);
    memcpy(x, in.x, sizeof *x * ROWS * COLUMNS);
    run(stream, &in, all, in.delta, want);
    const struct add_norm_args args = {.x = x,
                                       .delta = in.delta,
                                       .rows = rows,
                                       .n_rows = 3,
                                       .n_columns = COLUMNS,
                                       .weight = in.weight,
                                       .eps = 1e-5f,
                                       .out = out};
    assert_status_ok(cpu_add_norm(stream, &args));
    for (size_t i = 0; i < 3; i++) {
        const size_t row = (size_t)rows[i] * COLUMNS;
        assert_same_bits(out + i * COLUMNS, want + row, COLUMNS, "listed row");
        assert_same_bits(x + row, all + row, COLUMNS, "its sum");
    }
    for (size_t row = 1; row < 4; row++) {
        assert_same_bits(x + row * COLUMNS, in.x + row * COLUMNS, COLUMNS, "a row not listed");
    }
    inputs_free(&in);
    guarded_free(all);
    guarded_free(x);
    guarded_free(want);
    guarded_free(out);
}

static void test_add_norm_takes_a_list_of_rows(void **state)
{
    (void)state;
    each_stream(check_lists);
}

static void test_add_norm_refuses_what_it_cannot_norm(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("portable", 1);
    float one = 1.0f;
    struct add_norm_args args = {.x = &one, .weight = &one, .eps = 1e-5f, .n_rows = 1, .out = &one};
    assert_status_says(cpu_add_norm(stream, &args), STATUS_INVALID_ARGUMENT, "0 columns");
    args.n_columns = 1;
    args.kind = NORM_LAYER;
    assert_status_code(cpu_add_norm(stream, &args), STATUS_INVALID_ARGUMENT); // no bias
    args.bias = &one;
    assert_status_ok(cpu_add_norm(stream, &args));
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_norm_matches_float64_whole_and_by_halves),
        cmocka_unit_test(test_add_norm_takes_a_list_of_rows),
        cmocka_unit_test(test_add_norm_refuses_what_it_cannot_norm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

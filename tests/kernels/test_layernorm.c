#include "tests/kernels/kernel_check.h"

#include <math.h>

/* What every row is scaled by and moved by. */
struct affine {
    float *weight, *bias;
};

static void run(struct backend_stream *stream, const float *x, const struct affine *affine,
                int32_t n_rows, int32_t n_columns, float *out)
{
    const struct layernorm_args args = {.x = x,
                                        .weight = affine->weight,
                                        .bias = affine->bias,
                                        .eps = 1e-5f,
                                        .n_rows = n_rows,
                                        .n_columns = n_columns,
                                        .out = out};
    assert_status_ok(cpu_layernorm(stream, &args));
}

static void reference(const float *x, const struct affine *affine, size_t n_columns, double *want)
{
    double mean = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < n_columns; i++) {
        mean += (double)x[i] / (double)n_columns;
    }
    for (size_t i = 0; i < n_columns; i++) {
        sum += ((double)x[i] - mean) * ((double)x[i] - mean);
    }
    const double scale = 1.0 / sqrt(sum / (double)n_columns + (double)1e-5f);
    for (size_t i = 0; i < n_columns; i++) {
        want[i] =
            ((double)x[i] - mean) * scale * (double)affine->weight[i] + (double)affine->bias[i];
    }
}

static void check_sizes(struct backend_stream *stream)
{
    static const int32_t columns[] = {1, 3, 8, 15, 16, 17, 31, 64, 577, 4096};
    static const int32_t rows[] = {0, 1, 2, 7, 33};
    double want[4096];
    for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            const size_t n_columns = (size_t)columns[c], n = n_columns * (size_t)rows[r];
            float *x = random_new(n, r == 1 ? 1e-3 : 30.0);
            const struct affine affine = {random_new(n_columns, 2.0), random_new(n_columns, 1.0)};
            for (size_t i = 0; r == 2 && i < n; i++) {
                x[i] += 100.0f; // far from zero: squares less the squared mean would cancel
            }
            float *out = guarded_new(n), *alone = guarded_new(n);
            run(stream, x, &affine, rows[r], columns[c], out);
            for (int32_t row = 0; row < rows[r]; row++) {
                const size_t at = (size_t)row * n_columns;
                reference(x + at, &affine, n_columns, want);
                assert_all_close(out + at, want, n_columns, kernel_tolerance(TOLERANCE_LAYERNORM),
                                 "layernorm");
                run(stream, x + at, &affine, 1, columns[c], alone + at);
            }
            assert_same_bits(alone, out, n, "alone");
            run(stream, x, &affine, rows[r], columns[c], x);
            assert_same_bits(x, out, n, "in place");
            guarded_free(x);
            guarded_free(affine.weight);
            guarded_free(affine.bias);
            guarded_free(out);
            guarded_free(alone);
        }
    }
}

static void test_layernorm_matches_float64_alone_and_in_place(void **state)
{
    (void)state;
    each_stream(check_sizes);
}

static void test_layernorm_refuses_rows_of_nothing(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("portable", 1);
    float one = 1.0f;
    const struct layernorm_args args = {
        .x = &one, .weight = &one, .bias = &one, .eps = 1e-5f, .n_rows = 1, .out = &one};
    assert_status_says(cpu_layernorm(stream, &args), STATUS_INVALID_ARGUMENT, "0 columns");
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layernorm_matches_float64_alone_and_in_place),
        cmocka_unit_test(test_layernorm_refuses_rows_of_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

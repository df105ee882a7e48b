#include "tests/kernels/kernel_check.h"

#include <math.h>

static void run(struct backend_stream *stream, const struct swiglu_args *args)
{
    assert_status_ok(cpu_swiglu(stream, args));
}

static double reference(float gate, float up)
{
    return (double)gate / (1.0 + exp(-(double)gate)) * (double)up;
}

/* One row of a result: the values, the NaN beyond it, and each element alone. */
static void check_row(struct backend_stream *stream, const float *gate, const float *out, int32_t n,
                      int32_t ld_out)
{
    for (int32_t i = 0; i < n; i++) {
        const double want = reference(gate[i], gate[n + i]);
        assert_all_close(out + i, &want, 1, kernel_tolerance(TOLERANCE_SWIGLU), "swiglu");
        // The partial vector gives the bits of the full one.
        float alone = 0.0f;
        const float pair[2] = {gate[i], gate[n + i]};
        const struct swiglu_args single = {
            .gate_up = pair, .ld_in = 2, .n_rows = 1, .n_columns = 1, .out = &alone, .ld_out = 1};
        run(stream, &single);
        assert_same_bits(&alone, out + i, 1, "alone");
    }
    for (int32_t i = n; i < ld_out; i++) {
        assert_true(isnan(out[i]));
    }
}

static void check_size(struct backend_stream *stream, int32_t n, int32_t n_rows)
{
    // Gate and up side by side, as a fused projection leaves them.
    const int32_t ld_in = 2 * n, ld_out = n + 3;
    float *in = random_new((size_t)n_rows * (size_t)ld_in, 12.0);
    float *out = guarded_new((size_t)n_rows * (size_t)ld_out);
    const struct swiglu_args args = {.gate_up = in,
                                     .ld_in = ld_in,
                                     .n_rows = n_rows,
                                     .n_columns = n,
                                     .out = out,
                                     .ld_out = ld_out};
    run(stream, &args);
    for (int64_t row = 0; row < n_rows; row++) {
        check_row(stream, in + row * ld_in, out + row * ld_out, n, ld_out);
    }
    guarded_free(in);
    guarded_free(out);
}

static void check_sizes(struct backend_stream *stream)
{
    static const int32_t columns[] = {1, 7, 8, 17, 100, 4099};
    static const int32_t rows[] = {0, 1, 3, 33};
    for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            check_size(stream, columns[c], rows[r]);
        }
    }
}

static void test_swiglu_matches_float64(void **state)
{
    (void)state;
    each_stream(check_sizes);
}

static void check_in_place_and_extremes(struct backend_stream *stream)
{
    float gate[18] = {0.0f, -0.0f, 88.0f, -80.0f, -200.0f, 1e30f, INFINITY, NAN,  -3.0f,
                      2.0f, 2.0f,  2.0f,  2.0f,   2.0f,    2.0f,  2.0f,     2.0f, NAN};
    const struct swiglu_args args = {
        .gate_up = gate, .ld_in = 18, .n_rows = 1, .n_columns = 9, .out = gate, .ld_out = 18};
    run(stream, &args);
    assert_true(gate[0] == 0.0f && gate[1] == 0.0f);
    assert_close(gate[2], 176.0, 0.0, 1e-6);
    assert_close(gate[3], -160.0 * exp(-80.0), 0.0, 1e-6);
    assert_true(gate[4] == 0.0f); // -200 / infinity
    assert_true(gate[5] == 2e30f);
    assert_true(gate[6] == INFINITY);
    assert_true(isnan(gate[7]) && isnan(gate[8]));
}

static void test_swiglu_in_place_takes_extreme_values(void **state)
{
    (void)state;
    each_stream(check_in_place_and_extremes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swiglu_matches_float64),
        cmocka_unit_test(test_swiglu_in_place_takes_extreme_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

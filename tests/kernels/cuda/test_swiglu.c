#include <math.h>

#include "tests/kernels/cuda/cuda_check.h"

struct swiglu_case {
    int32_t n_rows, n_columns;
    int64_t ld_in, ld_out;
    bool in_place;
};

static void check_row(const float *in, const float *got, int32_t n_columns)
{
    double *want = must_alloc((size_t)n_columns * sizeof *want);
    for (int32_t j = 0; j < n_columns; j++) {
        const double gate = (double)in[j], up = (double)in[n_columns + j];
        want[j] = gate / (1.0 + exp(-gate)) * up;
    }
    assert_all_close(got, want, (size_t)n_columns, bf16_result, "swiglu");
    free(want);
}

static void check_case(struct backend_stream *stream, const struct swiglu_case *c)
{
    const size_t n_in = (size_t)c->n_rows * (size_t)c->ld_in;
    const int64_t ld_out = c->in_place ? c->ld_in : c->ld_out;
    const size_t n_out = (size_t)c->n_rows * (size_t)ld_out;
    float *in = random_bf16_values(n_in, 30.0);
    void *d_in = device_bf16(stream, in, n_in);
    void *d_out = c->in_place ? d_in : device_new(stream, n_out * sizeof(uint16_t));
    const struct swiglu_args args = {.gate_up = d_in,
                                     .ld_in = c->ld_in,
                                     .n_rows = c->n_rows,
                                     .n_columns = c->n_columns,
                                     .out = d_out,
                                     .ld_out = ld_out};
    assert_status_ok(check_backend()->swiglu(stream, &args));
    float *out = device_read_bf16(stream, d_out, n_out);
    for (int32_t i = 0; i < c->n_rows; i++) {
        const float *const row = out + i * ld_out;
        check_row(in + i * c->ld_in, row, c->n_columns);
        for (int64_t j = c->n_columns; j < ld_out; j++) { // between rows nothing is written
            assert_true(c->in_place ? row[j] == in[i * c->ld_in + j] : isnan(row[j]));
        }
    }
    device_free(stream, d_in);
    if (!c->in_place) {
        device_free(stream, d_out);
    }
    free(in);
    free(out);
}

static void test_cuda_swiglu_matches_float64(void **state)
{
    (void)state;
    static const int32_t columns[] = {1, 5, 8, 9, 64, 344, 2056, 4100};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        for (int which = 0; which < 4; which++) {
            const int64_t pad = which & 1 ? 8 : 0;
            const struct swiglu_case c = {.n_rows = 1 + (int32_t)test_random_below(5),
                                          .n_columns = columns[i],
                                          .ld_in = 2 * (int64_t)columns[i] + pad,
                                          .ld_out = columns[i] + pad,
                                          .in_place = (which & 2) != 0};
            check_case(stream, &c);
        }
    }
    check_stream_done(stream);
}

static void test_cuda_swiglu_of_extremes(void **state)
{
    (void)state;
    static const float gates[] = {-3e38f, -200.0f, -88.0f, -0.0f, 0.0f, 88.0f, 200.0f, 3e38f};

    enum { N = sizeof gates / sizeof gates[0], LD = 2 * N };

    float in[LD];
    for (int i = 0; i < N; i++) {
        in[i] = bf16_value(bf16_bits(gates[i]));
        in[N + i] = 1.0f;
    }
    struct backend_stream *stream = check_stream();
    void *d_in = device_bf16(stream, in, LD);
    const struct swiglu_args args = {
        .gate_up = d_in, .ld_in = LD, .n_rows = 1, .n_columns = N, .out = d_in, .ld_out = LD};
    assert_status_ok(check_backend()->swiglu(stream, &args));
    float *out = device_read_bf16(stream, d_in, LD);
    check_row(in, out, N);
    free(out);
    device_free(stream, d_in);
    check_stream_done(stream);
}

static void test_cuda_swiglu_of_nothing_and_of_nonsense(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct swiglu_args args = {.n_rows = 4};
    assert_status_ok(check_backend()->swiglu(stream, &args));
    args = (struct swiglu_args){.n_rows = 4, .n_columns = 8, .ld_in = 15, .ld_out = 8};
    assert_status_code(check_backend()->swiglu(stream, &args), STATUS_INVALID_ARGUMENT);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_swiglu_matches_float64),
        cmocka_unit_test(test_cuda_swiglu_of_extremes),
        cmocka_unit_test(test_cuda_swiglu_of_nothing_and_of_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

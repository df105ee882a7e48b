#include "tests/kernels/kernel_check.h"

#include <math.h>

struct shape {
    int32_t n_out, n_in;
    int dtype;
};

/* A weight of random rows, and the values it holds. */
struct weight {
    struct matrix *matrix;
    float *values; /* [n_out, n_in], rounded to the dtype */
};

static struct weight weight_new(struct shape shape)
{
    const size_t n = (size_t)shape.n_out * (size_t)shape.n_in;
    struct weight w = {.values = random_new(n, 1.0)};
    if (shape.dtype == DTYPE_BF16) {
        for (size_t i = 0; i < n; i++) {
            w.values[i] = rounded_bf16(w.values[i]);
        }
    }
    assert_status_ok(cpu_matrix_new(shape.dtype, shape.n_out, shape.n_in, &w.matrix));
    assert_status_ok(write_rows(w.matrix, 0, shape.n_out, w.values));
    return w;
}

static void weight_free(struct weight *w)
{
    cpu_matrix_free(w->matrix);
    guarded_free(w->values);
}

static double *reference(const struct weight *w, const float *x, int64_t ld_x, int32_t n_rows)
{
    const int32_t n_out = w->matrix->n_out, n_in = w->matrix->n_in;
    double *y = must_alloc((size_t)n_rows * (size_t)n_out * sizeof *y);
    for (int32_t m = 0; m < n_rows; m++) {
        for (int32_t n = 0; n < n_out; n++) {
            double sum = 0.0;
            for (int32_t k = 0; k < n_in; k++) {
                sum += (double)x[m * ld_x + k] * (double)w->values[(int64_t)n * n_in + k];
            }
            y[(int64_t)m * n_out + n] = sum;
        }
    }
    return y;
}

static void run(struct backend_stream *stream, const struct weight *w, const float *x, int64_t ld_x,
                int32_t n_rows, float *out)
{
    const struct matmul_args args = {
        .weight = w->matrix,
        .x = x,
        .ld_x = ld_x,
        .n_rows = n_rows,
        .out = out,
        .ld_out = w->matrix->n_out,
    };
    assert_status_ok(cpu_matmul(stream, &args));
}

static void check_shape(struct backend_stream *stream, struct shape shape, int32_t n_rows)
{
    struct weight w = weight_new(shape);
    const size_t n = (size_t)n_rows * (size_t)shape.n_out;
    float *x = random_new((size_t)n_rows * (size_t)shape.n_in, 1.0);
    float *out = guarded_new(n);
    run(stream, &w, x, shape.n_in, n_rows, out);
    double *want = reference(&w, x, shape.n_in, n_rows);
    assert_all_close(out, want, n, kernel_tolerance(TOLERANCE_MATMUL), stream->isa->name);
    free(want);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static void check_odd_shapes(struct backend_stream *stream)
{
    static const int32_t outs[] = {1, 15, 16, 17, 50, 64, 143};
    static const int32_t ins[] = {1, 2, 37, 64};
    static const int32_t rows[] = {0, 1, 2, 3, 4, 5, 7, 8, 33};
    for (size_t o = 0; o < sizeof outs / sizeof outs[0]; o++) {
        for (size_t i = 0; i < sizeof ins / sizeof ins[0]; i++) {
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
                check_shape(stream, (struct shape){outs[o], ins[i], DTYPE_F32}, rows[r]);
                check_shape(stream, (struct shape){outs[o], ins[i], DTYPE_BF16}, rows[r]);
            }
        }
    }
}

static void test_matmul_matches_float64_at_odd_shapes(void **state)
{
    (void)state;
    each_stream(check_odd_shapes);
}

/* More than one stretch of k, block of rows and group of panels. */
static void check_blocks(struct backend_stream *stream)
{
    check_shape(stream, (struct shape){150, 1101, DTYPE_F32}, 107);
    check_shape(stream, (struct shape){150, 1101, DTYPE_BF16}, 107);
    check_shape(stream, (struct shape){33, 2100, DTYPE_BF16}, 1);
}

static void test_matmul_matches_float64_across_its_blocks(void **state)
{
    (void)state;
    each_stream(check_blocks);
}

static void check_strides(struct backend_stream *stream)
{
    enum { N = 37, K = 19, M = 9, LD_X = 24, LD_OUT = 45 };
    struct weight w = weight_new((struct shape){N, K, DTYPE_BF16});
    float *x = guarded_new((size_t)M * LD_X); // NaN between the rows must not be read
    for (int m = 0; m < M; m++) {
        for (int k = 0; k < K; k++) {
            x[m * LD_X + k] = (float)test_random_double(-1.0, 1.0);
        }
    }
    float *out = guarded_new((size_t)M * LD_OUT);
    const struct matmul_args args = {
        .weight = w.matrix, .x = x, .ld_x = LD_X, .n_rows = M, .out = out, .ld_out = LD_OUT};
    assert_status_ok(cpu_matmul(stream, &args));
    double *want = reference(&w, x, LD_X, M);
    for (int m = 0; m < M; m++) {
        assert_all_close(out + (ptrdiff_t)m * LD_OUT, want + (ptrdiff_t)m * N, N,
                         kernel_tolerance(TOLERANCE_MATMUL), "row");
        for (int n = N; n < LD_OUT; n++) {
            assert_true(isnan(out[m * LD_OUT + n]));
        }
    }
    free(want);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static void test_matmul_keeps_to_its_strides(void **state)
{
    (void)state;
    each_stream(check_strides);
}

// ---- batch invariance ----

/* The rows of one call against the same rows in calls of `chunk`. */
static void check_chunks(struct backend_stream *stream, const struct weight *w, const float *x,
                         const float *want, int32_t n_rows, int32_t chunk)
{
    const int32_t n_in = w->matrix->n_in, n_out = w->matrix->n_out;
    float *out = guarded_new((size_t)n_rows * (size_t)n_out);
    for (int32_t row = 0; row < n_rows; row += chunk) {
        const int32_t n = n_rows - row < chunk ? n_rows - row : chunk;
        run(stream, w, x + (int64_t)row * n_in, n_in, n, out + (int64_t)row * n_out);
    }
    assert_same_bits(out, want, (size_t)n_rows * (size_t)n_out, "chunked");
    guarded_free(out);
}

static void check_invariance(const char *isa, int dtype)
{
    enum { N = 139, K = 1097, M = 107 };

    static const int32_t chunks[] = {1, 2, 3, 4, 5, 6, 7, 8, 33, 100};
    struct weight w = weight_new((struct shape){N, K, dtype});
    float *x = random_new((size_t)M * K, 1.0);
    float *want = guarded_new((size_t)M * N);
    struct backend_stream *one = stream_of(isa, 1), *two = stream_of(isa, 2);
    run(one, &w, x, K, M, want);
    check_chunks(two, &w, x, want, M, M);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        check_chunks(i % 2 == 0 ? one : two, &w, x, want, M, chunks[i]);
    }
    stream_done(one);
    stream_done(two);
    guarded_free(want);
    guarded_free(x);
    weight_free(&w);
}

static void check_both_dtypes(const char *isa)
{
    check_invariance(isa, DTYPE_F32);
    check_invariance(isa, DTYPE_BF16);
}

static void test_matmul_row_bits_do_not_depend_on_the_batch_or_the_threads(void **state)
{
    (void)state;
    each_isa(check_both_dtypes);
}

/* AVX2 and AVX-512 build the same chains of fma: this order is what fmaf in a loop gives. */
static void check_chain(const char *isa)
{
    if (strcmp(isa, "portable") == 0) {
        return; // rounds twice
    }

    enum { N = 21, K = 777, M = 3 };
    struct weight w = weight_new((struct shape){N, K, DTYPE_BF16});
    float *x = random_new((size_t)M * K, 1.0);
    float *out = guarded_new((size_t)M * N);
    struct backend_stream *stream = stream_of(isa, 1);
    run(stream, &w, x, K, M, out);
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            float sum = 0.0f;
            for (int k = 0; k < K; k++) {
                sum = fmaf(x[m * K + k], w.values[n * K + k], sum);
            }
            assert_same_bits(&out[m * N + n], &sum, 1, "chain");
        }
    }
    stream_done(stream);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static void test_matmul_sums_in_one_chain_over_ascending_k(void **state)
{
    (void)state;
    each_isa(check_chain);
}

static void test_matmul_refuses_strides_that_are_too_small(void **state)
{
    (void)state;
    struct weight w = weight_new((struct shape){5, 7, DTYPE_F32});
    struct backend_stream *stream = stream_of("auto", 1);
    float x[7] = {0}, out[5] = {0};
    struct matmul_args args = {
        .weight = w.matrix, .x = x, .ld_x = 6, .n_rows = 1, .out = out, .ld_out = 5};
    assert_status_code(cpu_matmul(stream, &args), STATUS_INVALID_ARGUMENT);
    args.ld_x = 7;
    args.ld_out = 4;
    assert_status_code(cpu_matmul(stream, &args), STATUS_INVALID_ARGUMENT);
    stream_done(stream);
    weight_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_matches_float64_at_odd_shapes),
        cmocka_unit_test(test_matmul_matches_float64_across_its_blocks),
        cmocka_unit_test(test_matmul_keeps_to_its_strides),
        cmocka_unit_test(test_matmul_row_bits_do_not_depend_on_the_batch_or_the_threads),
        cmocka_unit_test(test_matmul_sums_in_one_chain_over_ascending_k),
        cmocka_unit_test(test_matmul_refuses_strides_that_are_too_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

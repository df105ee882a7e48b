#include "tests/kernels/kernel_check.h"

#include <math.h>

struct shape {
    int32_t n_out, n_in;
    int format;
};

/* A weight of random rows, and the values it holds: values[n, k] * scales[n]. */
struct weight {
    struct matrix *matrix;
    float *values; /* [n_out, n_in], rounded to the dtype */
    float *scales; /* [n_out] */
};

/* Rows that int8 holds to the last bit: integers, one of them 127, times a number for the row. */
static float *integers_new(int32_t n_rows, int32_t n_columns, float *scales)
{
    float *data = guarded_new((size_t)n_rows * (size_t)n_columns);
    for (int32_t r = 0; r < n_rows; r++) {
        float *const row = data + (int64_t)r * n_columns;
        const float unit = (float)test_random_double(1e-3, 1e-2);
        const int32_t full = (int32_t)test_random_below((uint64_t)n_columns);
        for (int32_t k = 0; k < n_columns; k++) {
            const int32_t value = (int32_t)test_random_below(255) - 127;
            row[k] = unit * (float)(k == full ? 127 : value);
        }
        scales[r] = row[full] / 127.0f;
    }
    return data;
}

static void keep_integers(struct weight *w, struct shape shape)
{
    for (int32_t n = 0; n < shape.n_out; n++) {
        for (int32_t k = 0; k < shape.n_in; k++) {
            float *const value = &w->values[(int64_t)n * shape.n_in + k];
            *value = (float)nearbyint((double)*value / (double)w->scales[n]);
        }
    }
}

static struct weight weight_new(struct shape shape)
{
    const size_t n = (size_t)shape.n_out * (size_t)shape.n_in;
    struct weight w = {.scales = guarded_new((size_t)shape.n_out)};
    w.values = integers_new(shape.n_out, shape.n_in, w.scales);
    assert_status_ok(cpu_matrix_new(shape.format, shape.n_out, shape.n_in, &w.matrix));
    assert_status_ok(write_rows(w.matrix, 0, shape.n_out, w.values));
    if (w.matrix->dtype == DTYPE_I8) {
        keep_integers(&w, shape);
        return w;
    }
    for (size_t i = 0; shape.format == MATRIX_BF16 && i < n; i++) {
        w.values[i] = rounded_bf16(w.values[i]);
    }
    for (int32_t i = 0; i < shape.n_out; i++) {
        w.scales[i] = 1.0f;
    }
    return w;
}

static void weight_free(struct weight *w)
{
    cpu_matrix_free(w->matrix);
    guarded_free(w->values);
    guarded_free(w->scales);
}

/* What int8 rounds to nothing else. */
static float *x_new(int32_t n_rows, int32_t n_in)
{
    float *scales = guarded_new((size_t)n_rows);
    float *x = integers_new(n_rows, n_in, scales);
    guarded_free(scales);
    return x;
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
            y[(int64_t)m * n_out + n] = sum * (double)w->scales[n];
        }
    }
    return y;
}

/* Fills in the scratch, poisoned. */
static void multiply(struct backend_stream *stream, const struct matmul_args *args)
{
    struct matmul_args mine = *args;
    const size_t size = int8_rows_bytes(args->n_rows, args->weight->n_in);
    mine.scratch = must_alloc(size);
    memset(mine.scratch, 0x7f, size);
    assert_status_ok(cpu_matmul(stream, &mine));
    free(mine.scratch);
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
    multiply(stream, &args);
}

static void check_shape(struct backend_stream *stream, struct shape shape, int32_t n_rows)
{
    struct weight w = weight_new(shape);
    const size_t n = (size_t)n_rows * (size_t)shape.n_out;
    float *x = x_new(n_rows, shape.n_in);
    float *out = guarded_new(n);
    run(stream, &w, x, shape.n_in, n_rows, out);
    double *want = reference(&w, x, shape.n_in, n_rows);
    assert_all_close(out, want, n, kernel_tolerance(TOLERANCE_MATMUL), stream->isa->name);
    free(want);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static const int formats[] = {MATRIX_F32, MATRIX_BF16, MATRIX_I8, MATRIX_W8A8};

enum { N_FORMATS = sizeof formats / sizeof formats[0] };

/* Every format, and every number of rows. */
static void check_size(struct backend_stream *stream, int32_t n_out, int32_t n_in)
{
    static const int32_t rows[] = {0, 1, 2, 3, 4, 5, 7, 8, 33};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        for (int f = 0; f < N_FORMATS; f++) {
            check_shape(stream, (struct shape){n_out, n_in, formats[f]}, rows[r]);
        }
    }
}

static void check_odd_shapes(struct backend_stream *stream)
{
    static const int32_t outs[] = {1, 15, 16, 17, 50, 64, 143};
    static const int32_t ins[] = {1, 2, 37, 64};
    for (size_t o = 0; o < sizeof outs / sizeof outs[0]; o++) {
        for (size_t i = 0; i < sizeof ins / sizeof ins[0]; i++) {
            check_size(stream, outs[o], ins[i]);
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
    for (int f = 0; f < N_FORMATS; f++) {
        check_shape(stream, (struct shape){150, 1101, formats[f]}, 107);
        check_shape(stream, (struct shape){33, 2100, formats[f]}, 1);
    }
    check_shape(stream, (struct shape){37, 4103, MATRIX_W8A8}, 23);
}

static void test_matmul_matches_float64_across_its_blocks(void **state)
{
    (void)state;
    each_stream(check_blocks);
}

static void check_strides_of(struct backend_stream *stream, int format)
{
    enum { N = 37, K = 19, M = 9, LD_X = 24, LD_OUT = 45 };
    struct weight w = weight_new((struct shape){N, K, format});
    float *x = guarded_new((size_t)M * LD_X); // NaN between the rows must not be read
    float *rows = x_new(M, K);
    for (int m = 0; m < M; m++) {
        memcpy(x + (ptrdiff_t)m * LD_X, rows + (ptrdiff_t)m * K, K * sizeof *x);
    }
    float *out = guarded_new((size_t)M * LD_OUT);
    const struct matmul_args args = {
        .weight = w.matrix, .x = x, .ld_x = LD_X, .n_rows = M, .out = out, .ld_out = LD_OUT};
    multiply(stream, &args);
    double *want = reference(&w, x, LD_X, M);
    for (int m = 0; m < M; m++) {
        assert_all_close(out + (ptrdiff_t)m * LD_OUT, want + (ptrdiff_t)m * N, N,
                         kernel_tolerance(TOLERANCE_MATMUL), "row");
        for (int n = N; n < LD_OUT; n++) {
            assert_true(isnan(out[m * LD_OUT + n]));
        }
    }
    free(want);
    guarded_free(rows);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static void check_strides(struct backend_stream *stream)
{
    for (int f = 0; f < N_FORMATS; f++) {
        check_strides_of(stream, formats[f]);
    }
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

static void check_invariance(const char *isa, int format)
{
    enum { N = 139, K = 1097, M = 107 };

    static const int32_t chunks[] = {1, 2, 3, 4, 5, 6, 7, 8, 33, 100};
    struct weight w = weight_new((struct shape){N, K, format});
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

static void check_all_formats(const char *isa)
{
    for (int f = 0; f < N_FORMATS; f++) {
        check_invariance(isa, formats[f]);
    }
}

static void test_matmul_row_bits_do_not_depend_on_the_batch_or_the_threads(void **state)
{
    (void)state;
    each_isa(check_all_formats);
}

/* AVX2 and AVX-512 build the same chains of fma: this order is what fmaf in a loop gives. */
static void check_chain_of(const char *isa, int format)
{
    enum { N = 21, K = 777, M = 3 };
    struct weight w = weight_new((struct shape){N, K, format});
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
            sum *= w.scales[n];
            assert_same_bits(&out[m * N + n], &sum, 1, "chain");
        }
    }
    stream_done(stream);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static void check_chain(const char *isa)
{
    if (strcmp(isa, "portable") != 0) { // which rounds twice
        check_chain_of(isa, MATRIX_BF16);
        check_chain_of(isa, MATRIX_I8);
    }
}

static void test_matmul_sums_in_one_chain_over_ascending_k(void **state)
{
    (void)state;
    each_isa(check_chain);
}

// ---- int8 times int8 ----

/* Sums of integers are exact: every instruction set gives these bits. Rows at both ends of the range, where 16 bits would overflow. */
static void check_integers(const char *isa)
{
    enum { N = 35, K = 2309, M = 11 };
    struct weight w = weight_new((struct shape){N, K, MATRIX_W8A8});
    float *scales = guarded_new(M);
    float *x = integers_new(M, K, scales);
    for (int k = 0; k < K; k++) {
        x[k] = (k % 3 == 0 ? 127.0f : -127.0f) * scales[0];
    }
    scales[0] = x[0] / 127.0f;
    float *out = guarded_new((size_t)M * N);
    struct backend_stream *stream = stream_of(isa, 2);
    run(stream, &w, x, K, M, out);
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            int64_t sum = 0;
            for (int k = 0; k < K; k++) {
                const double value = nearbyint((double)x[m * K + k] / (double)scales[m]);
                sum += (int64_t)value * (int64_t)w.values[n * K + k];
            }
            const float want = (float)sum * w.scales[n] * scales[m];
            assert_same_bits(&out[m * N + n], &want, 1, isa);
        }
    }
    stream_done(stream);
    guarded_free(out);
    guarded_free(x);
    guarded_free(scales);
    weight_free(&w);
}

static void test_matmul_of_int8_rows_is_exact(void **state)
{
    (void)state;
    each_isa(check_integers);
}

/* Both sides at the ends of the range in every product, in all combinations of signs. */
static void check_extremes(const char *isa)
{
    enum { N = 32, K = 1024, M = 4 };

    float *w = guarded_new((size_t)N * K), *x = guarded_new((size_t)M * K);
    for (int i = 0; i < N * K; i++) {
        w[i] = test_random_below(2) == 0 || i / K == 0 ? 127.0f : -127.0f;
    }
    for (int i = 0; i < M * K; i++) {
        x[i] = i / K == 0 || (i / K > 1 && test_random_below(2) == 0) ? 127.0f : -127.0f;
    }
    struct weight weight = {0};
    assert_status_ok(cpu_matrix_new(MATRIX_W8A8, N, K, &weight.matrix));
    assert_status_ok(write_rows(weight.matrix, 0, N, w));
    float *out = guarded_new((size_t)M * N);
    struct backend_stream *stream = stream_of(isa, 1);
    run(stream, &weight, x, K, M, out);
    for (int i = 0; i < M * N; i++) {
        double sum = 0.0;
        for (int k = 0; k < K; k++) {
            sum += (double)x[i / N * K + k] * (double)w[i % N * K + k];
        }
        assert_true((double)out[i] == sum);
    }
    stream_done(stream);
    cpu_matrix_free(weight.matrix);
    guarded_free(out);
    guarded_free(w);
    guarded_free(x);
}

static void test_matmul_of_int8_rows_does_not_saturate(void **state)
{
    (void)state;
    each_isa(check_extremes);
}

/* What is off is what rounding x may have changed: half a step of its scale, times each weight. */
static void check_rounding(struct backend_stream *stream)
{
    enum { N = 24, K = 600, M = 5 };
    struct weight w = weight_new((struct shape){N, K, MATRIX_W8A8});
    float *x = random_new((size_t)M * K, 3.0);
    float *out = guarded_new((size_t)M * N);
    run(stream, &w, x, K, M, out);
    double *want = reference(&w, x, K, M);
    for (int m = 0; m < M; m++) {
        double largest = 0.0;
        for (int k = 0; k < K; k++) {
            largest = fmax(largest, fabs((double)x[m * K + k]));
        }
        for (int n = 0; n < N; n++) {
            double weights = 0.0;
            for (int k = 0; k < K; k++) {
                weights += fabs((double)w.values[n * K + k] * (double)w.scales[n]);
            }
            const double bound = weights * largest / 127.0 * 0.5001 + 1e-5;
            assert_close((double)out[m * N + n], want[m * N + n], bound, 0.0);
        }
    }
    free(want);
    guarded_free(out);
    guarded_free(x);
    weight_free(&w);
}

static void test_matmul_of_int8_rows_is_off_by_half_a_step(void **state)
{
    (void)state;
    each_stream(check_rounding);
}

/* Zeros give zeros, and what is no number gives what is no number: in that row, and in no other. */
static void check_special_rows(struct backend_stream *stream)
{
    enum { N = 20, K = 50, M = 4 };

    static const int int8_formats[] = {MATRIX_I8, MATRIX_W8A8};
    for (int f = 0; f < 2; f++) {
        struct weight w = weight_new((struct shape){N, K, int8_formats[f]});
        float *x = x_new(M, K);
        float *out = guarded_new((size_t)M * N);
        memset(x, 0, K * sizeof *x);
        x[1 * K + 7] = NAN;
        x[2 * K + 49] = INFINITY;
        run(stream, &w, x, K, M, out);
        for (int n = 0; n < N; n++) {
            assert_true(out[n] == 0.0f);
            assert_true(isnan(out[N + n]));
            assert_false(isfinite(out[2 * N + n]) && w.values[n * K + 49] != 0.0f);
            assert_true(isfinite(out[3 * N + n]));
        }
        guarded_free(out);
        guarded_free(x);
        weight_free(&w);
    }
}

static void test_matmul_of_int8_keeps_zeros_and_nan(void **state)
{
    (void)state;
    each_stream(check_special_rows);
}

static void test_matmul_refuses_strides_that_are_too_small(void **state)
{
    (void)state;
    struct weight w = weight_new((struct shape){5, 7, MATRIX_F32});
    struct backend_stream *stream = stream_of("auto", 1);
    float x[7] = {0}, out[5] = {0};
    struct matmul_args args = {
        .weight = w.matrix, .x = x, .ld_x = 6, .n_rows = 1, .out = out, .ld_out = 5};
    assert_status_code(cpu_matmul(stream, &args), STATUS_INVALID_ARGUMENT);
    args.ld_x = 7;
    args.ld_out = 4;
    assert_status_code(cpu_matmul(stream, &args), STATUS_INVALID_ARGUMENT);
    struct weight rounded = weight_new((struct shape){5, 7, MATRIX_W8A8});
    args = (struct matmul_args){
        .weight = rounded.matrix, .x = x, .ld_x = 7, .n_rows = 1, .out = out, .ld_out = 5};
    assert_status_code(cpu_matmul(stream, &args), STATUS_INVALID_ARGUMENT); // no scratch
    weight_free(&rounded);
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
        cmocka_unit_test(test_matmul_of_int8_rows_is_exact),
        cmocka_unit_test(test_matmul_of_int8_rows_does_not_saturate),
        cmocka_unit_test(test_matmul_of_int8_rows_is_off_by_half_a_step),
        cmocka_unit_test(test_matmul_of_int8_keeps_zeros_and_nan),
        cmocka_unit_test(test_matmul_refuses_strides_that_are_too_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

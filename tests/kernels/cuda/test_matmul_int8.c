/* Int8 weights, with rows of bfloat16 and with rows rounded to int8 as well. */
#include <math.h>

#include "kernels/int8_rows.h"
#include "tests/kernels/cuda/cuda_check.h"

/* Sums of at most 3000 products of values below 1.3, in float32. */
static const struct tolerance sum_result = {.atol = 3e-4, .rtol = 1e-5};

struct shape {
    int32_t n_rows, n_out, n_in;
    int32_t x_gap, out_gap; /* ld beyond the columns */
    int out_dtype, format;
};

/* Weights and x that int8 holds to the last bit, and what should come out. */
struct problem {
    struct shape shape;
    struct matrix *weight;
    int32_t *w, *x;           /* [n_out, n_in], [n_rows, n_in]: the integers */
    float *w_scale, *x_scale; /* of each row */
    void *device_x, *device_out, *scratch;
};

static int64_t ld_x(const struct shape *s)
{
    return s->n_in + s->x_gap;
}

static int64_t ld_out(const struct shape *s)
{
    return s->n_out + s->out_gap;
}

/* From -127 to 127; one of each row is 127. */
static int32_t *integers_new(int32_t n_rows, int32_t n_columns)
{
    int32_t *values = must_alloc((size_t)n_rows * (size_t)n_columns * sizeof *values);
    for (int32_t r = 0; r < n_rows; r++) {
        int32_t *const row = values + (ptrdiff_t)r * n_columns;
        for (int32_t k = 0; k < n_columns; k++) {
            row[k] = (int32_t)test_random_below(255) - 127;
        }
        row[test_random_below((uint64_t)n_columns)] = 127;
    }
    return values;
}

static void make_weight(struct problem *p, struct backend_stream *stream)
{
    const struct backend *b = check_backend();
    const int32_t n_out = p->shape.n_out, n_in = p->shape.n_in;
    float *rows = must_alloc((size_t)n_out * (size_t)n_in * sizeof *rows);
    p->w = integers_new(n_out, n_in);
    p->w_scale = must_alloc((size_t)n_out * sizeof *p->w_scale);
    for (int32_t o = 0; o < n_out; o++) {
        const float unit = (float)test_random_double(1e-3, 1e-2);
        p->w_scale[o] = unit;
        for (int32_t k = 0; k < n_in; k++) {
            rows[(ptrdiff_t)o * n_in + k] = unit * (float)p->w[(ptrdiff_t)o * n_in + k];
        }
    }
    assert_status_ok(b->matrix_new(stream, p->shape.format, n_out, n_in, &p->weight));
    const struct matrix_write_args write = {
        .matrix = p->weight, .n_rows = n_out, .src = rows, .src_dtype = DTYPE_F32, .ld_src = n_in};
    assert_status_ok(b->matrix_write(stream, &write));
    free(rows);
}

/* Units are powers of two, so that x is exact in bfloat16. */
static void make_x(struct problem *p, struct backend_stream *stream)
{
    const struct shape *const s = &p->shape;
    const size_t n = (size_t)s->n_rows * (size_t)ld_x(s);
    float *rows = must_alloc(n * sizeof *rows);
    p->x = integers_new(s->n_rows, s->n_in);
    p->x_scale = must_alloc((size_t)s->n_rows * sizeof *p->x_scale);
    for (int32_t r = 0; r < s->n_rows; r++) {
        p->x_scale[r] = test_random_below(2) == 0 ? 0x1p-7f : 0x1p-9f;
        for (int64_t k = 0; k < ld_x(s); k++) {
            rows[r * ld_x(s) + k] =
                k < s->n_in ? p->x_scale[r] * (float)p->x[(ptrdiff_t)r * s->n_in + k] : NAN;
        }
    }
    p->device_x = device_bf16(stream, rows, n);
    free(rows);
}

static void problem_init(struct problem *p, struct backend_stream *stream, struct shape s)
{
    *p = (struct problem){.shape = s};
    make_weight(p, stream);
    make_x(p, stream);
    p->device_out =
        device_new(stream, (size_t)s.n_rows * (size_t)ld_out(&s) * dtype_bytes(s.out_dtype));
    p->scratch = device_new(stream, int8_rows_bytes(s.n_rows, s.n_in));
}

static void problem_destroy(struct problem *p, struct backend_stream *stream)
{
    device_free(stream, p->device_x);
    device_free(stream, p->device_out);
    device_free(stream, p->scratch);
    check_backend()->matrix_free(p->weight);
    free(p->w);
    free(p->x);
    free(p->w_scale);
    free(p->x_scale);
}

static struct matmul_args args_of(const struct problem *p)
{
    return (struct matmul_args){
        .weight = p->weight,
        .scratch = p->shape.format == MATRIX_W8A8 ? p->scratch : NULL,
        .x = p->device_x,
        .ld_x = ld_x(&p->shape),
        .n_rows = p->shape.n_rows,
        .out = p->device_out,
        .ld_out = ld_out(&p->shape),
        .out_dtype = p->shape.out_dtype,
    };
}

static int64_t sum_of(const struct problem *p, int32_t row, int32_t output)
{
    const int32_t n_in = p->shape.n_in;
    int64_t sum = 0;
    for (int32_t k = 0; k < n_in; k++) {
        sum += (int64_t)p->x[(ptrdiff_t)row * n_in + k] * p->w[(ptrdiff_t)output * n_in + k];
    }
    return sum;
}

/* The output as float32, [n_rows, ld_out]; freed with free. */
static float *read_out(const struct problem *p, struct backend_stream *stream)
{
    const size_t n = (size_t)p->shape.n_rows * (size_t)ld_out(&p->shape);
    if (p->shape.out_dtype == DTYPE_BF16) {
        return device_read_bf16(stream, p->device_out, n);
    }
    float *out = must_alloc(n * sizeof *out);
    device_read(stream, out, p->device_out, n * sizeof *out);
    return out;
}

static void check_row(const struct problem *p, int32_t row, const float *got)
{
    const struct shape *const s = &p->shape;
    const bool wide = s->out_dtype == DTYPE_F32;
    for (int32_t o = 0; o < s->n_out; o++) {
        const int64_t sum = sum_of(p, row, o);
        const double want = (double)sum * (double)p->w_scale[o] * (double)p->x_scale[row];
        const struct tolerance tolerance = {.atol = sum_result.atol,
                                            .rtol = wide ? sum_result.rtol : bf16_result.rtol};
        assert_all_close(got + o, &want, 1, tolerance, "matmul");
        if (wide && s->format == MATRIX_W8A8) { // sums of integers: exact, then two roundings
            assert_close((double)got[o], want, 0.0, 0x1p-21);
        }
    }
    for (int64_t o = s->n_out; o < ld_out(s); o++) {
        assert_true(isnan(got[o])); // the poison between rows
    }
}

static void check_shape(struct backend_stream *stream, struct shape s)
{
    struct problem p;
    problem_init(&p, stream, s);
    const struct matmul_args args = args_of(&p);
    assert_status_ok(check_backend()->matmul(stream, &args));
    float *const got = read_out(&p, stream);
    for (int32_t r = 0; r < s.n_rows; r++) {
        check_row(&p, r, got + r * ld_out(&s));
    }
    free(got);
    problem_destroy(&p, stream);
}

static const int formats[2] = {MATRIX_I8, MATRIX_W8A8};

static void test_matmul_int8_of_few_rows_matches_float64(void **state)
{
    (void)state;
    static const int32_t rows[] = {1, 2, 5, 8, 9, 16, 17, 31, 32};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const int32_t n_in = 1 + (int32_t)test_random_below(1300);
        struct shape s = {.n_rows = rows[i],
                          .n_out = 1 + (int32_t)test_random_below(50),
                          .n_in = n_in,
                          .x_gap = (8 - n_in % 8) % 8 + 8,
                          .out_gap = 3};
        for (int f = 0; f < 2; f++) {
            s.format = formats[f];
            s.out_dtype = (i + (size_t)f) % 2 == 0 ? DTYPE_F32 : DTYPE_BF16;
            check_shape(stream, s);
        }
    }
    check_stream_done(stream);
}

static void test_matmul_int8_takes_odd_shapes(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {.n_rows = 1, .n_out = 1, .n_in = 1, .out_dtype = DTYPE_F32},
        {.n_rows = 8, .n_out = 17, .n_in = 7, .out_dtype = DTYPE_BF16}, // rows of x unaligned
        {.n_rows = 3, .n_out = 16, .n_in = 1024, .x_gap = 1, .out_dtype = DTYPE_F32},
        {.n_rows = 33, .n_out = 1, .n_in = 3, .out_dtype = DTYPE_F32},
        {.n_rows = 64, .n_out = 128, .n_in = 192, .out_dtype = DTYPE_BF16}, // whole tiles
        {.n_rows = 129, .n_out = 131, .n_in = 77, .out_gap = 5, .out_dtype = DTYPE_F32},
        {.n_rows = 70, .n_out = 33, .n_in = 600, .x_gap = 3, .out_dtype = DTYPE_BF16},
        {.n_rows = 40, .n_out = 19, .n_in = 1111, .x_gap = 9, .out_dtype = DTYPE_F32},
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int f = 0; f < 2; f++) {
            struct shape s = shapes[i];
            s.format = formats[f];
            check_shape(stream, s);
        }
    }
    check_stream_done(stream);
}

/* Both kernels, and every number of rows of either, give a row the same bits. */
static void check_other_rows(struct backend_stream *stream, int format)
{
    enum { N_ROWS = 140 };

    static const int32_t counts[] = {1, 8, 9, 17, 32, 33, 65, 128};
    struct problem p;
    const struct shape s = {
        .n_rows = N_ROWS, .n_out = 50, .n_in = 1300, .out_dtype = DTYPE_F32, .format = format};
    problem_init(&p, stream, s);
    struct matmul_args args = args_of(&p);
    assert_status_ok(check_backend()->matmul(stream, &args));
    float *const want = read_out(&p, stream);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const int32_t n_rows = counts[i];
        const int32_t first = (int32_t)test_random_below((uint64_t)(N_ROWS + 1 - n_rows));
        args.n_rows = n_rows;
        args.x = (const uint16_t *)p.device_x + (ptrdiff_t)first * s.n_in;
        assert_status_ok(check_backend()->matmul(stream, &args));
        float *const got = read_out(&p, stream);
        assert_same_bytes(got, want + (ptrdiff_t)first * s.n_out,
                          (size_t)n_rows * (size_t)s.n_out * sizeof *got, "rows");
        free(got);
    }
    free(want);
    problem_destroy(&p, stream);
}

static void test_matmul_int8_bits_do_not_depend_on_other_rows(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    for (int f = 0; f < 2; f++) {
        check_other_rows(stream, formats[f]);
    }
    check_stream_done(stream);
}

// ---- rounding ----

/* One 1 in a row of x brings a column of weights to light: off by half a step at most, slices as the whole row says. */
static void test_matmul_int8_weights_are_off_by_half_a_step(void **state)
{
    (void)state;

    enum { N_OUT = 37, N_IN = 45, CUT = 20 };

    const struct backend *b = check_backend();
    struct backend_stream *stream = check_stream();
    const int32_t n = N_IN - CUT;
    float *w = random_values((size_t)N_OUT * N_IN, 0.1);
    float largest[N_OUT], x[N_IN * N_IN] = {0};
    int8_rows_find_largest(w, DTYPE_F32, N_OUT, N_IN, largest);
    for (int32_t i = 0; i < n; i++) {
        x[i * n + i] = 1.0f;
    }
    void *const device_x = device_bf16(stream, x, (size_t)n * (size_t)n);
    for (int sliced = 0; sliced < 2; sliced++) {
        struct matrix *matrix = NULL;
        void *out = device_new(stream, sizeof(float) * (size_t)n * N_OUT);
        assert_status_ok(b->matrix_new(stream, MATRIX_I8, N_OUT, n, &matrix));
        for (int32_t row = 0; row < N_OUT; row += 20) {
            const struct matrix_write_args write = {.matrix = matrix,
                                                    .row_begin = row,
                                                    .n_rows = N_OUT - row < 20 ? N_OUT - row : 20,
                                                    .src = w + (ptrdiff_t)row * N_IN + CUT,
                                                    .src_dtype = DTYPE_F32,
                                                    .ld_src = N_IN,
                                                    .largest = sliced ? largest + row : NULL};
            assert_status_ok(b->matrix_write(stream, &write));
        }
        const struct matmul_args call = {.weight = matrix,
                                         .x = device_x,
                                         .ld_x = n,
                                         .n_rows = n,
                                         .out = out,
                                         .ld_out = N_OUT,
                                         .out_dtype = DTYPE_F32};
        assert_status_ok(b->matmul(stream, &call));
        float got[N_IN * N_OUT];
        device_read(stream, got, out, sizeof(float) * (size_t)n * N_OUT);
        for (int32_t i = 0; i < n * N_OUT; i++) {
            const int32_t k = i / N_OUT, o = i % N_OUT;
            double most = sliced ? (double)largest[o] : 0.0;
            for (int32_t j = CUT; j < N_IN && !sliced; j++) {
                most = fmax(most, fabs((double)w[o * N_IN + j]));
            }
            assert_close((double)got[i], (double)w[o * N_IN + CUT + k], most / 127.0 * 0.5001, 0.0);
            const double steps = (double)got[i] / (most / 127.0);
            assert_close(steps, nearbyint(steps), 1e-4, 0.0);
        }
        device_free(stream, out);
        b->matrix_free(matrix);
    }
    device_free(stream, device_x);
    free(w);
    check_stream_done(stream);
}

/* Rows of x become what the host makes of them, to the bit: zeros, tiny values and what is no number too. */
static void check_rows(struct backend_stream *stream, int32_t n_in, int32_t x_gap)
{
    enum { N_ROWS = 7 };

    const struct backend *b = check_backend();
    const int32_t ld = n_in + x_gap;
    const size_t n_x = (size_t)N_ROWS * (size_t)ld, size = int8_rows_bytes(N_ROWS, n_in);
    float *x = random_bf16_values(n_x, 3.0);
    memset(x + ld, 0, (size_t)n_in * sizeof *x);
    for (int32_t k = 0; k < n_in; k++) {
        x[2 * ld + k] = 0x1p-120f;
        x[3 * ld + k] *= 0x1p-90f;
    }
    x[4 * ld + n_in - 1] = NAN;
    x[(ptrdiff_t)5 * ld] = -INFINITY;
    struct matrix *matrix = NULL;
    float *w = random_values((size_t)n_in, 1.0);
    assert_status_ok(b->matrix_new(stream, MATRIX_W8A8, 1, n_in, &matrix));
    const struct matrix_write_args write = {
        .matrix = matrix, .n_rows = 1, .src = w, .src_dtype = DTYPE_F32, .ld_src = n_in};
    assert_status_ok(b->matrix_write(stream, &write));
    void *device_x = device_bf16(stream, x, n_x), *scratch = device_new(stream, size);
    void *out = device_new(stream, N_ROWS * sizeof(float));
    const struct matmul_args call = {.weight = matrix,
                                     .scratch = scratch,
                                     .x = device_x,
                                     .ld_x = ld,
                                     .n_rows = N_ROWS,
                                     .out = out,
                                     .ld_out = 1,
                                     .out_dtype = DTYPE_F32};
    assert_status_ok(b->matmul(stream, &call));
    unsigned char *got = must_alloc(size);
    float products[N_ROWS];
    device_read(stream, got, scratch, size);
    device_read(stream, products, out, sizeof products);
    int8_t *want = calloc(int8_rows_stride(n_in), 1);
    assert_non_null(want);
    for (int32_t r = 0; r < N_ROWS; r++) {
        struct int8_row head;
        const float largest = int8_rows_largest(x + (ptrdiff_t)r * ld, n_in);
        memcpy(&head, got + (size_t)r * sizeof head, sizeof head);
        int8_rows_round(x + (ptrdiff_t)r * ld, n_in, largest, want);
        assert_same_bytes(got + int8_rows_offset(N_ROWS) + (size_t)r * int8_rows_stride(n_in), want,
                          int8_rows_stride(n_in), "values");
        assert_int_equal(head.sum, int8_rows_sum(want, n_in));
        const float scale = int8_rows_scale(largest);
        assert_true(head.scale == scale || (isnan(head.scale) && isnan(scale)));
        assert_int_equal(isnan(products[r]), r == 4 || r == 5);
    }
    free(want);
    free(got);
    free(x);
    free(w);
    device_free(stream, device_x);
    device_free(stream, scratch);
    device_free(stream, out);
    b->matrix_free(matrix);
}

static void test_matmul_int8_rounds_rows_as_the_host_does(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    check_rows(stream, 1, 0);
    check_rows(stream, 37, 2);
    check_rows(stream, 2056, 8);
    check_rows(stream, 2050, 6);
    check_stream_done(stream);
}

static void test_matmul_int8_refuses_bad_calls(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct problem p;
    problem_init(
        &p, stream,
        (struct shape){
            .n_rows = 2, .n_out = 4, .n_in = 8, .out_dtype = DTYPE_F32, .format = MATRIX_W8A8});
    struct matmul_args call = args_of(&p);
    call.scratch = NULL;
    assert_status_says(check_backend()->matmul(stream, &call), STATUS_INVALID_ARGUMENT, "no room");
    call.scratch = (char *)p.scratch + 8;
    assert_status_code(check_backend()->matmul(stream, &call), STATUS_INVALID_ARGUMENT);
    call = args_of(&p);
    call.n_rows = 0;
    assert_status_ok(check_backend()->matmul(stream, &call));
    problem_destroy(&p, stream);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_int8_of_few_rows_matches_float64),
        cmocka_unit_test(test_matmul_int8_takes_odd_shapes),
        cmocka_unit_test(test_matmul_int8_bits_do_not_depend_on_other_rows),
        cmocka_unit_test(test_matmul_int8_weights_are_off_by_half_a_step),
        cmocka_unit_test(test_matmul_int8_rounds_rows_as_the_host_does),
        cmocka_unit_test(test_matmul_int8_refuses_bad_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include <math.h>

#include "kernels/cuda/matmul.h"
#include "tests/kernels/cuda/cuda_check.h"

/* Sums of at most 3000 products of values below 1, in float32. */
static const struct tolerance sum_result = {.atol = 2e-4, .rtol = 1e-5};

struct shape {
    int32_t n_rows, n_out, n_in;
    int32_t x_gap, out_gap; /* ld beyond the columns */
    int out_dtype;
};

/* Weights, x and what should come out. */
struct problem {
    struct shape shape;
    struct matrix *weight;
    float *w, *x; /* [n_out, n_in], [n_rows, ld_x] */
    double *want; /* [n_rows, n_out] */
    void *device_x, *device_out;
};

static int64_t ld_x(const struct shape *s)
{
    return s->n_in + s->x_gap;
}

static int64_t ld_out(const struct shape *s)
{
    return s->n_out + s->out_gap;
}

static void problem_init(struct problem *p, struct backend_stream *stream, struct shape s)
{
    const size_t n_x = (size_t)s.n_rows * (size_t)ld_x(&s);
    p->shape = s;
    p->w = random_bf16_values((size_t)s.n_out * (size_t)s.n_in, 1.0);
    p->x = random_bf16_values(n_x, 1.0);
    p->want = must_alloc((size_t)s.n_rows * (size_t)s.n_out * sizeof *p->want);
    for (int32_t r = 0; r < s.n_rows; r++) {
        float *const x = p->x + r * ld_x(&s);
        for (int32_t o = 0; o < s.n_out; o++) {
            const float *const w = p->w + (ptrdiff_t)o * s.n_in;
            double sum = 0.0;
            for (int32_t k = 0; k < s.n_in; k++) {
                sum += (double)x[k] * (double)w[k];
            }
            p->want[(ptrdiff_t)r * s.n_out + o] = sum;
        }
        for (int32_t k = s.n_in; k < ld_x(&s); k++) {
            x[k] = NAN; // beyond the columns: not to be used
        }
    }
    const struct backend *b = check_backend();
    assert_status_ok(b->matrix_new(stream, DTYPE_BF16, s.n_out, s.n_in, &p->weight));
    const struct matrix_write_args write = {.matrix = p->weight,
                                            .n_rows = s.n_out,
                                            .src = p->w,
                                            .src_dtype = DTYPE_F32,
                                            .ld_src = s.n_in};
    assert_status_ok(b->matrix_write(stream, &write));
    p->device_x = device_bf16(stream, p->x, n_x);
    p->device_out =
        device_new(stream, (size_t)s.n_rows * (size_t)ld_out(&s) * dtype_bytes(s.out_dtype));
}

static void problem_destroy(struct problem *p, struct backend_stream *stream)
{
    device_free(stream, p->device_x);
    device_free(stream, p->device_out);
    check_backend()->matrix_free(p->weight);
    free(p->w);
    free(p->x);
    free(p->want);
}

static struct matmul_args args_of(const struct problem *p)
{
    return (struct matmul_args){
        .weight = p->weight,
        .x = p->device_x,
        .ld_x = ld_x(&p->shape),
        .n_rows = p->shape.n_rows,
        .out = p->device_out,
        .ld_out = ld_out(&p->shape),
        .out_dtype = p->shape.out_dtype,
    };
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

static void check_shape(struct backend_stream *stream, struct shape s)
{
    struct problem p;
    problem_init(&p, stream, s);
    const struct matmul_args args = args_of(&p);
    assert_status_ok(check_backend()->matmul(stream, &args));
    float *const got = read_out(&p, stream);
    const struct tolerance tolerance = {.atol = sum_result.atol,
                                        .rtol = s.out_dtype == DTYPE_BF16 ? bf16_result.rtol
                                                                          : sum_result.rtol};
    for (int32_t r = 0; r < s.n_rows; r++) {
        const float *const row = got + r * ld_out(&s);
        assert_all_close(row, p.want + (ptrdiff_t)r * s.n_out, (size_t)s.n_out, tolerance,
                         "matmul");
        for (int64_t o = s.n_out; o < ld_out(&s); o++) {
            assert_true(isnan(row[o])); // the poison between rows
        }
    }
    free(got);
    problem_destroy(&p, stream);
}

static void test_matmul_of_few_rows_matches_float64(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    for (int32_t n_rows = 1; n_rows <= CUDA_MATMUL_SMALL_ROWS; n_rows++) {
        const int32_t n_in = 1 + (int32_t)test_random_below(700);
        check_shape(stream, (struct shape){.n_rows = n_rows,
                                           .n_out = 1 + (int32_t)test_random_below(70),
                                           .n_in = n_in,
                                           .x_gap = (8 - n_in % 8) % 8 + 8,
                                           .out_gap = 3,
                                           .out_dtype = n_rows % 2 ? DTYPE_F32 : DTYPE_BF16});
    }
    check_stream_done(stream);
}

static void test_matmul_takes_odd_shapes(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {.n_rows = 1, .n_out = 1, .n_in = 1, .out_dtype = DTYPE_F32},
        {.n_rows = 8, .n_out = 17, .n_in = 7, .out_dtype = DTYPE_BF16}, // rows of x unaligned
        {.n_rows = 3, .n_out = 15, .n_in = 33, .out_gap = 1, .out_dtype = DTYPE_BF16},
        {.n_rows = 2, .n_out = 16, .n_in = 128, .x_gap = 1, .out_dtype = DTYPE_F32},
        {.n_rows = 5, .n_out = 33, .n_in = 1023, .x_gap = 9, .out_dtype = DTYPE_F32},
        {.n_rows = 7, .n_out = 40, .n_in = 2056, .out_dtype = DTYPE_BF16}, // 16 warps a block
        {.n_rows = 4, .n_out = 7000, .n_in = 24, .out_dtype = DTYPE_F32},  // 4 warps a block
        {.n_rows = 9, .n_out = 21, .n_in = 100, .out_gap = 5, .out_dtype = DTYPE_F32},
        {.n_rows = 40, .n_out = 16, .n_in = 64, .out_dtype = DTYPE_BF16},
        {.n_rows = 27, .n_out = 19, .n_in = 75, .out_gap = 2, .out_dtype = DTYPE_BF16},
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check_shape(stream, shapes[i]);
    }
    check_stream_done(stream);
}

/* Row r alone, and with others before and after it: the same bits. */
static void test_matmul_bits_do_not_depend_on_other_rows(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct problem p;
    const struct shape s = {.n_rows = 8, .n_out = 50, .n_in = 1500, .out_dtype = DTYPE_F32};
    problem_init(&p, stream, s);
    struct matmul_args args = args_of(&p);
    assert_status_ok(check_backend()->matmul(stream, &args));
    float *const want = read_out(&p, stream);
    for (int32_t n_rows = 1; n_rows < 8; n_rows++) {
        const int32_t first = (int32_t)test_random_below((uint64_t)(9 - n_rows));
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
    check_stream_done(stream);
}

static void test_matmul_of_no_rows_does_nothing(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct problem p;
    problem_init(&p, stream,
                 (struct shape){.n_rows = 1, .n_out = 4, .n_in = 8, .out_dtype = DTYPE_F32});
    struct matmul_args args = args_of(&p);
    args.n_rows = 0;
    assert_status_ok(check_backend()->matmul(stream, &args));
    float *const got = read_out(&p, stream);
    assert_true(isnan(got[0]));
    free(got);
    problem_destroy(&p, stream);
    check_stream_done(stream);
}

static void test_matmul_refuses_bad_shapes(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct problem p;
    problem_init(&p, stream,
                 (struct shape){.n_rows = 2, .n_out = 4, .n_in = 8, .out_dtype = DTYPE_F32});
    const struct matmul_args good = args_of(&p);
    struct matmul_args bad[4] = {good, good, good, good};
    bad[0].ld_x = 7;
    bad[1].ld_out = 3;
    bad[2].out_dtype = DTYPE_F16;
    bad[3].n_rows = -1;
    for (size_t i = 0; i < 4; i++) {
        assert_status_code(check_backend()->matmul(stream, &bad[i]), STATUS_INVALID_ARGUMENT);
    }
    problem_destroy(&p, stream);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_of_few_rows_matches_float64),
        cmocka_unit_test(test_matmul_takes_odd_shapes),
        cmocka_unit_test(test_matmul_bits_do_not_depend_on_other_rows),
        cmocka_unit_test(test_matmul_of_no_rows_does_nothing),
        cmocka_unit_test(test_matmul_refuses_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

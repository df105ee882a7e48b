#include <math.h>

#include "tests/kernels/cuda/cuda_check.h"

#define EPS 1e-5f

struct norm_case {
    int32_t n_rows, n_columns;
    int kind;
    bool delta, rows, norm;
};

/* x and out of one row, in place, in float64. */
static void reference_row(const struct norm_case *c, const float *weight, const float *bias,
                          const double *x, double *out)
{
    const size_t n = (size_t)c->n_columns;
    double mean = 0.0, squares = 0.0;
    for (size_t i = 0; c->kind == NORM_LAYER && i < n; i++) {
        mean += x[i] / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        squares += (x[i] - mean) * (x[i] - mean) / (double)n;
    }
    for (size_t i = 0; i < n; i++) {
        out[i] = (x[i] - mean) / sqrt(squares + (double)EPS) * (double)weight[i] +
                 (c->kind == NORM_LAYER ? (double)bias[i] : 0.0);
    }
}

/* Inputs on host and device; x has twice as many rows as are chosen by an index. */
struct norm_data {
    int32_t n_x_rows;
    int32_t *rows;
    float *x, *delta, *weight, *bias;
    void *d_rows, *d_x, *d_delta, *d_weight, *d_bias, *d_out;
};

static void data_new(struct backend_stream *stream, const struct norm_case *c, struct norm_data *d)
{
    d->n_x_rows = c->rows ? 2 * c->n_rows + 1 : c->n_rows;
    const size_t n = (size_t)d->n_x_rows * (size_t)c->n_columns, n_columns = (size_t)c->n_columns;
    d->rows = must_alloc((size_t)c->n_rows * sizeof *d->rows);
    for (int32_t i = 0; i < c->n_rows; i++) {
        d->rows[i] = c->rows ? 2 * (c->n_rows - 1 - i) + 1 : i; // distinct, descending
    }
    d->x = random_values(n, 4.0);
    for (size_t i = 0; i < n; i++) {
        d->x[i] += 10.0f; // a mean that is not zero
    }
    d->delta = random_bf16_values(n, 2.0);
    d->weight = random_values(n_columns, 2.0);
    d->bias = random_values(n_columns, 2.0);
    d->d_rows = device_copy(stream, d->rows, (size_t)c->n_rows * sizeof *d->rows);
    d->d_x = device_copy(stream, d->x, n * sizeof *d->x);
    d->d_delta = device_bf16(stream, d->delta, n);
    d->d_weight = device_copy(stream, d->weight, n_columns * sizeof *d->weight);
    d->d_bias = device_copy(stream, d->bias, n_columns * sizeof *d->bias);
    d->d_out = device_new(stream, (size_t)c->n_rows * n_columns * sizeof(uint16_t));
}

static void data_free(struct backend_stream *stream, struct norm_data *d)
{
    void *const device[] = {d->d_rows, d->d_x, d->d_delta, d->d_weight, d->d_bias, d->d_out};
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) {
        device_free(stream, device[i]);
    }
    free(d->rows);
    free(d->x);
    free(d->delta);
    free(d->weight);
    free(d->bias);
}

static struct add_norm_args args_of(const struct norm_case *c, const struct norm_data *d)
{
    return (struct add_norm_args){
        .x = d->d_x,
        .delta = c->delta ? d->d_delta : NULL,
        .rows = c->rows ? d->d_rows : NULL,
        .n_rows = c->n_rows,
        .n_columns = c->n_columns,
        .kind = c->kind,
        .weight = d->d_weight,
        .bias = c->norm && c->kind == NORM_LAYER ? d->d_bias : NULL,
        .eps = EPS,
        .out = c->norm ? d->d_out : NULL,
    };
}

/* Rows of x that were chosen, with delta added; the others as they were. */
static void check_x(struct backend_stream *stream, const struct norm_case *c,
                    const struct norm_data *d)
{
    const size_t n_columns = (size_t)c->n_columns, n = (size_t)d->n_x_rows * n_columns;
    float *want = must_alloc(n * sizeof *want), *got = must_alloc(n * sizeof *got);
    memcpy(want, d->x, n * sizeof *want);
    for (int32_t i = 0; c->delta && i < c->n_rows; i++) {
        const size_t at = (size_t)d->rows[i] * n_columns;
        for (size_t j = at; j < at + n_columns; j++) {
            want[j] += d->delta[j]; // one rounding, as on the device
        }
    }
    device_read(stream, got, d->d_x, n * sizeof *got);
    assert_same_bytes(got, want, n * sizeof *got, "x");
    free(want);
    free(got);
}

static void check_out(struct backend_stream *stream, const struct norm_case *c,
                      const struct norm_data *d)
{
    const size_t n_columns = (size_t)c->n_columns;
    float *got = device_read_bf16(stream, d->d_out, (size_t)c->n_rows * n_columns);
    double *x = must_alloc(n_columns * sizeof *x), *want = must_alloc(n_columns * sizeof *want);
    for (int32_t i = 0; i < c->n_rows; i++) {
        const size_t at = (size_t)d->rows[i] * n_columns;
        for (size_t j = 0; j < n_columns; j++) {
            x[j] = (double)(d->x[at + j] + (c->delta ? d->delta[at + j] : 0.0f));
        }
        reference_row(c, d->weight, d->bias, x, want);
        assert_all_close(got + (size_t)i * n_columns, want, n_columns, bf16_result, "add_norm");
    }
    free(got);
    free(x);
    free(want);
}

static void check_case(struct backend_stream *stream, const struct norm_case *c)
{
    struct norm_data data;
    data_new(stream, c, &data);
    const struct add_norm_args args = args_of(c, &data);
    assert_status_ok(check_backend()->add_norm(stream, &args));
    check_x(stream, c, &data);
    if (c->norm) {
        check_out(stream, c, &data);
    }
    data_free(stream, &data);
}

static void test_cuda_add_norm_matches_float64(void **state)
{
    (void)state;
    // One, two, four eights a thread, and rows that are read again; whole eights and not.
    static const int32_t columns[] = {1,    3,    8,    40,   577,   1024,  2049,
                                      4096, 5120, 8191, 9216, 16384, 16400, 20001};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        for (int kind = NORM_RMS; kind <= NORM_LAYER; kind++) {
            const struct norm_case with = {.n_rows = 1 + (int32_t)test_random_below(4),
                                           .n_columns = columns[i],
                                           .kind = kind,
                                           .delta = true,
                                           .rows = test_random_below(2) == 0,
                                           .norm = true};
            check_case(stream, &with);
        }
    }
    check_stream_done(stream);
}

static void test_cuda_add_norm_halves(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    for (int which = 0; which < 8; which++) {
        const struct norm_case half = {.n_rows = 3,
                                       .n_columns = 264,
                                       .kind = which & 4 ? NORM_LAYER : NORM_RMS,
                                       .delta = (which & 1) != 0,
                                       .rows = (which & 2) != 0,
                                       .norm = (which & 1) == 0};
        check_case(stream, &half);
    }
    check_stream_done(stream);
}

/* The bits of a row do not depend on the rows beside it. */
static void test_cuda_add_norm_row_alone(void **state)
{
    (void)state;
    const struct norm_case all = {.n_rows = 5, .n_columns = 4104, .kind = NORM_LAYER, .norm = true};
    struct backend_stream *stream = check_stream();
    struct norm_data data;
    data_new(stream, &all, &data);
    struct add_norm_args args = args_of(&all, &data);
    const size_t row_bytes = (size_t)all.n_columns * sizeof(uint16_t);
    char *together = must_alloc(5 * row_bytes), *alone = must_alloc(row_bytes);
    assert_status_ok(check_backend()->add_norm(stream, &args));
    device_read(stream, together, data.d_out, 5 * row_bytes);
    args.n_rows = 1;
    args.x = (float *)data.d_x + (size_t)3 * (size_t)all.n_columns;
    assert_status_ok(check_backend()->add_norm(stream, &args));
    device_read(stream, alone, data.d_out, row_bytes);
    assert_same_bytes(alone, together + 3 * row_bytes, row_bytes, "row alone");
    free(together);
    free(alone);
    data_free(stream, &data);
    check_stream_done(stream);
}

static void test_cuda_add_norm_of_nothing_and_of_nonsense(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct add_norm_args args = {.n_columns = 8};
    assert_status_ok(check_backend()->add_norm(stream, &args));
    args.n_columns = 0;
    assert_status_code(check_backend()->add_norm(stream, &args), STATUS_INVALID_ARGUMENT);
    args = (struct add_norm_args){.n_columns = 8, .kind = 7};
    assert_status_says(check_backend()->add_norm(stream, &args), STATUS_INVALID_ARGUMENT, "kind 7");
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_add_norm_matches_float64),
        cmocka_unit_test(test_cuda_add_norm_halves),
        cmocka_unit_test(test_cuda_add_norm_row_alone),
        cmocka_unit_test(test_cuda_add_norm_of_nothing_and_of_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

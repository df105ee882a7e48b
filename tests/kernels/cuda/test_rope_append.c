#include <math.h>

#include "tests/kernels/cuda/cuda_check.h"
#include "tests/kernels/quantized_row.h"

enum { MAX_POSITIONS = 50, N_UNITS = 40, BLOCK_TOKENS = 4 };

struct rope_case {
    int32_t n_rows, n_q_heads, n_kv_heads, head_dim, rotary_dim;
    int kv_dtype;       /* DTYPE_BF16 or DTYPE_I8 */
    int64_t pad;        /* columns between rows */
    int64_t head_units; /* from one head's unit to the next one's */
};

/* Host inputs and their twins on the device. */
struct rope_data {
    int64_t ld_q, ld_kv;
    size_t n_q, n_kv, n_plane;
    float *q, *k, *v, *cos, *sin;
    int32_t positions[8], offsets[8];
    int64_t units[8];
    void *d_q, *d_k, *d_v, *d_cos, *d_sin, *d_positions, *d_offsets, *d_units, *d_keys, *d_values;
    void *d_key_scales, *d_value_scales;
};

/* Each row has a place in the cache of its own. */
static void draw_places(const struct rope_case *c, struct rope_data *d)
{
    for (int32_t i = 0; i < c->n_rows; i++) {
        d->positions[i] = (int32_t)test_random_below(MAX_POSITIONS);
        d->units[i] = c->head_units == 1 ? i / 2 * (int64_t)c->n_kv_heads : i / 2;
        d->offsets[i] = 2 * (i % 2) + 1;
    }
}

static void data_new(struct backend_stream *stream, const struct rope_case *c, struct rope_data *d)
{
    const size_t half = (size_t)c->rotary_dim / 2, n_table = MAX_POSITIONS * half;
    d->ld_q = (int64_t)c->n_q_heads * c->head_dim + c->pad;
    d->ld_kv = (int64_t)c->n_kv_heads * c->head_dim + c->pad;
    d->n_q = (size_t)(c->n_rows * d->ld_q);
    d->n_kv = (size_t)(c->n_rows * d->ld_kv);
    d->n_plane = (size_t)N_UNITS * BLOCK_TOKENS * (size_t)c->head_dim;
    d->q = random_bf16_values(d->n_q, 3.0);
    d->k = random_bf16_values(d->n_kv, 3.0);
    d->v = random_bf16_values(d->n_kv, 3.0);
    d->cos = random_values(n_table, 1.0);
    d->sin = random_values(n_table, 1.0);
    draw_places(c, d);
    d->d_q = device_bf16(stream, d->q, d->n_q);
    d->d_k = device_bf16(stream, d->k, d->n_kv);
    d->d_v = device_bf16(stream, d->v, d->n_kv);
    d->d_cos = device_copy(stream, d->cos, n_table * sizeof *d->cos);
    d->d_sin = device_copy(stream, d->sin, n_table * sizeof *d->sin);
    d->d_positions = device_copy(stream, d->positions, sizeof d->positions);
    d->d_offsets = device_copy(stream, d->offsets, sizeof d->offsets);
    d->d_units = device_copy(stream, d->units, sizeof d->units);
    d->d_keys = device_new(stream, d->n_plane * sizeof(uint16_t));
    d->d_values = device_new(stream, d->n_plane * sizeof(uint16_t));
    d->d_key_scales = device_new(stream, (size_t)N_UNITS * BLOCK_TOKENS * sizeof(uint16_t));
    d->d_value_scales = device_new(stream, (size_t)N_UNITS * BLOCK_TOKENS * sizeof(uint16_t));
}

static void data_free(struct backend_stream *stream, struct rope_data *d)
{
    void *const device[] = {d->d_q,    d->d_k,         d->d_v,          d->d_cos,
                            d->d_sin,  d->d_positions, d->d_offsets,    d->d_units,
                            d->d_keys, d->d_values,    d->d_key_scales, d->d_value_scales};
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++) {
        device_free(stream, device[i]);
    }
    free(d->q);
    free(d->k);
    free(d->v);
    free(d->cos);
    free(d->sin);
}

static void turn_head(const struct rope_case *c, const struct rope_data *d, int32_t row,
                      const float *head, double *want)
{
    const int32_t half = c->rotary_dim / 2;
    for (int32_t j = 0; j < c->head_dim; j++) {
        want[j] = (double)head[j];
    }
    for (int32_t j = 0; j < half; j++) {
        const double cos = (double)d->cos[d->positions[row] * half + j];
        const double sin = (double)d->sin[d->positions[row] * half + j];
        want[j] = (double)head[j] * cos - (double)head[j + half] * sin;
        want[j + half] = (double)head[j + half] * cos + (double)head[j] * sin;
    }
}

/* Compares turned heads in place, and marks what has been compared. */
static void check_heads(const struct rope_case *c, const struct rope_data *d, const float *in,
                        const float *got, int32_t n_heads)
{
    double *want = must_alloc((size_t)c->head_dim * sizeof *want);
    const int64_t ld = (int64_t)n_heads * c->head_dim + c->pad;
    for (int32_t row = 0; row < c->n_rows; row++) {
        for (int32_t head = 0; head < n_heads; head++) {
            const int64_t at = row * ld + (int64_t)head * c->head_dim;
            turn_head(c, d, row, in + at, want);
            assert_all_close(got + at, want, (size_t)c->head_dim, bf16_result, "turned head");
        }
        const int64_t pad = row * ld + (int64_t)n_heads * c->head_dim;
        assert_same_bytes(got + pad, in + pad, (size_t)c->pad * sizeof *in, "between rows");
    }
    free(want);
}

/* The planes hold the rows of `kept`, [M, H_kv, D_h] as read from the device, and poison everywhere else. */
static void check_plane(const struct rope_case *c, const struct rope_data *d, const float *kept,
                        const float *plane)
{
    float *want = must_alloc(d->n_plane * sizeof *want);
    memset(want, 0xff, d->n_plane * sizeof *want);
    for (int32_t row = 0; row < c->n_rows; row++) {
        for (int32_t head = 0; head < c->n_kv_heads && d->units[row] >= 0; head++) {
            const int64_t unit = d->units[row] + head * c->head_units;
            memcpy(want + (unit * BLOCK_TOKENS + d->offsets[row]) * c->head_dim,
                   kept + row * d->ld_kv + (int64_t)head * c->head_dim,
                   (size_t)c->head_dim * sizeof *want);
        }
    }
    for (size_t i = 0; i < d->n_plane; i++) {
        if (!(plane[i] == want[i] || (isnan(plane[i]) && isnan(want[i])))) {
            fail_msg("plane [%zu]: got %g, want %g", i, (double)plane[i], (double)want[i]);
        }
    }
    free(want);
}

/* Of int8, read from the device. */
struct planes {
    int8_t rows[N_UNITS * BLOCK_TOKENS * 128];
    uint16_t scales[N_UNITS * BLOCK_TOKENS];
};

static void planes_read(struct backend_stream *stream, const struct rope_data *d, const void *rows,
                        const void *scales, struct planes *planes)
{
    device_read(stream, planes->rows, rows, d->n_plane);
    device_read(stream, planes->scales, scales, sizeof planes->scales);
}

/*
 * Planes of int8: rows and scales as float64 makes them of `kept`; a value may be the other one of two that are as near. Poison
 * everywhere else.
 */
static void check_int8(const struct rope_case *c, const struct rope_data *d, const float *kept,
                       const struct planes *got)
{
    bool seen[N_UNITS * BLOCK_TOKENS] = {false};
    float x[128], exact[128];
    int8_t want[128];
    for (int32_t i = 0; i < c->n_rows * c->n_kv_heads; i++) {
        const int32_t row = i / c->n_kv_heads, head = i % c->n_kv_heads, dim = c->head_dim;
        const int64_t at = (d->units[row] + head * c->head_units) * BLOCK_TOKENS + d->offsets[row];
        if (d->units[row] < 0) {
            continue;
        }
        memcpy(x, kept + row * d->ld_kv + (int64_t)head * dim, (size_t)dim * sizeof *x);
        memcpy(exact, x, sizeof exact);
        const uint16_t scale = quantized_row(x, dim, want);
        assert_int_equal(got->scales[at], scale);
        const double unit = (double)bf16_value(scale);
        for (int32_t j = 0; j < dim; j++) {
            const double value = got->rows[at * dim + j];
            if (fabs(value - want[j]) > 0 &&
                fabs(fabs((double)exact[j] - value * unit) - 0.5 * unit) > 1e-5 * unit) {
                fail_msg("row %d, column %d: got %g, want %d", row, j, value, want[j]);
            }
        }
        seen[at] = true;
    }
    for (int64_t at = 0; at < (int64_t)N_UNITS * BLOCK_TOKENS; at++) {
        for (int32_t j = 0; j < c->head_dim && !seen[at]; j++) {
            assert_int_equal(got->rows[at * c->head_dim + j], -1);
        }
        assert_true(seen[at] || got->scales[at] == 0xffff);
    }
}

static void check_kept(struct backend_stream *stream, const struct rope_case *c,
                       const struct rope_data *d, const float *k)
{
    if (c->kv_dtype == DTYPE_I8) {
        struct planes got;
        planes_read(stream, d, d->d_keys, d->d_key_scales, &got);
        check_int8(c, d, k, &got);
        planes_read(stream, d, d->d_values, d->d_value_scales, &got);
        check_int8(c, d, d->v, &got);
        return;
    }
    float *keys = device_read_bf16(stream, d->d_keys, d->n_plane);
    float *values = device_read_bf16(stream, d->d_values, d->n_plane);
    check_plane(c, d, k, keys);
    check_plane(c, d, d->v, values);
    free(keys);
    free(values);
}

static struct rope_append_args args_of(const struct rope_case *c, const struct rope_data *d,
                                       void *k)
{
    return (struct rope_append_args){.q = d->d_q,
                                     .ld_q = d->ld_q,
                                     .k = k,
                                     .v = d->d_v,
                                     .ld_kv = d->ld_kv,
                                     .n_rows = c->n_rows,
                                     .n_q_heads = c->n_q_heads,
                                     .n_kv_heads = c->n_kv_heads,
                                     .head_dim = c->head_dim,
                                     .rotary_dim = c->rotary_dim,
                                     .block_tokens = BLOCK_TOKENS,
                                     .positions = d->d_positions,
                                     .cos = d->d_cos,
                                     .sin = d->d_sin,
                                     .max_positions = MAX_POSITIONS,
                                     .units = d->d_units,
                                     .head_units = c->head_units,
                                     .offsets = d->d_offsets,
                                     .k_plane = d->d_keys,
                                     .v_plane = d->d_values,
                                     .k_scales = d->d_key_scales,
                                     .v_scales = d->d_value_scales,
                                     .kv_dtype = c->kv_dtype};
}

/* Of rows of unit -1 the queries are turned alone; the others are as ever. */
static void check_rows_of_others(struct backend_stream *stream, const struct rope_case *c)
{
    struct rope_data d;
    data_new(stream, c, &d);
    for (int32_t row = 0; row < c->n_rows; row += 2) {
        d.units[row] = -1;
    }
    device_free(stream, d.d_units);
    d.d_units = device_copy(stream, d.units, sizeof d.units);
    const struct rope_append_args args = args_of(c, &d, d.d_k);
    assert_status_ok(check_backend()->rope_append(stream, &args));
    float *q = device_read_bf16(stream, d.d_q, d.n_q), *k = device_read_bf16(stream, d.d_k, d.n_kv);
    check_heads(c, &d, d.q, q, c->n_q_heads);
    check_kept(stream, c, &d, k);
    for (int32_t row = 0; row < c->n_rows; row += 2) {
        assert_same_bytes(k + row * d.ld_kv, d.k + row * d.ld_kv, (size_t)d.ld_kv * sizeof *k,
                          "left alone");
    }
    free(q);
    free(k);
    data_free(stream, &d);
}

static void test_cuda_rope_append_keeps_no_rows_of_others(void **state)
{
    (void)state;
    static const struct rope_case cases[] = {
        {.n_rows = 7,
         .n_q_heads = 3,
         .n_kv_heads = 2,
         .head_dim = 64,
         .rotary_dim = 64,
         .head_units = 1,
         .kv_dtype = DTYPE_BF16},
        {.n_rows = 5,
         .n_q_heads = 0,
         .n_kv_heads = 1,
         .head_dim = 80,
         .rotary_dim = 20,
         .head_units = 1,
         .kv_dtype = DTYPE_I8},
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        check_rows_of_others(stream, &cases[i]);
    }
    check_stream_done(stream);
}

static void check_case(struct backend_stream *stream, const struct rope_case *c)
{
    struct rope_data d;
    data_new(stream, c, &d);
    const struct rope_append_args args = args_of(c, &d, d.d_k);
    assert_status_ok(check_backend()->rope_append(stream, &args));
    float *q = device_read_bf16(stream, d.d_q, d.n_q), *k = device_read_bf16(stream, d.d_k, d.n_kv);
    check_heads(c, &d, d.q, q, c->n_q_heads);
    check_heads(c, &d, d.k, k, c->n_kv_heads);
    check_kept(stream, c, &d, k);
    free(q);
    free(k);
    data_free(stream, &d);
}

static void test_cuda_rope_append_matches_float64(void **state)
{
    (void)state;
    static const struct rope_case cases[] = {
        {.n_rows = 1, .n_q_heads = 32, .n_kv_heads = 4, .head_dim = 128, .rotary_dim = 128},
        {.n_rows = 5, .n_q_heads = 8, .n_kv_heads = 2, .head_dim = 64, .rotary_dim = 64, .pad = 8},
        {.n_rows = 5, .n_q_heads = 8, .n_kv_heads = 2, .head_dim = 64, .rotary_dim = 64, .pad = 3},
        {.n_rows = 4, .n_q_heads = 5, .n_kv_heads = 5, .head_dim = 80, .rotary_dim = 20},
        {.n_rows = 4, .n_q_heads = 5, .n_kv_heads = 5, .head_dim = 96, .rotary_dim = 32, .pad = 16},
        {.n_rows = 3, .n_q_heads = 3, .n_kv_heads = 1, .head_dim = 6, .rotary_dim = 6, .pad = 1},
        {.n_rows = 3, .n_q_heads = 3, .n_kv_heads = 3, .head_dim = 10, .rotary_dim = 2, .pad = 4},
        {.n_rows = 7, .n_q_heads = 4, .n_kv_heads = 0, .head_dim = 32, .rotary_dim = 32},
        {.n_rows = 7, .n_q_heads = 0, .n_kv_heads = 2, .head_dim = 32, .rotary_dim = 16},
        {.n_rows = 2, .n_q_heads = 2, .n_kv_heads = 2, .head_dim = 24, .rotary_dim = 0},
    };
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rope_case c = cases[i];
        static const int dtypes[] = {DTYPE_BF16, DTYPE_I8};
        for (int k = 0; k < 4; k++) {
            c.head_units = k < 2 ? 1 : 7; // heads far apart
            c.kv_dtype = dtypes[k % 2];
            check_case(stream, &c);
        }
    }
    check_stream_done(stream);
}

/* Rows that are zero, or too small for a scale, or not all numbers, beside some that are. */
static void test_cuda_rope_append_marks_rows_that_are_no_numbers(void **state)
{
    (void)state;

    static const struct {
        float value;
        uint16_t scale;
    } rows[] = {
        {0.0f, 0}, {1e-37f, 0}, {(float)NAN, 0x7fff}, {-INFINITY, 0x7fff}, {127.0f, 0x3f80}};

    enum { N = sizeof rows / sizeof rows[0], DIM = 64 };

    struct backend_stream *stream = check_stream();
    const struct rope_case c = {
        .n_rows = N, .n_kv_heads = 1, .head_dim = DIM, .head_units = 1, .kv_dtype = DTYPE_I8};
    struct rope_data d;
    data_new(stream, &c, &d);
    float k[N * DIM] = {0};
    for (int row = 0; row < N; row++) {
        k[row * DIM + 41] = rows[row].value;
    }
    void *const device = device_bf16(stream, k, (size_t)N * DIM);
    const struct rope_append_args args = args_of(&c, &d, device);
    assert_status_ok(check_backend()->rope_append(stream, &args));
    struct planes got;
    planes_read(stream, &d, d.d_keys, d.d_key_scales, &got);
    for (int row = 0; row < N; row++) {
        const int64_t at = d.units[row] * BLOCK_TOKENS + d.offsets[row];
        const uint16_t scale = got.scales[at];
        assert_true(rows[row].scale == 0x7fff ? (scale & 0x7fff) > 0x7f80
                                              : scale == rows[row].scale);
        assert_int_equal(got.rows[at * DIM + 41], scale == 0x3f80 ? 127 : 0);
        assert_int_equal(got.rows[at * DIM + 40], 0);
    }
    device_free(stream, device);
    data_free(stream, &d);
    check_stream_done(stream);
}

static void test_cuda_rope_append_of_nothing_and_of_nonsense(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct rope_append_args args = {.head_dim = 8, .rotary_dim = 8, .n_q_heads = 1};
    assert_status_ok(check_backend()->rope_append(stream, &args));
    args.rotary_dim = 7;
    assert_status_code(check_backend()->rope_append(stream, &args), STATUS_INVALID_ARGUMENT);
    args.rotary_dim = 10;
    assert_status_code(check_backend()->rope_append(stream, &args), STATUS_INVALID_ARGUMENT);
    args = (struct rope_append_args){
        .head_dim = 8, .n_kv_heads = 1, .block_tokens = 16, .kv_dtype = DTYPE_F32};
    assert_status_says(check_backend()->rope_append(stream, &args), STATUS_INVALID_ARGUMENT,
                       "dtype float32");
    args.kv_dtype = DTYPE_I8;
    args.head_dim = 160;
    assert_status_says(check_backend()->rope_append(stream, &args), STATUS_INVALID_ARGUMENT,
                       "160 columns (at most 128 of int8)");
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_rope_append_keeps_no_rows_of_others),
        cmocka_unit_test(test_cuda_rope_append_matches_float64),
        cmocka_unit_test(test_cuda_rope_append_marks_rows_that_are_no_numbers),
        cmocka_unit_test(test_cuda_rope_append_of_nothing_and_of_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/kernels/kernel_check.h"

#include <math.h>

#include "kernels/rope_table.h"

enum { MAX_POSITIONS = 300, UNITS = 160, BLOCK = 5, MAX_ROWS = 33, MAX_WIDTH = 3 * 128 };

/* Everything of one case: queries of Q heads, keys and values of KV heads, planes full of a pattern. */
struct fixture {
    struct rope_table table;
    struct rope_append_args args;
    int32_t positions[MAX_ROWS];
    int64_t units[MAX_ROWS];
    int32_t offsets[MAX_ROWS];
    float *q, *k, *v;             /* as given */
    float *q_out, *k_out, *v_out; /* as the op leaves them */
    unsigned char *planes[2];
    uint16_t *scales[2]; /* of int8 */
    size_t plane_bytes;
};

static void poison(const struct fixture *f)
{
    for (int i = 0; i < 2; i++) {
        memset(f->planes[i], 0xA5, f->plane_bytes);
        memset(f->scales[i], 0xA5, (size_t)UNITS * BLOCK * sizeof *f->scales[i]);
    }
}

static struct fixture *fixture_new(int32_t head_dim, int32_t rotary_dim, int32_t n_rows,
                                   int kv_dtype)
{
    struct fixture *f = must_alloc(sizeof *f);
    memset(f, 0, sizeof *f);
    assert_status_ok(rope_table_init(&f->table, MAX_POSITIONS, rotary_dim, 10000.0));
    struct rope_append_args *a = &f->args;
    *a = (struct rope_append_args){
        .ld_q = 3 * head_dim + 2,
        .ld_kv = 2 * head_dim + 3,
        .n_rows = n_rows,
        .n_q_heads = 3,
        .n_kv_heads = 2,
        .head_dim = head_dim,
        .rotary_dim = rotary_dim,
        .block_tokens = BLOCK,
        .cos = f->table.cos,
        .sin = f->table.sin,
        .max_positions = MAX_POSITIONS,
        .head_units = n_rows % 2 == 0 ? 1 : 71, // heads side by side, or each in a part of its own
        .kv_dtype = kv_dtype,
    };
    const size_t n_q = (size_t)n_rows * (size_t)a->ld_q, n_kv = (size_t)n_rows * (size_t)a->ld_kv;
    f->q = random_new(n_q, 1.0);
    f->k = random_new(n_kv, 3.0);
    f->v = random_new(n_kv, 3.0);
    f->q_out = guarded_new(n_q);
    f->k_out = guarded_new(n_kv);
    f->v_out = guarded_new(n_kv);
    memcpy(f->q_out, f->q, n_q * sizeof *f->q);
    memcpy(f->k_out, f->k, n_kv * sizeof *f->k);
    memcpy(f->v_out, f->v, n_kv * sizeof *f->v);
    for (int32_t i = 0; i < n_rows; i++) {
        f->positions[i] = (int32_t)test_random_below(MAX_POSITIONS);
        f->units[i] = (int64_t)(i * 8 % 35) * 2; // distinct: 8 and 35 share no factor
        f->offsets[i] = i % BLOCK;
    }
    f->plane_bytes = (size_t)UNITS * BLOCK * (size_t)head_dim * dtype_bytes(kv_dtype);
    for (int i = 0; i < 2; i++) {
        f->planes[i] = must_alloc(f->plane_bytes);
        f->scales[i] = must_alloc((size_t)UNITS * BLOCK * sizeof *f->scales[i]);
    }
    poison(f);
    a->q = f->q_out;
    a->k = f->k_out;
    a->v = f->v_out;
    a->positions = f->positions;
    a->units = f->units;
    a->offsets = f->offsets;
    a->k_plane = f->planes[0];
    a->v_plane = f->planes[1];
    a->k_scales = f->scales[0];
    a->v_scales = f->scales[1];
    return f;
}

static void fixture_free(struct fixture *f)
{
    float *const arrays[] = {f->q, f->k, f->v, f->q_out, f->k_out, f->v_out};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        guarded_free(arrays[i]);
    }
    free(f->planes[0]);
    free(f->planes[1]);
    free(f->scales[0]);
    free(f->scales[1]);
    rope_table_destroy(&f->table);
    free(f);
}

/* The turn in float64, from the table's own angles: the table is tested against its definition elsewhere. */
static void turned(const struct rope_append_args *a, int32_t row, const float *x, int32_t n_heads,
                   double *want)
{
    const int32_t half = a->rotary_dim / 2;
    for (int32_t i = 0; i < n_heads * a->head_dim; i++) {
        const int32_t d = i % a->head_dim;
        const float *const head = x + (i - d);
        want[i] = (double)x[i];
        if (d < a->rotary_dim) {
            const int32_t pair = d % half;
            const double c = (double)a->cos[a->positions[row] * half + pair];
            const double s = (double)a->sin[a->positions[row] * half + pair];
            const double first = (double)head[pair], second = (double)head[pair + half];
            want[i] = d < half ? first * c - second * s : second * c + first * s;
        }
    }
}

/* q and k of every row are turned, v and what lies between rows is as it was. */
static void check_turns(const struct fixture *f)
{
    const struct rope_append_args *a = &f->args;
    const struct tolerance tolerance = kernel_tolerance(TOLERANCE_ROPE);
    double want[MAX_WIDTH];
    for (int32_t row = 0; row < a->n_rows; row++) {
        const size_t q = (size_t)row * (size_t)a->ld_q, kv = (size_t)row * (size_t)a->ld_kv;
        const size_t n_q = (size_t)a->n_q_heads * (size_t)a->head_dim;
        const size_t n_kv = (size_t)a->n_kv_heads * (size_t)a->head_dim;
        turned(a, row, f->q + q, a->n_q_heads, want);
        assert_all_close(f->q_out + q, want, n_q, tolerance, "q");
        assert_same_bits(f->q_out + q + n_q, f->q + q + n_q, 2, "between rows of q");
        if (f->units[row] < 0) {
            assert_same_bits(f->k_out + kv, f->k + kv, n_kv, "left alone");
        } else {
            turned(a, row, f->k + kv, a->n_kv_heads, want);
            assert_all_close(f->k_out + kv, want, n_kv, tolerance, "k");
        }
        assert_same_bits(f->k_out + kv + n_kv, f->k + kv + n_kv, 3, "between rows of k");
        assert_same_bits(f->v_out + kv, f->v + kv, (size_t)a->ld_kv, "v");
    }
}

/* The row's place: among the rows of a plane. */
static int64_t place_of(const struct fixture *f, int32_t row, int32_t head)
{
    return (f->units[row] + head * f->args.head_units) * BLOCK + f->offsets[row];
}

/*
 * Rows of int8 by what they promise, in float64: a scale within half a unit of bfloat16's last place of absmax / 127, and
 * each value the integer nearest to x / scale, but for ties and the largest. Nothing else changed.
 */
static void check_quantized_row(const struct fixture *f, const float *x, const int8_t *values,
                                uint16_t scale_bits)
{
    const int32_t dim = f->args.head_dim;
    const uint32_t bits = (uint32_t)scale_bits << 16;
    float scale_f32;
    memcpy(&scale_f32, &bits, sizeof scale_f32);
    const double scale = (double)scale_f32;
    double most = 0.0;
    for (int32_t d = 0; d < dim; d++) {
        most = fmax(most, fabs((double)x[d]));
    }
    assert_true(fabs(scale - most / 127) <= scale * 0x1.001p-8);
    for (int32_t d = 0; d < dim; d++) {
        assert_true(abs(values[d]) <= 127);
        const double error = fabs((double)x[d] - values[d] * scale);
        assert_true(error <= 0.50001 * scale);
        assert_true(error <= 0.502 * most / 127);
    }
}

static void check_quantized(const struct fixture *f)
{
    const struct rope_append_args *a = &f->args;
    const float *const sources[2] = {f->k_out, f->v_out};
    for (int plane = 0; plane < 2; plane++) {
        unsigned char *seen = must_alloc((size_t)UNITS * BLOCK);
        memset(seen, 0, (size_t)UNITS * BLOCK);
        for (int32_t i = 0; i < a->n_rows * a->n_kv_heads; i++) {
            const int32_t row = i / a->n_kv_heads, head = i % a->n_kv_heads;
            if (f->units[row] < 0) {
                continue;
            }
            const int64_t at = place_of(f, row, head);
            check_quantized_row(f, sources[plane] + row * a->ld_kv + (int64_t)head * a->head_dim,
                                (const int8_t *)f->planes[plane] + at * a->head_dim,
                                f->scales[plane][at]);
            seen[at] = 1;
        }
        for (int64_t at = 0; at < (int64_t)UNITS * BLOCK; at++) {
            for (int32_t d = 0; d < a->head_dim && !seen[at]; d++) {
                assert_int_equal(f->planes[plane][at * a->head_dim + d], 0xA5);
            }
            assert_true(seen[at] || f->scales[plane][at] == 0xA5A5);
        }
        free(seen);
    }
}

/* The planes hold the turned keys and the values, rounded as they should be, and nothing else changed. */
static void check_planes(const struct fixture *f)
{
    if (f->args.kv_dtype == DTYPE_I8) {
        check_quantized(f);
        return;
    }
    const struct rope_append_args *a = &f->args;
    const float *const sources[2] = {f->k_out, f->v_out};
    const size_t element = dtype_bytes(a->kv_dtype);
    for (int plane = 0; plane < 2; plane++) {
        unsigned char *want = must_alloc(f->plane_bytes);
        memset(want, 0xA5, f->plane_bytes);
        for (int32_t i = 0; i < a->n_rows * a->n_kv_heads * a->head_dim; i++) {
            const int32_t column = i % (a->n_kv_heads * a->head_dim);
            const int32_t row = i / (a->n_kv_heads * a->head_dim);
            if (f->units[row] < 0) {
                continue;
            }
            const int64_t at =
                place_of(f, row, column / a->head_dim) * a->head_dim + column % a->head_dim;
            const float x = sources[plane][row * a->ld_kv + column];
            const uint16_t half = bits_bf16(x);
            memcpy(want + (size_t)at * element, element == 4 ? (const void *)&x : &half, element);
        }
        assert_memory_equal(f->planes[plane], want, f->plane_bytes);
        free(want);
    }
}

/* The op by halves and row by row: the same bits. */
static void check_halves(struct backend_stream *stream, const struct fixture *f)
{
    const struct rope_append_args *a = &f->args;
    const size_t n_q = (size_t)a->n_rows * (size_t)a->ld_q;
    const size_t n_kv = (size_t)a->n_rows * (size_t)a->ld_kv;
    float *q = guarded_new(n_q), *k = guarded_new(n_kv);
    memcpy(q, f->q, n_q * sizeof *q);
    memcpy(k, f->k, n_kv * sizeof *k);
    poison(f);
    for (int32_t row = 0; row < a->n_rows; row++) {
        struct rope_append_args half = *a;
        half.n_rows = 1;
        half.positions += row;
        half.q = q + row * a->ld_q;
        half.n_kv_heads = 0;
        assert_status_ok(cpu_rope_append(stream, &half));
        half.n_kv_heads = a->n_kv_heads;
        half.n_q_heads = 0;
        half.q = NULL;
        half.k = k + row * a->ld_kv;
        half.v = f->v + row * a->ld_kv;
        half.units += row;
        half.offsets += row;
        assert_status_ok(cpu_rope_append(stream, &half));
    }
    assert_same_bits(q, f->q_out, n_q, "queries alone");
    assert_same_bits(k, f->k_out, n_kv, "keys alone");
    check_planes(f);
    guarded_free(q);
    guarded_free(k);
}

static void check_sizes(struct backend_stream *stream)
{
    static const int32_t rows[] = {0, 1, 6, 33};
    static const int32_t dims[][2] = {{128, 128}, {80, 20}, {10, 6}, {2, 2}, {11, 4}};
    static const int dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_I8};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
            struct fixture *f = fixture_new(dims[d][0], dims[d][1], rows[r], dtypes[(r + d) % 3]);
            assert_status_ok(cpu_rope_append(stream, &f->args));
            check_turns(f);
            check_planes(f);
            check_halves(stream, f);
            fixture_free(f);
        }
    }
}

static void test_rope_append_matches_float64_whole_and_by_halves(void **state)
{
    (void)state;
    each_stream(check_sizes);
}

/* Rows of zeros, of the smallest and of the largest numbers, and rows that are not all numbers. */
static void check_odd_rows(struct backend_stream *stream)
{
    static const struct {
        float value;
        bool is_nan; /* the scale */
        bool is_zero;
    } rows[] = {{0.0f, false, true},       {-0.0f, false, true},    {1e-45f, false, true},
                {1e-37f, false, true},     {2e-36f, false, false},  {3e38f, false, false},
                {(float)NAN, true, false}, {INFINITY, true, false}, {-INFINITY, true, false}};

    enum { N = sizeof rows / sizeof rows[0], DIM = 11 };

    struct fixture *f = fixture_new(DIM, 2, N, DTYPE_I8);
    struct rope_append_args *a = &f->args;
    for (int32_t row = 0; row < N; row++) {
        for (int32_t d = 0; d < 2 * DIM; d++) {
            f->k_out[row * a->ld_kv + d] = rows[row].is_nan ? 1.0f : 0.0f;
            f->v_out[row * a->ld_kv + d] = rows[row].is_nan ? 1.0f : 0.0f;
        }
        // In one place of the first head, in another of the second: within a vector and in the rest.
        f->k_out[row * a->ld_kv + 3] = rows[row].value;
        f->k_out[row * a->ld_kv + DIM + DIM - 1] = rows[row].value;
        f->v_out[row * a->ld_kv + 3] = rows[row].value;
        f->v_out[row * a->ld_kv + DIM + DIM - 1] = rows[row].value;
    }
    assert_status_ok(cpu_rope_append(stream, a));
    for (int32_t i = 0; i < 4 * N; i++) {
        const int32_t row = i / 4, head = i / 2 % 2, plane = i % 2;
        const int64_t at = place_of(f, row, head);
        const int8_t *const values = (const int8_t *)f->planes[plane] + at * DIM;
        const uint16_t scale = f->scales[plane][at];
        const bool is_nan = (scale & 0x7FFF) > 0x7F80;
        assert_int_equal(is_nan, rows[row].is_nan);
        assert_int_equal(scale == 0, rows[row].is_zero);
        if (!is_nan && scale != 0) {
            const float *const source = plane == 0 ? f->k_out : f->v_out;
            check_quantized_row(f, source + row * a->ld_kv + (int64_t)head * DIM, values, scale);
        }
        for (int32_t d = 0; d < DIM && (is_nan || scale == 0); d++) {
            assert_int_equal(values[d], 0);
        }
    }
    fixture_free(f);
}

static void test_rope_append_marks_rows_that_are_no_numbers(void **state)
{
    (void)state;
    each_stream(check_odd_rows);
}

/* Of rows of unit -1 the queries are turned alone. */
static void check_rows_that_are_kept_elsewhere(struct backend_stream *stream)
{
    static const int dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_I8};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        struct fixture *f = fixture_new(12, 6, 7, dtypes[i]);
        for (int32_t row = 0; row < f->args.n_rows; row += 2) {
            f->units[row] = -1;
        }
        assert_status_ok(cpu_rope_append(stream, &f->args));
        check_turns(f);
        check_planes(f);
        fixture_free(f);
    }
}

static void test_rope_append_keeps_no_rows_of_others(void **state)
{
    (void)state;
    each_stream(check_rows_that_are_kept_elsewhere);
}

static void test_rope_append_refuses_places_that_are_not_there(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    struct fixture *f = fixture_new(4, 4, 1, DTYPE_F32);
    struct rope_append_args args = f->args;
    f->positions[0] = MAX_POSITIONS;
    assert_status_says(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT, "position 300");
    f->positions[0] = -1;
    assert_status_says(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT, "position -1");
    f->positions[0] = 1;
    f->offsets[0] = BLOCK;
    assert_status_says(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT, "offset 5 of 5");
    f->offsets[0] = 0;
    f->units[0] = -2;
    assert_status_says(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT, "unit -2");
    f->units[0] = 0;
    args.kv_dtype = DTYPE_F16;
    assert_status_code(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT);
    args.kv_dtype = DTYPE_F32;
    args.rotary_dim = 3;
    assert_status_code(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT);
    args.rotary_dim = 6;
    assert_status_code(cpu_rope_append(stream, &args), STATUS_INVALID_ARGUMENT);
    args.rotary_dim = 4;
    assert_status_ok(cpu_rope_append(stream, &args));
    fixture_free(f);
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_append_matches_float64_whole_and_by_halves),
        cmocka_unit_test(test_rope_append_marks_rows_that_are_no_numbers),
        cmocka_unit_test(test_rope_append_keeps_no_rows_of_others),
        cmocka_unit_test(test_rope_append_refuses_places_that_are_not_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

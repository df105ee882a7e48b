#include "tests/kernels/kernel_check.h"

#include <math.h>

#include "kernels/rope_table.h"

enum { MAX_POSITIONS = 300 };

/* The turn in float64, from the table's own angles: the table is tested against its definition elsewhere. */
static void reference(const struct rope_args *a, const float *before, int32_t row, double *want)
{
    const int32_t half = a->rotary_dim / 2;
    for (int32_t h = 0; h < a->n_heads; h++) {
        for (int32_t d = 0; d < a->head_dim; d++) {
            const float *x = before + row * a->ld + (int64_t)h * a->head_dim;
            double *y = want + (int64_t)h * a->head_dim + d;
            if (d >= a->rotary_dim) {
                *y = (double)x[d];
                continue;
            }
            const int32_t pair = d % half;
            const double c = (double)a->cos[a->positions[row] * half + pair];
            const double s = (double)a->sin[a->positions[row] * half + pair];
            const double first = (double)x[pair], second = (double)x[pair + half];
            *y = d < half ? first * c - second * s : second * c + first * s;
        }
    }
}

static void check_size(struct backend_stream *stream, int32_t head_dim, int32_t rotary_dim,
                       int32_t n_rows)
{
    enum { HEADS = 3 };

    const int32_t ld = HEADS * head_dim + 2;
    struct rope_table table;
    assert_status_ok(rope_table_init(&table, MAX_POSITIONS, rotary_dim, 10000.0));
    const size_t n = (size_t)n_rows * (size_t)ld;
    float *x = random_new(n, 1.0), *before = guarded_new(n), *alone = guarded_new(n);
    memcpy(before, x, n * sizeof *x);
    memcpy(alone, x, n * sizeof *x);
    int32_t positions[64];
    for (int32_t i = 0; i < n_rows; i++) {
        positions[i] = (int32_t)test_random_below(MAX_POSITIONS);
    }
    struct rope_args args = {.x = x,
                             .ld = ld,
                             .n_rows = n_rows,
                             .n_heads = HEADS,
                             .head_dim = head_dim,
                             .rotary_dim = rotary_dim,
                             .positions = positions,
                             .cos = table.cos,
                             .sin = table.sin,
                             .max_positions = MAX_POSITIONS};
    assert_status_ok(cpu_rope(stream, &args));
    double want[3 * 128];
    for (int32_t row = 0; row < n_rows; row++) {
        reference(&args, before, row, want);
        assert_all_close(x + (int64_t)row * ld, want, (size_t)HEADS * (size_t)head_dim,
                         kernel_tolerance(TOLERANCE_ROPE), "rope");
        const size_t rest = (size_t)row * (size_t)ld + (size_t)HEADS * (size_t)head_dim;
        assert_same_bits(x + rest, before + rest, 2, "between rows");
        struct rope_args one = args;
        one.x = alone + (int64_t)row * ld;
        one.n_rows = 1;
        one.positions = positions + row;
        assert_status_ok(cpu_rope(stream, &one));
    }
    assert_same_bits(alone, x, n, "alone");
    guarded_free(x);
    guarded_free(before);
    guarded_free(alone);
    rope_table_destroy(&table);
}

static void check_sizes(struct backend_stream *stream)
{
    static const int32_t rows[] = {0, 1, 7, 33};
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        check_size(stream, 128, 128, rows[r]);
        check_size(stream, 80, 20, rows[r]);
        check_size(stream, 10, 6, rows[r]);
        check_size(stream, 2, 2, rows[r]);
    }
}

static void test_rope_matches_float64(void **state)
{
    (void)state;
    each_stream(check_sizes);
}

static void test_rope_refuses_positions_beyond_the_table(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    float x[4] = {0}, angle[4] = {0};
    int32_t position = 2;
    struct rope_args args = {.x = x,
                             .ld = 4,
                             .n_rows = 1,
                             .n_heads = 1,
                             .head_dim = 4,
                             .rotary_dim = 4,
                             .positions = &position,
                             .cos = angle,
                             .sin = angle,
                             .max_positions = 2};
    assert_status_says(cpu_rope(stream, &args), STATUS_INVALID_ARGUMENT, "position 2");
    position = -1;
    assert_status_says(cpu_rope(stream, &args), STATUS_INVALID_ARGUMENT, "position -1");
    position = 1;
    args.rotary_dim = 3;
    assert_status_code(cpu_rope(stream, &args), STATUS_INVALID_ARGUMENT);
    args.rotary_dim = 6;
    assert_status_code(cpu_rope(stream, &args), STATUS_INVALID_ARGUMENT);
    args.rotary_dim = 4;
    assert_status_ok(cpu_rope(stream, &args));
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_matches_float64),
        cmocka_unit_test(test_rope_refuses_positions_beyond_the_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Which way a call takes: on the simulator alone, whose library knows one algorithm and refuses others. */
#include "kernels/cuda/matmul.h"
#include "tests/kernels/cuda/cuda_check.h"

enum { N_OUT = 24, N_IN = 40, MAX_ROWS = 20 };

struct setting {
    struct backend_stream *stream;
    struct matrix *weight;
    void *x, *out; /* room for MAX_ROWS + 1 rows */
};

static struct setting setting_new(void)
{
    struct setting s = {.stream = check_stream()};
    float *w = random_bf16_values((size_t)N_OUT * N_IN, 1.0);
    float *x = random_bf16_values((size_t)(MAX_ROWS + 1) * N_IN, 1.0);
    assert_status_ok(cuda_matrix_new(s.stream, DTYPE_BF16, N_OUT, N_IN, &s.weight));
    const struct matrix_write_args write = {
        .matrix = s.weight, .n_rows = N_OUT, .src = w, .src_dtype = DTYPE_F32, .ld_src = N_IN};
    assert_status_ok(cuda_matrix_write(s.stream, &write));
    s.x = device_bf16(s.stream, x, (size_t)(MAX_ROWS + 1) * N_IN);
    s.out = device_new(s.stream, sizeof(float) * (MAX_ROWS + 1) * N_OUT);
    free(w);
    free(x);
    return s;
}

static void setting_free(struct setting *s)
{
    device_free(s->stream, s->x);
    device_free(s->stream, s->out);
    cuda_matrix_free(s->weight);
    check_stream_done(s->stream);
}

static struct matmul_args call_of(const struct setting *s, int32_t n_rows)
{
    return (struct matmul_args){.weight = s->weight,
                                .x = s->x,
                                .ld_x = N_IN,
                                .n_rows = n_rows,
                                .out = s->out,
                                .ld_out = N_OUT,
                                .out_dtype = DTYPE_F32};
}

static void test_matmul_choice_is_made_once_a_shape(void **state)
{
    (void)state;
    struct setting s = setting_new();
    struct cuda_matmul *matmul = NULL;
    assert_status_ok(cuda_matmul_get(s.stream, &matmul));

    static const struct {
        int32_t n_rows, skew, n_choices, way;
    } calls[] = {
        {3, 0, 1, CUDA_MATMUL_SMALL},    {4, 0, 1, CUDA_MATMUL_SMALL}, // bucket 4
        {8, 0, 2, CUDA_MATMUL_SMALL},    {9, 0, 3, CUDA_MATMUL_LIBRARY},
        {16, 0, 3, CUDA_MATMUL_LIBRARY}, {17, 0, 4, CUDA_MATMUL_LIBRARY},
        {9, 1, 5, CUDA_MATMUL_SMALL},    // aligned to 2 bytes: the library has nothing
        {10, 2, 6, CUDA_MATMUL_LIBRARY}, // to 4
        {10, 4, 7, CUDA_MATMUL_LIBRARY}, // to 8
        {9, 0, 7, CUDA_MATMUL_LIBRARY},
    };

    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        struct matmul_args call = call_of(&s, calls[i].n_rows);
        call.x = (const uint16_t *)s.x + calls[i].skew;
        assert_status_ok(cuda_matmul(s.stream, &call));
        assert_int_equal(matmul->table.n, calls[i].n_choices);
        const struct cuda_matmul_shape shape = {.n_out = N_OUT,
                                                .n_in = N_IN,
                                                .n_rows = cuda_matmul_table_bucket(calls[i].n_rows),
                                                .out_dtype = DTYPE_F32,
                                                .alignment =
                                                    calls[i].skew == 0 ? 16 : 2 * calls[i].skew};
        const struct cuda_matmul_choice *choice = cuda_matmul_table_find(&matmul->table, &shape);
        assert_non_null(choice);
        assert_int_equal(choice->way, calls[i].way);
    }
    setting_free(&s);
}

static void test_matmul_choice_follows_the_table(void **state)
{
    (void)state;
    struct setting s = setting_new();
    struct cuda_matmul *matmul = NULL;
    assert_status_ok(cuda_matmul_get(s.stream, &matmul));
    struct cuda_matmul_choice choice = {.shape = {.n_out = N_OUT,
                                                  .n_in = N_IN,
                                                  .n_rows = 4,
                                                  .out_dtype = DTYPE_F32,
                                                  .alignment = 16},
                                        .way = CUDA_MATMUL_LIBRARY,
                                        .time_us = 1.0f,
                                        .algorithm = {{7}}};
    cuda_matmul_table_put(&matmul->table, &choice);
    const struct matmul_args call = call_of(&s, 3), other = call_of(&s, 2);
    assert_status_code(cuda_matmul(s.stream, &call), STATUS_INTERNAL); // no such algorithm
    assert_status_ok(cuda_matmul(s.stream, &other));
    choice.algorithm.words[0] = 1;
    cuda_matmul_table_put(&matmul->table, &choice);
    assert_status_ok(cuda_matmul(s.stream, &call));
    setting_free(&s);
}

/* One algorithm, so one choice, for every number of rows. */
static void test_matmul_choice_can_be_pinned(void **state)
{
    (void)state;
    struct setting s = setting_new();
    assert_status_ok(cuda_matmul_set_order(s.stream, CUDA_MATMUL_SAME_BITS));
    const struct matmul_args all = call_of(&s, MAX_ROWS);
    assert_status_ok(cuda_matmul(s.stream, &all));
    float want[MAX_ROWS * N_OUT], got[MAX_ROWS * N_OUT];
    device_read(s.stream, want, s.out, sizeof want);
    for (int32_t n_rows = 1; n_rows < MAX_ROWS; n_rows += 3) {
        struct matmul_args call = call_of(&s, n_rows);
        call.x = (const uint16_t *)s.x + N_IN; // 80 bytes on: aligned to 16 as well
        assert_status_ok(cuda_matmul(s.stream, &call));
        device_read(s.stream, got, s.out, sizeof got);
        assert_same_bytes(got, want + N_OUT, sizeof(float) * N_OUT * (size_t)n_rows, "rows");
    }
    struct cuda_matmul *matmul = NULL;
    assert_status_ok(cuda_matmul_get(s.stream, &matmul));
    assert_int_equal(matmul->table.n, 1);
    assert_int_equal(matmul->table.choices[0].way, CUDA_MATMUL_LIBRARY);
    assert_int_equal(matmul->table.choices[0].shape.n_rows, 0);
    setting_free(&s);
}

static void test_matmul_choice_pinned_by_the_streams_options(void **state)
{
    (void)state;
    for (int32_t invariant = 0; invariant < 2; invariant++) {
        const struct stream_options options = {.device = 0, .batch_invariant = invariant};
        struct backend_stream *stream = NULL;
        struct cuda_matmul *matmul = NULL;
        assert_status_ok(check_backend()->stream_new(&options, &stream));
        assert_status_ok(cuda_matmul_get(stream, &matmul));
        assert_int_equal(matmul->order, invariant ? CUDA_MATMUL_SAME_BITS : CUDA_MATMUL_FASTEST);
        check_stream_done(stream);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_choice_pinned_by_the_streams_options),
        cmocka_unit_test(test_matmul_choice_is_made_once_a_shape),
        cmocka_unit_test(test_matmul_choice_follows_the_table),
        cmocka_unit_test(test_matmul_choice_can_be_pinned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

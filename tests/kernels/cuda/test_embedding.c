#include "tests/kernels/cuda/cuda_check.h"

/* float16 that represent small integers and halves exactly: sign, exponent, fraction. */
static uint16_t f16_bits(int twice)
{
    if (twice == 0) {
        return 0;
    }
    const uint16_t sign = twice < 0 ? 0x8000u : 0;
    unsigned magnitude = (unsigned)(twice < 0 ? -twice : twice), exponent = 14;
    for (unsigned m = magnitude; m > 1; m >>= 1) {
        exponent++;
    }
    const unsigned top = exponent - 14;
    const unsigned fraction = (magnitude << (10 - top)) & 0x3ffu;
    return (uint16_t)(sign | exponent << 10 | fraction);
}

/* The table's value of one element: a small multiple of 1/2, exact in all three dtypes. */
static int twice_value(int32_t row, int32_t column)
{
    return (row * 31 + column * 7) % 201 - 100;
}

static void fill_table(void *table, int dtype, int32_t n_rows, int32_t n_columns)
{
    for (int32_t row = 0; row < n_rows; row++) {
        for (int32_t column = 0; column < n_columns; column++) {
            const size_t at = (size_t)row * (size_t)n_columns + (size_t)column;
            const float value = (float)twice_value(row, column) / 2.0f;
            if (dtype == DTYPE_F32) {
                ((float *)table)[at] = value;
            } else {
                ((uint16_t *)table)[at] =
                    dtype == DTYPE_BF16 ? bf16_bits(value) : f16_bits(twice_value(row, column));
            }
        }
    }
}

static void check_embedding(struct backend_stream *stream, int dtype, int32_t n_rows,
                            int32_t n_columns)
{
    enum { BEGIN = 40, END = 57, SLOTS = 3 };

    static const int32_t drawn[SLOTS] = {BEGIN + 2, END, -1};

    const size_t n_table = (size_t)(END - BEGIN) * (size_t)n_columns;
    const size_t n_out = (size_t)n_rows * (size_t)n_columns;
    void *table = must_alloc(n_table * dtype_bytes(dtype));
    int32_t *ids = must_alloc((size_t)n_rows * sizeof *ids);
    float *want = must_alloc(n_out * sizeof *want), *got = must_alloc(n_out * sizeof *got);
    fill_table(table, dtype, END - BEGIN, n_columns);
    for (int32_t i = 0; i < n_rows; i++) {
        ids[i] = BEGIN - 4 + (int32_t)test_random_below(END - BEGIN + 8);
        if (i % 3 == 2) { // one of the slots, or none
            ids[i] = -1 - (int32_t)test_random_below(SLOTS + 2);
        }
        const int32_t id = ids[i] == -1 ? drawn[0] : ids[i];
        for (int32_t j = 0; j < n_columns; j++) {
            const bool in = id >= BEGIN && id < END;
            want[i * n_columns + j] = in ? (float)twice_value(id - BEGIN, j) / 2.0f : 0.0f;
        }
    }
    void *d_table = device_copy(stream, table, n_table * dtype_bytes(dtype));
    void *d_ids = device_copy(stream, ids, (size_t)n_rows * sizeof *ids);
    void *d_drawn = device_copy(stream, drawn, sizeof drawn);
    void *out = device_new(stream, n_out * sizeof *want);
    const struct embedding_args args = {.table = d_table,
                                        .dtype = dtype,
                                        .row_begin = BEGIN,
                                        .row_end = END,
                                        .n_columns = n_columns,
                                        .ids = d_ids,
                                        .n_rows = n_rows,
                                        .out = out,
                                        .drawn = d_drawn,
                                        .n_drawn = SLOTS};
    assert_status_ok(check_backend()->embedding(stream, &args));
    device_read(stream, got, out, n_out * sizeof *got);
    assert_same_bytes(got, want, n_out * sizeof *got, "embedding");
    device_free(stream, d_table);
    device_free(stream, d_ids);
    device_free(stream, d_drawn);
    device_free(stream, out);
    free(table);
    free(ids);
    free(want);
    free(got);
}

static void test_cuda_embedding_copies_rows_and_zeros(void **state)
{
    (void)state;
    static const int dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    static const int32_t columns[] = {1, 7, 8, 24, 130, 1032, 2048};
    struct backend_stream *stream = check_stream();
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        for (size_t c = 0; c < sizeof columns / sizeof columns[0]; c++) {
            check_embedding(stream, dtypes[d], 1 + (int32_t)test_random_below(9), columns[c]);
        }
    }
    check_stream_done(stream);
}

static void test_cuda_embedding_of_nothing_and_of_nonsense(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct embedding_args args = {.dtype = DTYPE_BF16, .row_end = 4, .n_columns = 8};
    assert_status_ok(check_backend()->embedding(stream, &args));
    args.n_rows = 1;
    args.dtype = 9;
    assert_status_code(check_backend()->embedding(stream, &args), STATUS_INVALID_ARGUMENT);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_embedding_copies_rows_and_zeros),
        cmocka_unit_test(test_cuda_embedding_of_nothing_and_of_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

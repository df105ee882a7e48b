#include "tests/kernels/kernel_check.h"

enum { BEGIN = 10, END = 15, COLUMNS = 7 };

static const int32_t ids[] = {10, 14, 9, 15, 12, 12, 0, -1, INT32_MAX, -2, -3, -4, INT32_MIN};
static const int32_t drawn[] = {13, 9, -1}; /* of slots 0, 1 and 2: ids -1, -2 and -3 */

#define N_IDS ((int)(sizeof ids / sizeof ids[0]))

/* Small integers are exact in every dtype. */
static float value_of(int32_t id, int column)
{
    return (float)(id * COLUMNS + column) * (column % 2 == 0 ? 1.0f : -1.0f);
}

static uint16_t bits_f16(float x) /* of small integers */
{
    uint32_t bits = 0;
    memcpy(&bits, &x, sizeof bits);
    if (x == 0.0f) {
        return (uint16_t)(bits >> 16);
    }
    const uint32_t exponent = (bits >> 23 & 0xFFu) - 127 + 15;
    return (uint16_t)((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3FFu));
}

static void check_dtype(struct backend_stream *stream, int dtype)
{
    char table[(END - BEGIN) * COLUMNS * 4];
    for (int32_t id = BEGIN; id < END; id++) {
        for (int c = 0; c < COLUMNS; c++) {
            const float x = value_of(id, c);
            const uint16_t half = dtype == DTYPE_F16 ? bits_f16(x) : bits_bf16(x);
            const int at = (id - BEGIN) * COLUMNS + c;
            if (dtype == DTYPE_F32) {
                memcpy(table + (ptrdiff_t)4 * at, &x, 4);
            } else {
                memcpy(table + (ptrdiff_t)2 * at, &half, 2);
            }
        }
    }
    float *out = guarded_new((size_t)N_IDS * COLUMNS);
    const struct embedding_args args = {.table = table,
                                        .dtype = dtype,
                                        .row_begin = BEGIN,
                                        .row_end = END,
                                        .n_columns = COLUMNS,
                                        .ids = ids,
                                        .n_rows = N_IDS,
                                        .out = out,
                                        .drawn = drawn,
                                        .n_drawn = 3};
    assert_status_ok(cpu_embedding(stream, &args));
    for (int i = 0; i < N_IDS; i++) {
        const int32_t id = ids[i] == -1 ? 13 : ids[i];
        const bool held = id >= BEGIN && id < END;
        for (int c = 0; c < COLUMNS; c++) {
            const float want = held ? value_of(id, c) : 0.0f;
            assert_same_bits(&out[i * COLUMNS + c], &want, 1, "embedding");
        }
    }
    guarded_free(out);
}

static void check_dtypes(struct backend_stream *stream)
{
    check_dtype(stream, DTYPE_F32);
    check_dtype(stream, DTYPE_F16);
    check_dtype(stream, DTYPE_BF16);
}

static void test_embedding_looks_up_held_rows_and_zeros_others(void **state)
{
    (void)state;
    each_stream(check_dtypes);
}

static void test_embedding_refuses_unknown_dtypes(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    struct embedding_args args = {.dtype = 9, .n_columns = 1};
    assert_status_code(cpu_embedding(stream, &args), STATUS_INVALID_ARGUMENT);
    args.dtype = DTYPE_F32;
    assert_status_ok(cpu_embedding(stream, &args)); // no rows
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embedding_looks_up_held_rows_and_zeros_others),
        cmocka_unit_test(test_embedding_refuses_unknown_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

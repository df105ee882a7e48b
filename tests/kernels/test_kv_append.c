#include "tests/kernels/kernel_check.h"

enum { HEADS = 3, DIM = 11, BLOCK = 5, UNITS = 40, ROWS = 9, LD = HEADS * DIM + 4 };

#define PLANE ((size_t)UNITS * BLOCK * DIM)

/* Rows land where they should, rounded as they should be, and nothing else changes. */
static void check_planes(struct backend_stream *stream, int dtype)
{
    const size_t bytes = PLANE * dtype_bytes(dtype);
    char *k_plane = must_alloc(bytes), *v_plane = must_alloc(bytes), *want_k = must_alloc(bytes),
         *want_v = must_alloc(bytes);
    memset(k_plane, 0xA5, bytes);
    memset(v_plane, 0x5A, bytes);
    memset(want_k, 0xA5, bytes);
    memset(want_v, 0x5A, bytes);

    float *k = random_new((size_t)ROWS * LD, 3.0), *v = random_new((size_t)ROWS * LD, 3.0);
    int64_t units[ROWS];
    int32_t offsets[ROWS];
    for (int i = 0; i < ROWS; i++) {
        units[i] = (int64_t)(i * 7 % 12) * HEADS; // distinct
        offsets[i] = i % BLOCK;
        for (int j = 0; j < HEADS * DIM; j++) {
            const int64_t head = j / DIM;
            const size_t at = (size_t)(((units[i] + head) * BLOCK + offsets[i]) * DIM + j % DIM);
            if (dtype == DTYPE_F32) {
                memcpy(want_k + 4 * at, &k[i * LD + j], 4);
                memcpy(want_v + 4 * at, &v[i * LD + j], 4);
            } else {
                const uint16_t kh = bits_bf16(k[i * LD + j]), vh = bits_bf16(v[i * LD + j]);
                memcpy(want_k + 2 * at, &kh, 2);
                memcpy(want_v + 2 * at, &vh, 2);
            }
        }
    }
    const struct kv_append_args args = {.k = k,
                                        .v = v,
                                        .ld = LD,
                                        .n_rows = ROWS,
                                        .n_heads = HEADS,
                                        .head_dim = DIM,
                                        .block_tokens = BLOCK,
                                        .units = units,
                                        .offsets = offsets,
                                        .k_plane = k_plane,
                                        .v_plane = v_plane,
                                        .kv_dtype = dtype};
    assert_status_ok(cpu_kv_append(stream, &args));
    assert_memory_equal(k_plane, want_k, bytes);
    assert_memory_equal(v_plane, want_v, bytes);
    guarded_free(k);
    guarded_free(v);
    free(k_plane);
    free(v_plane);
    free(want_k);
    free(want_v);
}

static void check_dtypes(struct backend_stream *stream)
{
    check_planes(stream, DTYPE_F32);
    check_planes(stream, DTYPE_BF16);
}

static void test_kv_append_writes_its_rows_and_nothing_else(void **state)
{
    (void)state;
    each_stream(check_dtypes);
}

static void test_kv_append_refuses_places_outside_a_block(void **state)
{
    (void)state;
    struct backend_stream *stream = stream_of("auto", 1);
    const float row[2] = {1.0f, 2.0f};
    float plane[4] = {0};
    int64_t unit = 0;
    int32_t offset = 2;
    struct kv_append_args args = {.k = row,
                                  .v = row,
                                  .ld = 2,
                                  .n_rows = 1,
                                  .n_heads = 1,
                                  .head_dim = 2,
                                  .block_tokens = 2,
                                  .units = &unit,
                                  .offsets = &offset,
                                  .k_plane = plane,
                                  .v_plane = plane,
                                  .kv_dtype = DTYPE_F32};
    assert_status_says(cpu_kv_append(stream, &args), STATUS_INVALID_ARGUMENT, "offset 2 of 2");
    offset = 0;
    unit = -1;
    assert_status_says(cpu_kv_append(stream, &args), STATUS_INVALID_ARGUMENT, "unit -1");
    unit = 0;
    args.kv_dtype = DTYPE_F16;
    assert_status_code(cpu_kv_append(stream, &args), STATUS_INVALID_ARGUMENT);
    args.n_rows = 0;
    args.kv_dtype = DTYPE_F32;
    assert_status_ok(cpu_kv_append(stream, &args));
    assert_true(plane[0] == 0.0f);
    stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_append_writes_its_rows_and_nothing_else),
        cmocka_unit_test(test_kv_append_refuses_places_outside_a_block),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

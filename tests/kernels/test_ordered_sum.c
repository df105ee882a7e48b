#include "kernels/cpu/convert.h"
#include "tests/kernels/kernel_check.h"

enum { MAX_N = 3000, MAX_PARTS = 5 };

/* Each element apart, one addition after the other: the only bits that are right. */
static float want(const float *parts, int64_t stride, int32_t n_parts, int64_t i)
{
    volatile float sum = parts[i];
    for (int32_t p = 1; p < n_parts; p++) {
        sum = sum + parts[p * stride + i];
    }
    return sum;
}

static void check(struct backend_stream *stream, int64_t n, int32_t n_parts)
{
    const int64_t stride = n + 3;
    const size_t size = (size_t)(stride * n_parts);
    float *parts = random_new(size, 1e3);
    float *out = guarded_new((size_t)n);
    struct ordered_sum_args args = {.parts = parts,
                                    .stride = stride,
                                    .n = n,
                                    .n_parts = n_parts,
                                    .dtype = DTYPE_F32,
                                    .out = out};
    assert_status_ok(cpu_ordered_sum(stream, &args));
    for (int64_t i = 0; i < n; i++) {
        const float sum = want(parts, stride, n_parts, i);
        assert_same_bits(out + i, &sum, 1, "float32");
    }
    static uint16_t halves[(MAX_N + 3) * MAX_PARTS], sums[MAX_N];
    memset(sums, 0xff, sizeof sums);
    for (size_t i = 0; i < size; i++) {
        halves[i] = bf16_from_f32(parts[i]);
        parts[i] = f32_from_bf16(halves[i]);
    }
    args.parts = halves;
    args.out = sums;
    args.dtype = DTYPE_BF16;
    assert_status_ok(cpu_ordered_sum(stream, &args));
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(sums[i], bf16_from_f32(want(parts, stride, n_parts, i)));
    }
    guarded_free(parts);
    guarded_free(out);
}

static void test_ordered_sum_adds_from_the_left(void **state)
{
    static const int64_t sizes[] = {0, 1, 7, 8, 1023, 1024, 1025, MAX_N};
    (void)state;
    struct backend_stream *stream = NULL;
    assert_status_ok(cpu_stream_new_isa(1, "auto", &stream));
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int32_t n_parts = 1; n_parts <= MAX_PARTS; n_parts++) {
            check(stream, sizes[i], n_parts);
        }
    }
    backend_cpu()->stream_free(stream);
}

static void test_ordered_sum_in_place_and_marks(void **state)
{
    (void)state;
    struct backend_stream *stream = NULL;
    assert_status_ok(cpu_stream_new_isa(1, "auto", &stream));
    float x[6] = {1, 2, 10, 20, 100, 200};
    uint64_t mark = 0;
    uint32_t count = 4;
    struct ordered_sum_args args = {.parts = x,
                                    .stride = 2,
                                    .n = 2,
                                    .n_parts = 3,
                                    .out = x + 4,
                                    .mark = &mark,
                                    .count = &count,
                                    .label = 9};
    assert_status_ok(cpu_ordered_sum(stream, &args)); // out is the last of the parts
    assert_true(x[4] == 111.0f && x[5] == 222.0f);
    assert_true(mark == ((uint64_t)5 << 32 | 9));
    args.dtype = DTYPE_F16;
    assert_status_code(cpu_ordered_sum(stream, &args), STATUS_INVALID_ARGUMENT);
    backend_cpu()->stream_free(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ordered_sum_adds_from_the_left),
        cmocka_unit_test(test_ordered_sum_in_place_and_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

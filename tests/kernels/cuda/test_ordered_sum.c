#include "tests/kernels/cuda/cuda_check.h"

/* Against the CPU's op, whose sum is the same chain of additions: to the bit. */
static void check(struct backend_stream *stream, struct ordered_sum_args args)
{
    struct backend_stream *host = NULL;
    const struct stream_options options = {.n_threads = 1};
    assert_status_ok(backend_cpu()->stream_new(&options, &host));
    const size_t element = dtype_bytes(args.dtype), n = (size_t)args.n;
    const size_t n_in = (size_t)(args.stride * args.n_parts);
    float *values = random_bf16_values(n_in, 300.0);
    uint16_t *halves = must_alloc(n_in * sizeof *halves);
    for (size_t i = 0; i < n_in; i++) {
        halves[i] = bf16_bits(values[i]);
    }
    const void *const parts = args.dtype == DTYPE_F32 ? (const void *)values : (const void *)halves;
    void *want = must_alloc(n * element), *got = must_alloc(n * element);
    struct ordered_sum_args on_host = args;
    on_host.parts = parts;
    on_host.out = want;
    assert_status_ok(backend_cpu()->ordered_sum(host, &on_host));
    void *device_parts = device_copy(stream, parts, n_in * element);
    void *out = device_new(stream, n * element);
    args.parts = device_parts;
    args.out = out;
    assert_status_ok(check_backend()->ordered_sum(stream, &args));
    device_read(stream, got, out, n * element);
    assert_same_bytes(got, want, n * element, "sum");
    device_free(stream, device_parts);
    device_free(stream, out);
    backend_cpu()->stream_free(host);
    free(values);
    free(halves);
    free(want);
    free(got);
}

static void test_cuda_ordered_sum_is_the_cpus(void **state)
{
    (void)state;
    static const int64_t sizes[] = {0, 1, 7, 8, 257, 4096, 10001};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        for (int32_t n_parts = 1; n_parts <= 8; n_parts += 1 + n_parts / 3) {
            const struct ordered_sum_args args = {.stride = sizes[i] + (n_parts % 2 != 0 ? 8 : 0),
                                                  .n = sizes[i],
                                                  .n_parts = n_parts,
                                                  .dtype = i % 2 == 0 ? DTYPE_F32 : DTYPE_BF16};
            check(stream, args);
            struct ordered_sum_args odd = args;
            odd.stride = sizes[i] + 3;
            odd.dtype = i % 2 == 0 ? DTYPE_BF16 : DTYPE_F32;
            check(stream, odd);
        }
    }
    check_stream_done(stream);
}

/* Marks count on, also without a sum; what the host sees comes after the sum. */
static void test_cuda_ordered_sum_marks(void **state)
{
    (void)state;
    const struct backend *backend = check_backend();
    struct backend_stream *stream = check_stream();
    const float ones[2] = {1.0f, 1.0f};
    const uint32_t zero = 0;
    void *mark = NULL;
    float *x = device_copy(stream, ones, sizeof ones);
    uint32_t *count = device_copy(stream, &zero, sizeof zero);
    assert_status_ok(backend->host_alloc(stream, sizeof(uint64_t), &mark));
    const struct ordered_sum_args args = {.parts = x,
                                          .stride = 1,
                                          .n = 1,
                                          .n_parts = 2,
                                          .out = x,
                                          .mark = mark,
                                          .count = count,
                                          .label = 7};
    const struct ordered_sum_args nothing = {
        .n_parts = 1, .mark = mark, .count = count, .label = 8};
    assert_status_ok(backend->ordered_sum(stream, &args));
    assert_status_ok(backend->stream_sync(stream));
    assert_true(*(uint64_t *)mark == ((uint64_t)1 << 32 | 7));
    assert_status_ok(backend->ordered_sum(stream, &nothing));
    assert_status_ok(backend->stream_sync(stream));
    assert_true(*(uint64_t *)mark == ((uint64_t)2 << 32 | 8));
    const struct ordered_sum_args wrong = {.n_parts = 0};
    assert_status_code(backend->ordered_sum(stream, &wrong), STATUS_INVALID_ARGUMENT);
    backend->host_free(stream, mark);
    device_free(stream, x);
    device_free(stream, count);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_ordered_sum_is_the_cpus),
        cmocka_unit_test(test_cuda_ordered_sum_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

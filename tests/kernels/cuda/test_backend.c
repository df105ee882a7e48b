#include <math.h>

#include "kernels/backend_plugin.h"
#include "tests/kernels/cuda/cuda_check.h"

static void test_cuda_backend_devices(void **state)
{
    (void)state;
    struct device_info info[4];
    int n = -1;
    struct backend_stream *stream = check_stream();
    assert_status_ok(check_backend()->devices(info, 4, &n));
    assert_true(n >= 1);
    assert_true(info[0].capability >= 80);
    assert_true(info[0].n_processors > 0);
    assert_true(info[0].free_bytes > 0 && info[0].free_bytes <= info[0].memory_bytes);
    assert_true(strlen(info[0].name) > 0);
    assert_status_ok(check_backend()->devices(NULL, 0, &n));
    assert_int_equal(n, 0);
    check_stream_done(stream);
}

static void test_cuda_backend_refuses_bad_streams(void **state)
{
    (void)state;
    struct backend_stream *stream = NULL;
    struct stream_options options = {.device = -1};
    assert_status_says(check_backend()->stream_new(&options, &stream), STATUS_INVALID_ARGUMENT,
                       "device -1");
    options.device = 1000;
    assert_status_code(check_backend()->stream_new(&options, &stream), STATUS_INVALID_ARGUMENT);
    assert_null(stream);
    check_backend()->stream_free(NULL);
}

static void test_cuda_backend_has_every_op(void **state)
{
    (void)state;
    // From `devices` on all members are function pointers: none may be missing.
    const struct backend *backend = check_backend();
    void *entries[(sizeof *backend - offsetof(struct backend, devices)) / sizeof(void *)];
    memcpy(entries, (const char *)backend + offsetof(struct backend, devices), sizeof entries);
    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        assert_non_null(entries[i]);
    }
    assert_string_equal(backend->name, "cuda");
    assert_int_equal(backend->activation, DTYPE_BF16);
    assert_false(backend->host_memory);
}

static void test_cuda_backend_memory(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 4096, (1u << 20) + 1};
    const struct backend *backend = check_backend();
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const size_t size = sizes[i];
        void *device = NULL, *host = NULL;
        assert_status_ok(backend->mem_alloc(stream, size, &device));
        assert_status_ok(backend->host_alloc(stream, size, &host));
        assert_int_equal((uintptr_t)device % 64, 0);
        memset(host, 7, size);
        assert_status_ok(backend->upload(stream, device, host, size));
        assert_status_ok(backend->zero(stream, (char *)device + size / 2, size - size / 2));
        assert_status_ok(backend->stream_sync(stream));
        memset(host, 9, size);
        assert_status_ok(backend->download(stream, host, device, size));
        assert_status_ok(backend->stream_sync(stream));
        for (size_t j = 0; j < size; j++) {
            assert_int_equal(((unsigned char *)host)[j], j < size / 2 ? 7 : 0);
        }
        backend->mem_free(stream, device);
        backend->host_free(stream, host);
    }
    backend->mem_free(stream, NULL);
    backend->host_free(stream, NULL);
    check_stream_done(stream);
}

static void test_cuda_backend_memory_that_is_not_there_is_a_status(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    void *ptr = NULL;
    assert_status_says(check_backend()->mem_alloc(stream, (size_t)1 << 50, &ptr),
                       STATUS_RESOURCE_EXHAUSTED, "need 1125899906842624 bytes");
    assert_null(ptr);
    // It leaves nothing behind for the next op to report.
    struct swiglu_args nothing = {.n_rows = 0};
    assert_status_ok(check_backend()->swiglu(stream, &nothing));
    check_stream_done(stream);
}

// ---- graphs ----

static void test_cuda_backend_graph_runs_again(void **state)
{
    (void)state;

    enum { N = 64, RUNS = 3 };
    const struct backend *backend = check_backend();
    struct backend_stream *stream = check_stream();
    float x[N], delta[N];
    for (int i = 0; i < N; i++) {
        x[i] = (float)i;
        delta[i] = 2.0f;
    }
    float *d_x = device_copy(stream, x, sizeof x);
    void *d_delta = device_bf16(stream, delta, N);
    const struct add_norm_args args = {
        .x = d_x, .delta = d_delta, .n_rows = 1, .n_columns = N, .kind = NORM_RMS};
    struct backend_graph *graph = NULL;
    assert_status_ok(backend->graph_begin(stream));
    assert_status_ok(backend->add_norm(stream, &args));
    assert_status_ok(backend->add_norm(stream, &args));
    assert_status_ok(backend->graph_end(stream, &graph));
    float got[N];
    device_read(stream, got, d_x, sizeof got);
    assert_same_bytes(got, x, sizeof got, "only recorded");
    for (int run = 0; run < RUNS; run++) {
        assert_status_ok(backend->graph_run(stream, graph));
    }
    device_read(stream, got, d_x, sizeof got);
    for (int i = 0; i < N; i++) {
        assert_true(got[i] == (float)i + 4.0f * RUNS);
    }
    backend->graph_free(graph);
    backend->graph_free(NULL);
    device_free(stream, d_x);
    device_free(stream, d_delta);
    check_stream_done(stream);
}

/* Waiting for a mark waits for what is before it; what comes after may still run. */
static void test_cuda_backend_marks_are_places_in_the_stream(void **state)
{
    (void)state;

    enum { N = 1 << 16 };

    const struct backend *backend = check_backend();
    struct backend_stream *stream = check_stream();
    struct backend_mark *first = NULL, *second = NULL;
    assert_status_ok(backend->mark_new(stream, &first));
    assert_status_ok(backend->mark_new(stream, &second));
    assert_true(backend->mark_passed(first)); // never set
    assert_status_ok(backend->mark_wait(first));
    void *device = device_new(stream, N), *host = NULL;
    assert_status_ok(backend->host_alloc(stream, N, &host));
    for (int round = 0; round < 3; round++) {
        memset(host, 0x11, N);
        assert_status_ok(backend->zero(stream, device, N));
        assert_status_ok(backend->download(stream, host, device, N));
        assert_status_ok(backend->mark_set(stream, first));
        assert_status_ok(backend->mark_set(stream, second));
        while (!backend->mark_passed(second)) {
        }
        assert_true(backend->mark_passed(first));
        assert_status_ok(backend->mark_wait(first));
        assert_int_equal(((const char *)host)[0], 0);
        assert_int_equal(((const char *)host)[N - 1], 0);
        assert_status_ok(backend->mark_wait(second));
    }
    backend->host_free(stream, host);
    device_free(stream, device);
    backend->mark_free(first);
    backend->mark_free(second);
    backend->mark_free(NULL);
    check_stream_done(stream);
}

static void test_cuda_backend_graph_without_begin_is_a_status(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    struct backend_graph *graph = NULL;
    assert_status_says(check_backend()->graph_end(stream, &graph), STATUS_INTERNAL, "graph end");
    assert_null(graph);
    check_stream_done(stream);
}

// ---- weights ----

/* Multiplies by the identity to see what the matrix holds: out [n_in, n_out] in float32. */
static void read_matrix(struct backend_stream *stream, const struct matrix *matrix, int32_t n_out,
                        int32_t n_in, float *out)
{
    const int64_t ld = ((int64_t)n_in + 7) / 8 * 8;
    float *identity = must_alloc((size_t)(n_in * ld) * sizeof *identity);
    memset(identity, 0, (size_t)(n_in * ld) * sizeof *identity);
    for (int32_t i = 0; i < n_in; i++) {
        identity[i * ld + i] = 1.0f;
    }
    void *d_x = device_bf16(stream, identity, (size_t)(n_in * ld));
    const size_t out_bytes = (size_t)n_in * (size_t)n_out * sizeof *out;
    void *d_out = device_new(stream, out_bytes);
    const struct matmul_args args = {.weight = matrix,
                                     .x = d_x,
                                     .ld_x = ld,
                                     .n_rows = n_in,
                                     .out = d_out,
                                     .ld_out = n_out,
                                     .out_dtype = DTYPE_F32};
    assert_status_ok(check_backend()->matmul(stream, &args));
    device_read(stream, out, d_out, out_bytes);
    device_free(stream, d_x);
    device_free(stream, d_out);
    free(identity);
}

static void check_matrix(struct backend_stream *stream, int src_dtype, int32_t n_out, int32_t n_in)
{
    const struct backend *backend = check_backend();
    const int64_t ld = n_in + 3;
    const size_t n = (size_t)n_out * (size_t)ld;
    float *src = random_values(n, 1.0);
    uint16_t *halves = must_alloc(n * sizeof *halves);
    for (size_t i = 0; i < n; i++) {
        halves[i] = bf16_bits(src[i]);
    }
    struct matrix *matrix = NULL;
    assert_status_ok(backend->matrix_new(stream, DTYPE_BF16, n_out, n_in, &matrix));
    assert_true(backend->matrix_bytes(DTYPE_BF16, n_out, n_in) >= (size_t)n_out * (size_t)n_in * 2);
    for (int32_t row = 0, step = 1; row < n_out; row += step) {
        step = 1 + (int32_t)test_random_below((uint64_t)(n_out - row));
        const struct matrix_write_args write = {.matrix = matrix,
                                                .row_begin = row,
                                                .n_rows = step,
                                                .src = src_dtype == DTYPE_F32
                                                           ? (const void *)(src + row * ld)
                                                           : (const void *)(halves + row * ld),
                                                .src_dtype = src_dtype,
                                                .ld_src = ld};
        assert_status_ok(backend->matrix_write(stream, &write));
    }
    float *got = must_alloc((size_t)n_out * (size_t)n_in * sizeof *got);
    read_matrix(stream, matrix, n_out, n_in, got);
    for (int32_t row = 0; row < n_out; row++) {
        for (int32_t column = 0; column < n_in; column++) {
            assert_true(got[column * n_out + row] == bf16_value(halves[row * ld + column]));
        }
    }
    free(got);
    free(src);
    free(halves);
    backend->matrix_free(matrix);
}

static void test_cuda_matrix_holds_what_was_written(void **state)
{
    (void)state;
    static const int32_t shapes[][2] = {{1, 1}, {8, 8}, {24, 7}, {40, 33}, {64, 64}};
    struct backend_stream *stream = check_stream();
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check_matrix(stream, DTYPE_F32, shapes[i][0], shapes[i][1]);
        check_matrix(stream, DTYPE_BF16, shapes[i][0], shapes[i][1]);
    }
    check_backend()->matrix_free(NULL);
    check_stream_done(stream);
}

static void test_cuda_matrix_refuses_nonsense(void **state)
{
    (void)state;
    const struct backend *backend = check_backend();
    struct backend_stream *stream = check_stream();
    struct matrix *matrix = NULL;
    assert_status_code(backend->matrix_new(stream, DTYPE_F32, 4, 4, &matrix),
                       STATUS_INVALID_ARGUMENT);
    assert_status_code(backend->matrix_new(stream, DTYPE_BF16, 0, 4, &matrix),
                       STATUS_INVALID_ARGUMENT);
    assert_null(matrix);
    assert_status_ok(backend->matrix_new(stream, DTYPE_BF16, 4, 4, &matrix));
    const float rows[16] = {0};
    struct matrix_write_args write = {
        .matrix = matrix, .row_begin = 2, .n_rows = 3, .src = rows, .ld_src = 4};
    assert_status_says(backend->matrix_write(stream, &write), STATUS_INVALID_ARGUMENT,
                       "rows [2, +3)");
    write.n_rows = 2;
    write.ld_src = 3;
    assert_status_code(backend->matrix_write(stream, &write), STATUS_INVALID_ARGUMENT);
    write.ld_src = 4;
    write.src_dtype = 17;
    assert_status_says(backend->matrix_write(stream, &write), STATUS_INVALID_ARGUMENT, "dtype 17");
    backend->matrix_free(matrix);
    check_stream_done(stream);
}

static void test_cuda_random_is_made_elsewhere(void **state)
{
    (void)state;
    struct backend_stream *stream = check_stream();
    const struct random_args args = {.n_rows = 1, .n_columns = 1};
    assert_status_code(check_backend()->random(stream, &args), STATUS_UNIMPLEMENTED);
    check_stream_done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_backend_devices),
        cmocka_unit_test(test_cuda_backend_refuses_bad_streams),
        cmocka_unit_test(test_cuda_backend_has_every_op),
        cmocka_unit_test(test_cuda_backend_memory),
        cmocka_unit_test(test_cuda_backend_memory_that_is_not_there_is_a_status),
        cmocka_unit_test(test_cuda_backend_graph_runs_again),
        cmocka_unit_test(test_cuda_backend_graph_without_begin_is_a_status),
        cmocka_unit_test(test_cuda_backend_marks_are_places_in_the_stream),
        cmocka_unit_test(test_cuda_matrix_holds_what_was_written),
        cmocka_unit_test(test_cuda_matrix_refuses_nonsense),
        cmocka_unit_test(test_cuda_random_is_made_elsewhere),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

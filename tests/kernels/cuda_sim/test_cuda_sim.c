#include <cuda_runtime_api.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kernels/cuda_sim/probes.h"
#include "tests/support/test.h"

static cudaStream_t stream_new(void)
{
    cudaStream_t stream = NULL;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, 0), cudaSuccess);
    return stream;
}

/* Device memory is host memory here, which tests of the simulator alone may know. */
static void *device_new(size_t size)
{
    void *data = NULL;
    assert_int_equal(cudaMalloc(&data, size), cudaSuccess);
    return data;
}

static float *random_new(size_t n)
{
    float *data = device_new(n * sizeof *data);
    for (size_t i = 0; i < n; i++) {
        data[i] = (float)test_random_below(64);
    }
    return data;
}

static void finish(cudaStream_t stream)
{
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

static void done(cudaStream_t stream)
{
    assert_int_equal(cudaStreamDestroy(stream), cudaSuccess);
}

// ---- right ----

/* How many of n results differ from those of the kernel with its barrier. */
static int n_wrong_of_reverse(const float *in, const float *out, int n)
{
    int n_wrong = 0;
    for (int i = 0; i < n; i++) {
        float want = in[n - 1 - i];
        for (int j = i / 32 * 32; j < i / 32 * 32 + 32; j++) {
            want += in[j];
        }
        n_wrong += !(out[i] == want);
    }
    return n_wrong;
}

static void test_sim_barriers_and_shared_memory(void **state)
{
    (void)state;
    cudaStream_t stream = stream_new();
    for (int n = 32; n <= 256; n += 32) {
        float *in = random_new((size_t)n), *out = device_new((size_t)n * sizeof *out);
        probe_reverse(stream, in, out, n);
        assert_true(isnan(out[0])); // not before it is synchronised
        finish(stream);
        assert_int_equal(n_wrong_of_reverse(in, out, n), 0);
        assert_int_equal(cudaFree(in), cudaSuccess);
        assert_int_equal(cudaFree(out), cudaSuccess);
    }
    done(stream);
}

static uint16_t bf16_of_small(int x)
{
    const float value = (float)x;
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)(bits >> 16); // integers up to 256 are exact
}

static void test_sim_mma_is_a_matrix_product(void **state)
{
    (void)state;

    enum { M = 16, N = 8, K = 16 };

    cudaStream_t stream = stream_new();
    int a[M][K], b[N][K], c[M][N];
    uint16_t *da = device_new(sizeof(uint16_t) * M * K), *db = device_new(sizeof(uint16_t) * N * K);
    float *dc = device_new(sizeof(float) * M * N);
    for (int i = 0; i < M * K; i++) {
        a[i / K][i % K] = (int)test_random_below(100) - 50;
        da[i] = bf16_of_small(a[i / K][i % K]);
    }
    for (int i = 0; i < N * K; i++) {
        b[i / K][i % K] = (int)test_random_below(100) - 50;
        db[i] = bf16_of_small(b[i / K][i % K]);
    }
    for (int i = 0; i < M * N; i++) {
        c[i / N][i % N] = (int)test_random_below(1000);
        dc[i] = (float)c[i / N][i % N];
    }
    probe_mma(stream, da, db, dc);
    finish(stream);
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            for (int k = 0; k < K; k++) {
                c[m][n] += a[m][k] * b[n][k];
            }
            assert_int_equal((int)dc[m * N + n], c[m][n]);
        }
    }
    assert_int_equal(cudaFree(da), cudaSuccess);
    assert_int_equal(cudaFree(db), cudaSuccess);
    assert_int_equal(cudaFree(dc), cudaSuccess);
    done(stream);
}

/* Also at the ends of the range: -128 times -128. */
static void test_sim_mma_of_int8_is_a_matrix_product(void **state)
{
    (void)state;

    enum { M = 16, N = 8, K = 32 };

    cudaStream_t stream = stream_new();
    int8_t *a = device_new(M * K), *b = device_new(N * K);
    int32_t *c = device_new(sizeof(int32_t) * M * N), want[M][N];
    for (int i = 0; i < M * K; i++) {
        a[i] = (int8_t)((int)test_random_below(256) - 128);
    }
    for (int i = 0; i < N * K; i++) {
        b[i] = (int8_t)((int)test_random_below(256) - 128);
    }
    memset(a, -128, K);
    memset(b, -128, K);
    for (int i = 0; i < M * N; i++) {
        c[i] = (int)test_random_below(1000);
        want[i / N][i % N] = c[i];
    }
    probe_mma_i8(stream, a, b, c);
    finish(stream);
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            for (int k = 0; k < K; k++) {
                want[m][n] += a[m * K + k] * b[n * K + k];
            }
            assert_int_equal(c[m * N + n], want[m][n]);
        }
    }
    assert_int_equal(cudaFree(a), cudaSuccess);
    assert_int_equal(cudaFree(b), cudaSuccess);
    assert_int_equal(cudaFree(c), cudaSuccess);
    done(stream);
}

static void test_sim_bytes_and_pairs(void **state)
{
    (void)state;
    cudaStream_t stream = stream_new();
    uint32_t *in = device_new(4 * sizeof *in), *out = device_new(2 * sizeof *out);
    in[0] = 0x33221100u;
    in[1] = (uint32_t)bf16_of_small(3) | (uint32_t)bf16_of_small(-7) << 16;
    in[2] = (uint32_t)bf16_of_small(5) | (uint32_t)bf16_of_small(2) << 16;
    in[3] = (uint32_t)bf16_of_small(100) | (uint32_t)bf16_of_small(1) << 16;
    probe_bytes(stream, in, out);
    finish(stream);
    // Digits of 0x6250 from the last: byte 0 of x, byte 1 of y, byte 2 of x, byte 2 of y.
    const uint32_t y = in[1];
    assert_int_equal(out[0], (y >> 8 & 0xff) << 8 | 0x22u << 16 | (y >> 16 & 0xff) << 24);
    assert_int_equal(out[1], (uint32_t)bf16_of_small(115) | (uint32_t)bf16_of_small(-13) << 16);
    assert_int_equal(cudaFree(in), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
    done(stream);
}

static void test_sim_ldmatrix_positions(void **state)
{
    (void)state;
    cudaStream_t stream = stream_new();
    uint16_t *in = device_new(32 * 8 * sizeof *in);
    uint32_t *out = device_new(32 * 4 * sizeof *out);
    for (int i = 0; i < 32 * 8; i++) {
        in[i] = (uint16_t)(1000 + i); // row i / 8 of the 32, column i % 8
    }
    for (int transposed = 0; transposed <= 1; transposed++) {
        probe_ldmatrix(stream, in, out, transposed);
        finish(stream);
        for (int lane = 0; lane < 32; lane++) {
            for (int matrix = 0; matrix < 4; matrix++) {
                const int g = lane / 4, t = lane % 4;
                const int row_0 = transposed ? 2 * t : g, row_1 = transposed ? 2 * t + 1 : g;
                const int column_0 = transposed ? g : 2 * t, column_1 = transposed ? g : 2 * t + 1;
                const uint32_t low = in[(8 * matrix + row_0) * 8 + column_0];
                const uint32_t high = in[(8 * matrix + row_1) * 8 + column_1];
                assert_int_equal(out[lane * 4 + matrix], low | high << 16);
            }
        }
    }
    assert_int_equal(cudaFree(in), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
    done(stream);
}

static void test_sim_async_copies(void **state)
{
    (void)state;

    enum { N = 5 * 128, WANTED = 400 };

    cudaStream_t stream = stream_new();
    float *in = random_new(N), *out = device_new(N * sizeof *out);
    probe_async(stream, in, out, N, WANTED);
    finish(stream);
    for (int i = 0; i < N; i++) {
        assert_true(out[i] == (i < WANTED ? in[i] : 0.0f));
    }
    assert_int_equal(cudaFree(in), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
    done(stream);
}

static void test_sim_warp_functions(void **state)
{
    (void)state;
    cudaStream_t stream = stream_new();
    int *out = device_new(64 * PROBE_WARP_RESULTS * sizeof *out);
    probe_warp(stream, out);
    finish(stream);
    for (int thread = 0; thread < 64; thread++) {
        const int lane = thread % 32, *const got = out + (ptrdiff_t)thread * PROBE_WARP_RESULTS;
        assert_int_equal(got[0], 5);
        assert_int_equal(got[1], lane / 8 * 8 + 3);
        assert_int_equal(got[2], lane ^ 6);
        assert_int_equal(got[3], lane % 16 >= 3 ? lane - 3 : lane);
        assert_int_equal(got[4], lane % 16 < 13 ? lane + 3 : lane);
        assert_int_equal((unsigned)got[5], 0x49249249u);
        assert_int_equal(got[6], 3);
        assert_int_equal((unsigned)got[7], 0xfu << (lane / 4 * 4));
        assert_int_equal(got[8], 40);
        assert_int_equal(got[9], lane < 16 ? 2 : 18);
    }
    assert_int_equal(cudaFree(out), cudaSuccess);
    done(stream);
}

static void test_sim_blocks_come_in_any_order(void **state)
{
    (void)state;

    enum { BLOCKS = 16, RUNS = 8 };

    cudaStream_t stream = stream_new();
    uint32_t *counter = device_new(sizeof *counter), *last = device_new(sizeof *last);
    uint32_t first_last = 0;
    bool differs = false;
    for (int run = 0; run < RUNS; run++) {
        *counter = 0;
        probe_last_block(stream, counter, last, BLOCKS);
        finish(stream);
        assert_int_equal(*counter, BLOCKS);
        assert_true(*last < BLOCKS);
        first_last = run == 0 ? *last : first_last;
        differs = differs || *last != first_last;
    }
    assert_true(differs);
    assert_int_equal(cudaFree(counter), cudaSuccess);
    assert_int_equal(cudaFree(last), cudaSuccess);
    done(stream);
}

// ---- wrong results ----

static void test_sim_missing_barrier_shows(void **state)
{
    (void)state;

    enum { N = 128, RUNS = 8 };

    cudaStream_t stream = stream_new();
    float *in = random_new(N), *out = device_new(N * sizeof *out);
    for (int run = 0; run < RUNS; run++) {
        probe_race(stream, in, out, N);
        finish(stream);
        assert_int_not_equal(n_wrong_of_reverse(in, out, N), 0);
    }
    assert_int_equal(cudaFree(in), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
    done(stream);
}

static void test_sim_missing_wait_shows(void **state)
{
    (void)state;

    enum { N = 256 };

    cudaStream_t stream = stream_new();
    float *in = random_new(N), *out = device_new(N * sizeof *out);
    probe_no_wait(stream, in, out, N);
    finish(stream);
    for (int i = 0; i < N; i++) {
        assert_true(isnan(out[i]));
    }
    assert_int_equal(cudaFree(in), cudaSuccess);
    assert_int_equal(cudaFree(out), cudaSuccess);
    done(stream);
}

// ---- the process ends ----

/* Runs crime in a child, which must die and say `text`. */
static void assert_dies_saying(void (*crime)(int), int argument, const char *text)
{
    int pipe_ends[2];
    assert_int_equal(pipe(pipe_ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        (void)signal(SIGABRT, SIG_DFL); // cmocka would take it for a failed test
        (void)dup2(pipe_ends[1], STDERR_FILENO);
        (void)close(pipe_ends[0]);
        crime(argument);
        _exit(0);
    }
    (void)close(pipe_ends[1]);
    char said[8192];
    size_t n = 0;
    for (ssize_t got = 1; got > 0 && n<sizeof said - 1; n += got> 0 ? (size_t)got : 0) {
        got = read(pipe_ends[0], said + n, sizeof said - 1 - n);
    }
    said[n] = '\0';
    (void)close(pipe_ends[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (strstr(said, text) == NULL || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        fail_msg("want a failure that says \"%s\", got status %d and \"%s\"", text, status, said);
    }
}

static void commit(int crime)
{
    cudaStream_t stream = stream_new();
    float *data = device_new(64 * sizeof *data);
    probe_commit(stream, (enum probe_crime)crime, data);
    (void)cudaStreamSynchronize(stream);
}

static void test_sim_undefined_behaviour_ends_the_process(void **state)
{
    (void)state;
    assert_dies_saying(commit, PROBE_SHUFFLE_HALF, "no thread can go on");
    assert_dies_saying(commit, PROBE_SHUFFLE_HALF, "kernel crimes, block (0, 0, 0)");
    assert_dies_saying(commit, PROBE_SHUFFLE_ENDED, "have ended");
    assert_dies_saying(commit, PROBE_BARRIER_BRANCH, "different barriers");
    assert_dies_saying(commit, PROBE_BARRIER_ENDED, "barrier");
    assert_dies_saying(commit, PROBE_SHARED_OVERRUN, "written 0 bytes after");
    assert_dies_saying(commit, PROBE_ASYNC_MISALIGNED, "not aligned to 16");
    assert_dies_saying(commit, PROBE_VECTOR_MISALIGNED, "misaligned");
}

static void write_after(int n_bytes)
{
    char *data = device_new(100);
    data[100 + n_bytes - 1] = 0;
    (void)cudaFree(data);
}

static void launch_on_host_memory(int unused)
{
    (void)unused;
    float data[64] = {0};
    probe_commit(stream_new(), PROBE_VECTOR_MISALIGNED, data);
}

static void copy_too_much(int n_bytes)
{
    char host[200] = {0};
    (void)cudaMemcpyAsync(device_new(100), host, (size_t)n_bytes, cudaMemcpyHostToDevice,
                          stream_new());
}

static void test_sim_memory_misuse_ends_the_process(void **state)
{
    (void)state;
    assert_dies_saying(write_after, 1, "written 1 bytes after");
    assert_dies_saying(write_after, 156, "written 156 bytes after");
    assert_dies_saying(launch_on_host_memory, 0, "not device memory");
    assert_dies_saying(copy_too_much, 101, "not within device memory");
}

static void test_sim_bad_launches_are_errors(void **state)
{
    (void)state;
    cudaStream_t stream = stream_new();
    uint32_t *data = device_new(sizeof *data);
    probe_last_block(stream, data, data, 0);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaFree(data), cudaSuccess);
    done(stream);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sim_barriers_and_shared_memory),
        cmocka_unit_test(test_sim_mma_is_a_matrix_product),
        cmocka_unit_test(test_sim_mma_of_int8_is_a_matrix_product),
        cmocka_unit_test(test_sim_bytes_and_pairs),
        cmocka_unit_test(test_sim_ldmatrix_positions),
        cmocka_unit_test(test_sim_async_copies),
        cmocka_unit_test(test_sim_warp_functions),
        cmocka_unit_test(test_sim_blocks_come_in_any_order),
        cmocka_unit_test(test_sim_missing_barrier_shows),
        cmocka_unit_test(test_sim_missing_wait_shows),
        cmocka_unit_test(test_sim_undefined_behaviour_ends_the_process),
        cmocka_unit_test(test_sim_memory_misuse_ends_the_process),
        cmocka_unit_test(test_sim_bad_launches_are_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * bench_matmul.c - speed of packed matmul beside what this machine can do
 *
 * What:  `bench_kernels [threads] [isa]` prints the fp32 FMA peak and the speed of reading memory, measured here, and for
 *        n = 5632, k = 2048, several m and every format of weights the GFLOP/s, the GB/s of weights, and the fraction of the peak. Not a test: nothing
 *        fails. The matmuls of one m run over several matrices in turn, more than the last cache holds.
 * Units: GB is 1e9 bytes; a fused multiply-add is 2 flops. The best of several rounds, as other work on the machine
 *        only ever takes away.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/cpu.h"

enum { N_OUT = 5632, N_IN = 2048, N_MATRICES = 4, ROUNDS = 5 };

/* One thread is timed by its own processor time, which other work on the machine hardly touches; a team by the wall. */
static double seconds(int n_threads)
{
    struct timespec t;
    clock_gettime(n_threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void require(status_t s)
{
    if (!status_is_ok(&s)) {
        status_print(stderr, &s);
        exit(status_exit_code(&s));
    }
}

// ---- what the machine can do ----

enum { FMA_CHAINS = 12, FMA_STEPS = 1 << 22 };

/* Twelve chains that do nothing but multiply and add: more than the latency of one needs. */
#define FMA_PEAK(name, lanes, features)                                                     \
    static __attribute__((target(features))) double name(void)                              \
    {                                                                                       \
        typedef float v __attribute__((vector_size((lanes)*4)));                            \
        const v a = (v){0} + 0.999f, b = (v){0} + 0.001f;                                   \
        v c0 = a, c1 = a, c2 = a, c3 = a, c4 = a, c5 = a;                                   \
        v c6 = a, c7 = a, c8 = a, c9 = a, c10 = a, c11 = a;                                 \
        for (int i = 0; i < FMA_STEPS; i++) {                                               \
            __asm__ volatile("vfmadd213ps %7, %6, %0; vfmadd213ps %7, %6, %1;"              \
                             "vfmadd213ps %7, %6, %2; vfmadd213ps %7, %6, %3;"              \
                             "vfmadd213ps %7, %6, %4; vfmadd213ps %7, %6, %5;"              \
                             : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5)   \
                             : "x"(a), "x"(b));                                             \
            __asm__ volatile("vfmadd213ps %7, %6, %0; vfmadd213ps %7, %6, %1;"              \
                             "vfmadd213ps %7, %6, %2; vfmadd213ps %7, %6, %3;"              \
                             "vfmadd213ps %7, %6, %4; vfmadd213ps %7, %6, %5;"              \
                             : "+x"(c6), "+x"(c7), "+x"(c8), "+x"(c9), "+x"(c10), "+x"(c11) \
                             : "x"(a), "x"(b));                                             \
        }                                                                                   \
        return 2.0 * (lanes)*FMA_CHAINS * (double)FMA_STEPS;                                \
    }

FMA_PEAK(fma_avx2, 8, "avx2,fma")
FMA_PEAK(fma_avx512, 16, "avx512f")

static void fma_task(void *context, int64_t task, int thread)
{
    (void)thread;
    double *flops = context;
    flops[task] = __builtin_cpu_supports("avx512f") ? fma_avx512() : fma_avx2();
}

static double fma_peak(const struct backend_stream *stream)
{
    const int n_threads = stream->n_threads;
    double best = 0.0;
    double flops[CPU_MAX_THREADS] = {0};
    for (int round = 0; round < ROUNDS; round++) {
        const double begin = seconds(n_threads);
        cpu_team_run(stream->team, n_threads, fma_task, flops);
        const double speed = flops[0] * n_threads / (seconds(n_threads) - begin) * 1e-9;
        best = speed > best ? speed : best;
    }
    return best;
}

static void empty_task(void *context, int64_t task, int thread)
{
    (void)context;
    (void)task;
    (void)thread;
}

/* What a job costs beside its tasks, one of which each thread could take. */
static double empty_job_us(const struct backend_stream *stream)
{
    enum { JOBS = 2000 };

    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        const double begin = seconds(stream->n_threads);
        for (int i = 0; i < JOBS; i++) {
            cpu_team_run(stream->team, stream->n_threads, empty_task, NULL);
        }
        const double us = (seconds(stream->n_threads) - begin) * 1e6 / JOBS;
        best = us < best ? us : best;
    }
    return best;
}

enum { READ_BYTES = 1 << 28, READ_STRETCH = 1 << 20 };

/* Four places at once: one stream does not keep enough lines in flight. */
static void read_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const char *data = (const char *)context + task * READ_STRETCH;
    uint64_t sum[8] = {0};
    for (int i = 0; i < READ_STRETCH / 4; i += 64) {
        for (int stream = 0; stream < 4; stream++) {
            uint64_t line[8];
            memcpy(line, data + (ptrdiff_t)stream * (READ_STRETCH / 4) + i, sizeof line);
            for (int j = 0; j < 8; j++) {
                sum[j] ^= line[j];
            }
        }
    }
    volatile uint64_t sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
    (void)sink;
}

static double read_speed(const struct backend_stream *stream)
{
    const int n_threads = stream->n_threads;
    void *data = NULL;
    require(cpu_mem_alloc(READ_BYTES, &data));
    memset(data, 1, READ_BYTES);
    double best = 0.0;
    for (int round = 0; round < ROUNDS; round++) {
        const double begin = seconds(n_threads);
        cpu_team_run(stream->team, READ_BYTES / READ_STRETCH, read_task, data);
        const double speed = READ_BYTES / (seconds(n_threads) - begin) * 1e-9;
        best = speed > best ? speed : best;
    }
    cpu_mem_free(data);
    return best;
}

// ---- matmul ----

enum { MAX_M = 512, N_SIZES = 9 };

static const int sizes[N_SIZES] = {1, 2, 4, 8, 16, 32, 64, 128, MAX_M};

static const struct {
    int format;
    const char *name;
} formats[] = {{MATRIX_F32, "float32"},
               {MATRIX_BF16, "bfloat16"},
               {MATRIX_I8, "int8"},
               {MATRIX_W8A8, "w8a8"}};

enum { N_FORMATS = sizeof formats / sizeof formats[0], BF16_FORMAT = 1 };

struct weights {
    struct matrix *matrix[N_MATRICES];
};

/* Every format's, so that they are measured side by side. */
struct bench {
    struct backend_stream *stream;
    struct weights weights[N_FORMATS];
    float *x, *out;
    void *scratch;
    double peak, read;
};

static void make_weights(struct backend_stream *stream, int format, struct weights *weights)
{
    float *rows = malloc((size_t)N_OUT * N_IN * sizeof *rows);
    if (rows == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < (size_t)N_OUT * N_IN; i++) {
        rows[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.5f;
    }
    for (int i = 0; i < N_MATRICES; i++) {
        const double begin = seconds(1);
        require(cpu_matrix_new(format, N_OUT, N_IN, &weights->matrix[i]));
        const struct matrix_write_args args = {
            .matrix = weights->matrix[i],
            .n_rows = N_OUT,
            .src = rows,
            .src_dtype = DTYPE_F32,
            .ld_src = N_IN,
        };
        require(cpu_matrix_write(stream, &args));
        if (i == N_MATRICES - 1) {
            printf("  packing from float32: %.0f ms, %.2f G elements/s\n",
                   (seconds(1) - begin) * 1e3, N_OUT * (double)N_IN / (seconds(1) - begin) * 1e-9);
        }
    }
    free(rows);
}

static double time_matmul(const struct bench *b, const struct weights *weights, int m)
{
    const int repeats = m >= 64 ? 1 : 4;
    const int n_threads = b->stream->n_threads;
    const double begin = seconds(n_threads);
    for (int i = 0; i < repeats * N_MATRICES; i++) {
        const struct matmul_args args = {
            .weight = weights->matrix[i % N_MATRICES],
            .scratch = b->scratch,
            .x = b->x,
            .ld_x = N_IN,
            .n_rows = m,
            .out = b->out,
            .ld_out = N_OUT,
        };
        require(cpu_matmul(b->stream, &args));
    }
    return (seconds(n_threads) - begin) / (repeats * N_MATRICES);
}

/* The formats take turns, so that what else the machine does hits all of them alike. */
static void bench_size(const struct bench *b, int m)
{
    double best[N_FORMATS];
    for (int round = 0; round < ROUNDS; round++) {
        for (int f = 0; f < N_FORMATS; f++) {
            const double s = time_matmul(b, &b->weights[f], m);
            best[f] = round == 0 || s < best[f] ? s : best[f];
        }
    }
    for (int f = 0; f < N_FORMATS; f++) {
        const double gflops = 2.0 * m * N_OUT * N_IN / best[f] * 1e-9;
        const double gbytes =
            (double)cpu_matrix_bytes(formats[f].format, N_OUT, N_IN) / best[f] * 1e-9;
        printf("m = %3d %-8s: %8.3f ms  %6.1f GFLOP/s (%3.0f %% of peak)  %5.1f GB/s (%3.0f %% of "
               "reading)  %4.2f of bfloat16's speed\n",
               m, formats[f].name, best[f] * 1e3, gflops, 100.0 * gflops / b->peak, gbytes,
               100.0 * gbytes / b->read, best[BF16_FORMAT] / best[f]);
    }
}

static void bench_init(struct bench *b)
{
    b->x = malloc((size_t)MAX_M * N_IN * sizeof *b->x);
    b->out = malloc((size_t)MAX_M * N_OUT * sizeof *b->out);
    b->scratch = aligned_alloc(64, int8_rows_bytes(MAX_M, N_IN));
    if (b->x == NULL || b->out == NULL || b->scratch == NULL) {
        exit(1);
    }
    for (int i = 0; i < MAX_M * N_IN; i++) {
        b->x[i] = (float)(i % 17) * 0.1f - 0.8f;
    }
    for (int f = 0; f < N_FORMATS; f++) {
        printf("%s weights, n = %d, k = %d\n", formats[f].name, N_OUT, N_IN);
        make_weights(b->stream, formats[f].format, &b->weights[f]);
    }
}

static void bench_destroy(struct bench *b)
{
    for (int i = 0; i < N_FORMATS * N_MATRICES; i++) {
        cpu_matrix_free(b->weights[i / N_MATRICES].matrix[i % N_MATRICES]);
    }
    free(b->x);
    free(b->out);
    free(b->scratch);
    backend_cpu()->stream_free(b->stream);
}

int main(int argc, char **argv)
{
    const int n_threads = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 1;
    struct bench b = {0};
    require(cpu_stream_new_isa(n_threads, argc > 2 ? argv[2] : "auto", &b.stream));

    b.peak = fma_peak(b.stream);
    b.read = read_speed(b.stream);
    printf("%s, %d threads: fp32 FMA %.0f GFLOP/s, memory read %.1f GB/s, an empty job %.2f us\n",
           b.stream->isa->name, n_threads, b.peak, b.read, empty_job_us(b.stream));
    bench_init(&b);
    for (int i = 0; i < N_SIZES; i++) {
        bench_size(&b, sizes[i]);
    }
    bench_destroy(&b);
    return 0;
}

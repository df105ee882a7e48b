#include "worker/bench_floor.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/philox.h"

enum { ROUNDS = 3, PIECE_ROWS = 64 };

#define ROUND_NS (60 * NS_PER_MS)

/* Larger than the last cache, and large enough for the fast algorithms. */
struct sizes {
    size_t copy_bytes;
    int32_t n; /* of the square matrix */
};

struct bench {
    const struct backend *backend;
    struct backend_stream *stream;
    struct sizes sizes;
    void *from, *to;
    struct matrix *matrix;
    void *x, *out;
    float *piece; /* host [PIECE_ROWS, n] */
};

static size_t square_bytes(const struct bench *b)
{
    return (size_t)b->sizes.n * (size_t)b->sizes.n * dtype_bytes(b->backend->activation);
}

/* bfloat16 of a float that needs no rounding for this: its upper half. */
static void narrow(const float *from, uint16_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        to[i] = (uint16_t)(bits >> 16);
    }
}

static status_t fill_square(struct bench *b)
{
    const size_t n = (size_t)PIECE_ROWS * (size_t)b->sizes.n;
    const int activation = b->backend->activation;
    for (int32_t row = 0; row < b->sizes.n; row += PIECE_ROWS) {
        const struct matrix_write_args write = {.matrix = b->matrix,
                                                .row_begin = row,
                                                .n_rows = PIECE_ROWS,
                                                .src = b->piece,
                                                .src_dtype = DTYPE_F32,
                                                .ld_src = b->sizes.n};
        TRY(b->backend->matrix_write(b->stream, &write));
    }
    if (activation == DTYPE_BF16) {
        narrow(b->piece, (uint16_t *)b->piece, n); // in place: each goes below what is still read
    }
    const size_t piece_bytes = n * dtype_bytes(activation);
    for (int32_t row = 0; row < b->sizes.n; row += PIECE_ROWS) {
        char *to = (char *)b->x + (size_t)(row / PIECE_ROWS) * piece_bytes;
        TRY(b->backend->upload(b->stream, to, b->piece, piece_bytes));
    }
    return b->backend->stream_sync(b->stream);
}

/* Neither zeros, which some devices multiply faster, nor numbers that add up to infinity. */
static void draw(float *to, size_t n)
{
    static const uint32_t key[2] = {1, 2};
    uint32_t bits[4] = {0};
    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0) {
            const uint32_t counter[4] = {(uint32_t)(i / 4)};
            philox_4x32(counter, key, bits);
        }
        to[i] = (philox_uniform(bits[i % 4]) - 0.5F) * 0.07F;
    }
}

static status_t alloc(struct bench *b, const struct bench_floor_options *options)
{
    const struct stream_options stream = {.device = options->device,
                                          .n_threads = options->cores->n_threads,
                                          .cores = options->cores->pinned ? options->cores->cores
                                                                          : NULL};
    TRY(b->backend->stream_new(&stream, &b->stream));
    TRY(b->backend->mem_alloc(b->stream, b->sizes.copy_bytes, &b->from));
    TRY(b->backend->mem_alloc(b->stream, b->sizes.copy_bytes, &b->to));
    TRY(b->backend->zero(b->stream, b->from, b->sizes.copy_bytes));
    TRY(b->backend->mem_alloc(b->stream, square_bytes(b), &b->x));
    TRY(b->backend->mem_alloc(b->stream, square_bytes(b), &b->out));
    TRY(b->backend->matrix_new(b->stream, DTYPE_BF16, b->sizes.n, b->sizes.n, &b->matrix));
    b->piece = calloc((size_t)PIECE_ROWS * (size_t)b->sizes.n, sizeof *b->piece);
    if (b->piece == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d rows", PIECE_ROWS);
    }
    draw(b->piece, (size_t)PIECE_ROWS * (size_t)b->sizes.n);
    return status_ok();
}

static void destroy(struct bench *b)
{
    if (b->stream != NULL) {
        b->backend->mem_free(b->stream, b->from);
        b->backend->mem_free(b->stream, b->to);
        b->backend->mem_free(b->stream, b->x);
        b->backend->mem_free(b->stream, b->out);
        b->backend->matrix_free(b->matrix);
    }
    b->backend->stream_free(b->stream);
    free(b->piece);
}

static status_t copy(struct bench *b)
{
    const int64_t row = 1 << 20;
    const struct strip strip = {.from = b->from,
                                .to = b->to,
                                .from_stride_bytes = row,
                                .to_stride_bytes = row,
                                .row_bytes = row,
                                .n_rows = (int32_t)(b->sizes.copy_bytes >> 20)};
    return b->backend->copy_strips(b->stream, &strip, 1);
}

static status_t multiply(struct bench *b)
{
    const struct matmul_args args = {.weight = b->matrix,
                                     .x = b->x,
                                     .ld_x = b->sizes.n,
                                     .out = b->out,
                                     .ld_out = b->sizes.n,
                                     .n_rows = b->sizes.n,
                                     .out_dtype = b->backend->activation};
    return b->backend->matmul(b->stream, &args);
}

/* Seconds of a call in the fastest round: what disturbs a measurement makes it longer. */
static status_t time_op(struct bench *b, status_t (*op)(struct bench *), double *seconds_out)
{
    double best = 0;
    for (int round = 0; round <= ROUNDS; round++) { // the first one warms up
        const uint64_t begin = clock_now_ns(clock_system());
        uint64_t elapsed = 0;
        int n = 0;
        while (n == 0 || (round > 0 && elapsed < ROUND_NS)) {
            TRY(op(b));
            TRY(b->backend->stream_sync(b->stream));
            elapsed = clock_now_ns(clock_system()) - begin;
            n++;
        }
        const double seconds = (double)elapsed * 1e-9 / n;
        if (round > 0 && (best <= 0 || seconds < best)) {
            best = seconds;
        }
    }
    *seconds_out = best;
    return status_ok();
}

static status_t prepare(struct bench *b, const struct bench_floor_options *options)
{
    TRY(alloc(b, options));
    return fill_square(b);
}

static status_t measure(struct group *group, struct bench *b,
                        const struct bench_floor_options *options, struct bench_floor *floor)
{
    double copy_s = 0, multiply_s = 0;
    TRY(group_agree(group, prepare(b, options)));
    TRY(group_agree(group, time_op(b, copy, &copy_s)));
    TRY(group_agree(group, time_op(b, multiply, &multiply_s)));
    const double n = b->sizes.n;
    *floor = (struct bench_floor){.copy_bytes_s = 2 * (double)b->sizes.copy_bytes / copy_s,
                                  .matmul_flops_s = 2 * n * n * n / multiply_s};
    return status_ok();
}

status_t bench_floor_measure(struct group *group, const struct bench_floor_options *options,
                             struct bench_floor *floor_out)
{
    static const struct sizes of_host = {.copy_bytes = (size_t)128 << 20, .n = 1024};
    static const struct sizes of_device = {.copy_bytes = (size_t)1 << 30, .n = 8192};
    struct bench b = {.backend = options->backend,
                      .sizes = options->backend->host_memory ? of_host : of_device};
    const status_t s = measure(group, &b, options, floor_out);
    destroy(&b);
    return s;
}

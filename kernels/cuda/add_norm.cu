/*
 * add_norm.cu - x[r] += delta[r]; out[i] = norm(x[r]) * weight (+ bias)
 *
 * Shapes:   x [.., D] float32, delta [.., D] and out [M, D] bfloat16, weight and bias [D] float32; any D.
 * Mapping:  a block a row. A thread keeps up to `kept` eights of columns, `blockDim` eights apart, in registers with their
 *           weights, so that x and delta are read once and weights come while the sums are taken. Rows of more than 16384
 *           columns (kept = 0) are read again instead, each column by the thread that wrote it.
 * Numerics: float32. Sums: a thread's columns in order, then lanes by halving, then warps by halving: the order is that of D
 *           alone. The variance is that of differences from the mean (two passes over registers).
 * Cost:     memory bound: 10 D bytes read and written for x and delta, 2 D for out; 48 KB a row at D = 4096. Bytes under
 *           way: 48 a thread, 96 KB a multiprocessor of 2048 threads, against some 24-48 KB that hide memory's latency. The
 *           weights come from the second-level cache. Expected: 85-90 % of copy bandwidth from 1024 rows on. (computed)
 * Source:   Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.
 */
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"

enum { MAX_THREADS = 512, MAX_WARPS = MAX_THREADS / KVASIR_WARP };

// ---- device helpers ----

/* The sum over the block, the same in all threads. Each call of a kernel has partial sums of its own. */
static __device__ __forceinline__ float block_sum(float x, float *partial)
{
    const int lane = (int)threadIdx.x % KVASIR_WARP, warp = (int)threadIdx.x / KVASIR_WARP;
    x = warp_sum(x);
    if (lane == 0) {
        partial[warp] = x;
    }
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / KVASIR_WARP ? partial[lane] : 0.0f);
}

/* Eight columns of x, with delta added and put back. */
template <bool whole>
static __device__ __forceinline__ columns add_columns(const add_norm_args &a, int64_t row,
                                                      int column)
{
    const int n = a.n_columns - column;
    const int64_t at = row * a.n_columns + column;
    columns c = columns_get<whole>(a.x + at, n);
    if (a.delta != nullptr) {
        const columns d = columns_get<whole>(static_cast<const bf16 *>(a.delta) + at, n);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            c.x[i] += d.x[i];
        }
        columns_put<whole>(a.x + at, c, n);
    }
    return c;
}

/* The columns of a thread: in registers, or in x. */
template <bool whole, int kept> struct row_part {
    columns values[kept > 0 ? kept : 1];
};

template <bool whole, int kept>
static __device__ __forceinline__ columns part_get(const row_part<whole, kept> &part,
                                                   const add_norm_args &a, int64_t row, int i,
                                                   int column)
{
    if constexpr (kept > 0) {
        return part.values[i];
    } else {
        return columns_get<whole>(a.x + row * a.n_columns + column, a.n_columns - column);
    }
}

/* (c - mean)^2 summed over those of the eight columns that exist. */
static __device__ __forceinline__ float square_sum(const columns &c, float mean, int n)
{
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const float y = i < n ? c.x[i] - mean : 0.0f;
        sum += y * y;
    }
    return sum;
}

static __device__ __forceinline__ float plain_sum(const columns &c)
{
    return ((c.x[0] + c.x[1]) + (c.x[2] + c.x[3])) + ((c.x[4] + c.x[5]) + (c.x[6] + c.x[7]));
}

// ---- kernels ----

template <bool whole, int kept, int kind>
static __global__ void __launch_bounds__(MAX_THREADS) add_norm(add_norm_args a)
{
    __shared__ float partial_sums[MAX_WARPS], partial_squares[MAX_WARPS];
    const int64_t row = a.rows != nullptr ? a.rows[blockIdx.x] : (int)blockIdx.x;
    const int step = (int)blockDim.x * COLUMNS, first = (int)threadIdx.x * COLUMNS;
    const int n_parts = kept > 0 ? kept : (a.n_columns + step - 1) / step;
    row_part<whole, kept> part;
    columns weights[kept > 0 ? kept : 1];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < n_parts; i++) {
        const int column = first + i * step;
        columns c = {}, w = {};
        if (column < a.n_columns) {
            c = add_columns<whole>(a, row, column);
            if (kept > 0 && a.out != nullptr) {
                w = columns_get<whole>(a.weight + column, a.n_columns - column);
            }
        }
        if constexpr (kept > 0) {
            part.values[i] = c;
            weights[i] = w;
        }
        sum += plain_sum(c);
    }
    if (a.out == nullptr) {
        return; // all threads alike
    }
    const float mean =
        kind == NORM_LAYER ? block_sum(sum, partial_sums) / (float)a.n_columns : 0.0f;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < n_parts; i++) {
        const int column = first + i * step;
        if (column < a.n_columns) {
            squares += square_sum(part_get(part, a, row, i, column), mean, a.n_columns - column);
        }
    }
    const float scale = rsqrtf(block_sum(squares, partial_squares) / (float)a.n_columns + a.eps);
#pragma unroll
    for (int i = 0; i < n_parts; i++) {
        const int column = first + i * step, n = a.n_columns - column;
        if (column >= a.n_columns) {
            break;
        }
        columns c = part_get(part, a, row, i, column);
        const columns w = kept > 0 ? weights[i] : columns_get<whole>(a.weight + column, n);
        const columns b = kind == NORM_LAYER ? columns_get<whole>(a.bias + column, n) : columns{};
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            c.x[j] = (c.x[j] - mean) * scale * w.x[j] + b.x[j];
        }
        columns_put<whole>(static_cast<bf16 *>(a.out) + (int64_t)blockIdx.x * a.n_columns + column,
                           c, n);
    }
}

// ---- launchers ----

template <bool whole, int kept>
static void launch(struct backend_stream *stream, const add_norm_args *a, int n_threads)
{
    if (a->kind == NORM_RMS) {
        KVASIR_LAUNCH((add_norm<whole, kept, NORM_RMS>), (unsigned)a->n_rows, (unsigned)n_threads,
                      0, stream->stream, *a);
    } else {
        KVASIR_LAUNCH((add_norm<whole, kept, NORM_LAYER>), (unsigned)a->n_rows, (unsigned)n_threads,
                      0, stream->stream, *a);
    }
}

template <bool whole> static void launch_for(struct backend_stream *stream, const add_norm_args *a)
{
    const int n_chunks = (a->n_columns + COLUMNS - 1) / COLUMNS;
    const int n_warps = (n_chunks + KVASIR_WARP - 1) / KVASIR_WARP;
    const int n_threads = n_warps < MAX_WARPS ? n_warps * KVASIR_WARP : MAX_THREADS;
    const int n_parts = (n_chunks + n_threads - 1) / n_threads;
    if (n_parts <= 1) {
        launch<whole, 1>(stream, a, n_threads);
    } else if (n_parts <= 2) {
        launch<whole, 2>(stream, a, n_threads);
    } else if (n_parts <= 4) {
        launch<whole, 4>(stream, a, n_threads);
    } else {
        launch<whole, 0>(stream, a, n_threads);
    }
}

extern "C" status_t cuda_add_norm(struct backend_stream *stream, const struct add_norm_args *a)
{
    const bool has_norm = a->out != nullptr;
    if (a->n_rows < 0 || a->n_columns < 1 || (a->kind != NORM_RMS && a->kind != NORM_LAYER) ||
        (has_norm && a->weight == nullptr) ||
        (has_norm && (a->bias != nullptr) != (a->kind == NORM_LAYER))) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "add_norm: %d rows of %d columns, kind %d, weight %s, bias %s",
                             a->n_rows, a->n_columns, a->kind, a->weight != nullptr ? "yes" : "no",
                             a->bias != nullptr ? "yes" : "no");
    }
    if (a->n_rows == 0 || (a->delta == nullptr && !has_norm)) {
        return status_ok();
    }
    const int64_t ld = a->n_columns;
    if (columns_aligned(a->x, ld) && columns_aligned(a->delta, ld) && columns_aligned(a->out, ld) &&
        columns_aligned(a->weight, ld) && columns_aligned(a->bias, ld)) {
        launch_for<true>(stream, a);
    } else {
        launch_for<false>(stream, a);
    }
    return cuda_launched(stream, "add_norm");
}

/*
 * add_norm_row.cuh - a block adds to a row of x and norms it
 *
 * What:      the body of add_norm.cu, with what is added left open: all_reduce.cu adds the sum of several ranks. Both are
 *            launched by add_norm_launch, so that their sums are taken in the same order.
 * Mapping:   see add_norm.cu.
 */
#pragma once

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"

enum { ADD_NORM_MAX_THREADS = 512, ADD_NORM_MAX_WARPS = ADD_NORM_MAX_THREADS / KVASIR_WARP };

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

/* What is added: of this rank, or nothing where delta is NULL. */
struct own_delta {
    const bf16 *delta;

    __device__ __forceinline__ bool is_there() const
    {
        return delta != nullptr;
    }

    template <bool whole> __device__ __forceinline__ columns get(int64_t at, int n) const
    {
        return columns_get<whole>(delta + at, n);
    }
};

/* Eight columns of x, with delta added and put back. */
template <bool whole, typename Delta>
static __device__ __forceinline__ columns add_columns(const add_norm_args &a, const Delta &delta,
                                                      int64_t row, int column)
{
    const int n = a.n_columns - column;
    const int64_t at = row * a.n_columns + column;
    columns c = columns_get<whole>(a.x + at, n);
    if (delta.is_there()) {
        const columns d = delta.template get<whole>(at, n);
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

/* The row of the block. */
template <bool whole, int kept, int kind, typename Delta>
static __device__ __forceinline__ void add_norm_row(const add_norm_args &a, const Delta &delta)
{
    __shared__ float partial_sums[ADD_NORM_MAX_WARPS], partial_squares[ADD_NORM_MAX_WARPS];
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
            c = add_columns<whole>(a, delta, row, column);
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

// ---- launchers: host ----

static inline status_t add_norm_check(const add_norm_args *a, const char *op)
{
    const bool has_norm = a->out != nullptr;
    if (a->n_rows < 0 || a->n_columns < 1 || (a->kind != NORM_RMS && a->kind != NORM_LAYER) ||
        (has_norm && a->weight == nullptr) ||
        (has_norm && (a->bias != nullptr) != (a->kind == NORM_LAYER))) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "%s: %d rows of %d columns, kind %d, weight %s, bias %s", op,
                             a->n_rows, a->n_columns, a->kind, a->weight != nullptr ? "yes" : "no",
                             a->bias != nullptr ? "yes" : "no");
    }
    return status_ok();
}

/* Of x, out and the weights; what is added has to be asked for apart. */
static inline bool add_norm_aligned(const add_norm_args *a)
{
    const int64_t ld = a->n_columns;
    return columns_aligned(a->x, ld) && columns_aligned(a->out, ld) &&
           columns_aligned(a->weight, ld) && columns_aligned(a->bias, ld);
}

template <bool whole, typename Launch>
static void add_norm_launch_for(const add_norm_args *a, const Launch &launch)
{
    const int n_chunks = (a->n_columns + COLUMNS - 1) / COLUMNS;
    const int n_warps = (n_chunks + KVASIR_WARP - 1) / KVASIR_WARP;
    const int n_threads =
        n_warps < ADD_NORM_MAX_WARPS ? n_warps * KVASIR_WARP : ADD_NORM_MAX_THREADS;
    const int n_parts = (n_chunks + n_threads - 1) / n_threads;
    if (n_parts <= 1) {
        launch.template run<whole, 1>(n_threads);
    } else if (n_parts <= 2) {
        launch.template run<whole, 2>(n_threads);
    } else if (n_parts <= 4) {
        launch.template run<whole, 4>(n_threads);
    } else {
        launch.template run<whole, 0>(n_threads);
    }
}

/* Launch has run<whole, kept>(n_threads). */
template <typename Launch>
static void add_norm_launch(const add_norm_args *a, bool aligned, const Launch &launch)
{
    if (aligned) {
        add_norm_launch_for<true>(a, launch);
    } else {
        add_norm_launch_for<false>(a, launch);
    }
}

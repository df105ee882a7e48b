/*
 * ordered_sum.cu - out = parts[0] + parts[1] + ..., from the left
 *
 * Shapes:   parts [n_parts, stride], out [n], float32 or bfloat16; any n.
 * Mapping:  blocks of 256 threads; a thread takes eight elements of every part, a grid apart.
 * Numerics: float32, one chain an element, in the order of the parts; bfloat16 is rounded once, at the end. The order is that
 *           of the parts alone, whatever the grid.
 * Cost:     memory bound: the parts are read once, out is written once.
 */
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"

enum { THREADS = 256, BLOCKS_A_PROCESSOR = 8 };

// ---- kernels ----

template <bool whole, typename T>
static __global__ void __launch_bounds__(THREADS) ordered_sum(ordered_sum_args a)
{
    const T *const parts = static_cast<const T *>(a.parts);
    const int64_t step = (int64_t)gridDim.x * THREADS * COLUMNS;
    for (int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * COLUMNS; at < a.n;
         at += step) {
        const int n = a.n - at < COLUMNS ? (int)(a.n - at) : (int)COLUMNS;
        columns sum = columns_get<whole>(parts + at, n);
#pragma unroll 2
        for (int p = 1; p < a.n_parts; p++) {
            const columns part = columns_get<whole>(parts + p * a.stride + at, n);
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                sum.x[i] += part.x[i];
            }
        }
        columns_put<whole>(static_cast<T *>(a.out) + at, sum, n);
    }
    // Stream order: no other op counts meanwhile.
    if (a.mark != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
        *a.count += 1;
        store_release_system(a.mark, (uint64_t)*a.count << 32 | a.label);
    }
}

// ---- launchers ----

template <bool whole> static void launch(struct backend_stream *stream, const ordered_sum_args *a)
{
    const int64_t n_blocks = (a->n + THREADS * COLUMNS - 1) / (THREADS * COLUMNS);
    const int64_t most = (int64_t)stream->n_processors * BLOCKS_A_PROCESSOR;
    const unsigned grid = n_blocks < 1 ? 1u : (unsigned)(n_blocks < most ? n_blocks : most);
    if (a->dtype == DTYPE_F32) {
        KVASIR_LAUNCH((ordered_sum<whole, float>), grid, THREADS, 0, stream->stream, *a);
    } else {
        KVASIR_LAUNCH((ordered_sum<whole, bf16>), grid, THREADS, 0, stream->stream, *a);
    }
}

extern "C" status_t cuda_ordered_sum(struct backend_stream *stream,
                                     const struct ordered_sum_args *a)
{
    if (a->n < 0 || a->n_parts < 1 || a->stride < a->n ||
        (a->dtype != DTYPE_F32 && a->dtype != DTYPE_BF16)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "ordered_sum: %d parts of %lld elements, stride %lld, dtype %d",
                             a->n_parts, (long long)a->n, (long long)a->stride, a->dtype);
    }
    if (a->n == 0 && a->mark == nullptr) {
        return status_ok();
    }
    if (columns_aligned(a->parts, a->stride) && columns_aligned(a->out, a->n)) {
        launch<true>(stream, a);
    } else {
        launch<false>(stream, a);
    }
    return cuda_launched(stream, "ordered_sum");
}

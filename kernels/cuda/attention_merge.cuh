/*
 * attention_merge.cuh - the parts of a split become rows of the output
 *
 * Layout:   a part leaves for each of its rows outputs that are not divided by their sum, relative to its own maximum; that
 *           maximum in powers of two; and the sum. Parts of a split lie one behind the other (partial_row).
 * Numerics: in float32, in the order of the parts whoever comes last: the bits depend on the plan alone.
 * Cost:     n_splits * (head_dim + 2) * 4 bytes a row are written and read, mostly in the second-level cache.
 */
#pragma once

#include "kernels/cuda/attention.cuh"

// ---- results of splits ----

/* What a part with this maximum (in powers of two) counts beside the largest; 0 for one that saw no key. */
static __device__ __forceinline__ float part_weight(float maximum, float largest)
{
    return maximum == -INFINITY ? 0.0f : fast_exp2(maximum - largest);
}

/* Row of the partial results at which the unit's own begin. */
static __device__ __forceinline__ int32_t partial_row(const attention_unit &unit)
{
    return unit.partial + unit.split * unit.n_rows;
}

static __device__ __forceinline__ void store_8(bf16 *to, const float (&x)[8])
{
    const uint4 packed = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
                          pack_bf16(x[6], x[7])};
    *reinterpret_cast<uint4 *>(to) = packed;
}

static __device__ __forceinline__ void add_8(float (&sum)[8], const float *from, float weight)
{
    const float4 low = reinterpret_cast<const float4 *>(from)[0];
    const float4 high = reinterpret_cast<const float4 *>(from)[1];
    sum[0] += weight * low.x;
    sum[1] += weight * low.y;
    sum[2] += weight * low.z;
    sum[3] += weight * low.w;
    sum[4] += weight * high.x;
    sum[5] += weight * high.y;
    sum[6] += weight * high.z;
    sum[7] += weight * high.w;
}

/* A piece of a row that is done: divided by its sum, or as a part. */
template <int HD>
static __device__ __forceinline__ void put_row(const attention_view &view, const attention_seq &seq,
                                               const attention_unit &unit, int row, int piece,
                                               float (&x)[8], float base, float sum)
{
    if (view.leaves_parts) {
        float *const to = static_cast<float *>(view.out) + part_element<HD>(view, seq, unit, row);
        float4 *const columns = reinterpret_cast<float4 *>(to + piece * 8);
        columns[0] = {x[0], x[1], x[2], x[3]};
        columns[1] = {x[4], x[5], x[6], x[7]};
        if (piece == 0) {
            *reinterpret_cast<float4 *>(to + HD) = {base, sum, 0.0f, 0.0f};
        }
        return;
    }
    for (int d = 0; d < 8; d++) {
        x[d] /= sum;
    }
    store_8(static_cast<bf16 *>(view.out) + row_element<HD>(view, seq, unit, row) + piece * 8, x);
}

/* All threads: the rows of a split from its parts, in their order, whoever was last. */
template <int HD>
static __device__ void merge_parts(const attention_view &view, const attention_seq &seq,
                                   const attention_unit &unit)
{
    for (int i = (int)threadIdx.x; i < unit.n_rows * (HD / 8); i += ATTENTION_THREADS) {
        const int row = i / (HD / 8), piece = i % (HD / 8);
        float largest = -INFINITY;
#pragma unroll 4
        for (int part = 0; part < unit.n_splits; part++) {
            const int64_t at = unit.partial + part * unit.n_rows + row;
            largest = fmaxf(largest, view.stats[2 * at]);
        }
        float sum = 0.0f, x[8] = {};
#pragma unroll 4 // loads under way, which take some hundred nanoseconds each
        for (int part = 0; part < unit.n_splits; part++) {
            const int64_t at = unit.partial + part * unit.n_rows + row;
            const float weight = part_weight(view.stats[2 * at], largest);
            sum += weight * view.stats[2 * at + 1];
            add_8(x, view.partial + at * HD + piece * 8, weight);
        }
        put_row<HD>(view, seq, unit, row, piece, x, largest, sum);
    }
}

/* All threads, after they wrote their partial results. The block that comes last merges, and leaves the counter at 0. */
template <int HD>
static __device__ __forceinline__ void arrive(const attention_view &view, const attention_seq &seq,
                                              const attention_unit &unit)
{
    __shared__ int is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t *const counter = &view.counters[unit.counter];
        is_last = atomic_add_acq_rel(counter, 1) == (uint32_t)unit.n_splits - 1;
        if (is_last) {
            *counter = 0;
        }
    }
    __syncthreads();
    if (is_last) {
        merge_parts<HD>(view, seq, unit);
    }
}

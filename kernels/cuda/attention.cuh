/*
 * attention.cuh - what the decode and the prefill kernel share: the plan's units, and copies into shared memory
 *
 * Layout:   rows of a tile in shared memory are head_dim bfloat16 and 16 bytes of padding: an odd number of 16-byte pieces,
 *           so that the 8 rows ldmatrix reads at once lie in different banks.
 */
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

typedef struct cuda_attention_view attention_view;
typedef struct cuda_attention_unit attention_unit;
typedef struct attention_seq attention_seq;

enum { ATTENTION_THREADS = 128, ATTENTION_WARPS = 4, PAGE = CUDA_ATTENTION_PAGE };

/* Bytes of a row in shared memory. */
template <int HD> struct tile_row {
    enum { BYTES = (HD / 8 + 1) * 16 };
};

// ---- work ----

/*
 * The block's unit of a round. Units come longest first; every other round goes through the blocks backwards, so that who
 * had the longest of one round has the shortest of the next. -1: none in this round.
 */
static __device__ __forceinline__ int32_t unit_of_round(int32_t round, int32_t n_units)
{
    const int32_t grid = (int32_t)gridDim.x, block = (int32_t)blockIdx.x;
    const int32_t index = round * grid + (round % 2 == 0 ? block : grid - 1 - block);
    return index < n_units ? index : -1;
}

static __device__ __forceinline__ const attention_seq *plan_seqs(const attention_view &view)
{
    return reinterpret_cast<const attention_seq *>(view.plan + 1);
}

static __device__ __forceinline__ const attention_unit *plan_units(const attention_view &view)
{
    const char *const plan = reinterpret_cast<const char *>(view.plan);
    return reinterpret_cast<const attention_unit *>(plan + view.plan->units_at);
}

/* All threads: unit `index` and its sequence to shared memory, where they cost no registers. Ends in a barrier. */
static __device__ __forceinline__ void take_unit(attention_unit *unit, attention_seq *seq,
                                                 const attention_view &view, int32_t index)
{
    if (threadIdx.x == 0) {
        *unit = plan_units(view)[index];
        *seq = plan_seqs(view)[unit->seq];
    }
    __syncthreads();
}

/* Element of q and out at which a packed row of the unit's head begins. */
template <int HD>
static __device__ __forceinline__ int64_t row_element(const attention_view &view,
                                                      const attention_seq &seq,
                                                      const attention_unit &unit, int32_t row)
{
    const int32_t packed = unit.row + row;
    const int32_t token = packed / view.group, head = packed - token * view.group;
    return seq.q_offset + token * seq.ld + ((int64_t)unit.head * view.group + head) * HD;
}

/* Position of a packed row's token: the last key it sees. */
static __device__ __forceinline__ int32_t row_position(const attention_view &view,
                                                       const attention_seq &seq,
                                                       const attention_unit &unit, int32_t row)
{
    return seq.kv_tokens - seq.n_queries + (unit.row + row) / view.group;
}

// ---- copies into shared memory ----

/* All threads: the unit's queries to `q`, zeros in rows it does not have. */
template <int HD>
static __device__ __forceinline__ void
copy_queries(unsigned char *q, int n_rows, const attention_view &view, const attention_seq &seq,
             const attention_unit &unit)
{
    for (int i = (int)threadIdx.x; i < n_rows * (HD / 8); i += ATTENTION_THREADS) {
        const int row = i / (HD / 8), piece = i % (HD / 8);
        const bool wanted = row < unit.n_rows;
        const int64_t at = wanted ? row_element<HD>(view, seq, unit, row) + piece * 8 : 0;
        async_copy_16(q + row * tile_row<HD>::BYTES + piece * 16,
                      static_cast<const bf16 *>(view.q) + at, wanted);
    }
}

/* Which keys of a unit are read; of a page that is only partly among them, the rest becomes zeros: NaN in a V row that
 * nobody sees would come through a probability of 0. */
struct key_range {
    int32_t first, end;
};

static __device__ __forceinline__ key_range keys_of(const attention_view &view,
                                                    const attention_seq &seq,
                                                    const attention_unit &unit)
{
    const int32_t seen = row_position(view, seq, unit, 0) - view.window + 1;
    const int32_t first = view.window > 0 && seen > unit.key_begin ? seen : unit.key_begin;
    return {first, unit.key_end};
}

/* Element of the planes at which the page that begins with `key` begins; 0 where the unit has no such page. */
template <int HD>
static __device__ __forceinline__ int64_t page_element(const attention_view &view,
                                                       const attention_seq &seq,
                                                       const attention_unit &unit, int32_t key)
{
    if (key >= unit.key_end) {
        return 0;
    }
    const int32_t index = key / view.block_tokens;
    const int64_t block = view.blocks[seq.first_block + index];
    const int64_t head_unit = seq.unit_base + block * seq.n_kv_heads + unit.head;
    return (head_unit * view.block_tokens + (key - index * view.block_tokens)) * HD;
}

/* One warp: the PAGE rows of K or V from `key` on, which lie one behind the other. */
template <int HD>
static __device__ __forceinline__ void copy_page(unsigned char *to, const void *plane, int64_t at,
                                                 int32_t key, key_range keys)
{
    const bf16 *const from = static_cast<const bf16 *>(plane) + at;
    const int lane = (int)threadIdx.x % KVASIR_WARP;
#pragma unroll 2 // more of it would take the registers of the prefill kernel
    for (int i = lane; i < PAGE * (HD / 8); i += KVASIR_WARP) {
        const int row = i / (HD / 8), piece = i % (HD / 8);
        const bool wanted = key + row >= keys.first && key + row < keys.end;
        async_copy_16(to + row * tile_row<HD>::BYTES + piece * 16, from + (wanted ? i * 8 : 0),
                      wanted);
    }
}

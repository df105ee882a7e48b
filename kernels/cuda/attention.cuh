/*
 * attention.cuh - what the decode and the prefill kernel share: the plan's units, and copies into shared memory
 *
 * Layout:   rows of a tile in shared memory are an odd number of 16-byte pieces apart, padded where needed, so that the 8 rows
 *           ldmatrix reads at once lie in different banks. Scales of int8 rows lie behind one another, bfloat16.
 *           Beside keys of int8, the 16 columns of each step of queries lie with the even ones first: attention_int8.cuh.
 */
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device.cuh"

typedef struct cuda_attention_view attention_view;
typedef struct cuda_attention_unit attention_unit;
typedef struct attention_seq attention_seq;

enum { ATTENTION_THREADS = 128, ATTENTION_WARPS = 4, PAGE = CUDA_ATTENTION_PAGE };

/* A row of T, bf16 or int8_t, in shared memory. */
template <int HD, class T = bf16> struct tile_row {
    enum { PIECES = HD * (int)sizeof(T) / 16, BYTES = (PIECES | 1) * 16 };
};

/* What the cache stores beside rows of T: a scale each, or nothing. */
template <class T> struct row_scale {
    enum { BYTES = 0 };
};

template <> struct row_scale<int8_t> {
    enum { BYTES = 2 };
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

/* Where a packed row of the unit's head begins, in rows of `width` elements a head that are ld apart. */
static __device__ __forceinline__ int64_t place_of_row(const attention_view &view,
                                                       const attention_unit &unit, int32_t row,
                                                       int64_t ld, int width)
{
    const int32_t packed = unit.row + row;
    const int32_t token = packed / view.group, head = packed - token * view.group;
    return token * ld + ((int64_t)unit.head * view.group + head) * width;
}

/* Element of q and out. */
template <int HD>
static __device__ __forceinline__ int64_t row_element(const attention_view &view,
                                                      const attention_seq &seq,
                                                      const attention_unit &unit, int32_t row)
{
    return seq.q_offset + place_of_row(view, unit, row, seq.ld, HD);
}

/* Float of out, of a partial row. */
template <int HD>
static __device__ __forceinline__ int64_t part_element(const attention_view &view,
                                                       const attention_seq &seq,
                                                       const attention_unit &unit, int32_t row)
{
    return seq.out_offset + place_of_row(view, unit, row, seq.ld_out, HD + ATTENTION_STATS);
}

/* Position of a packed row's token: the last key it sees; -1: none. */
static __device__ __forceinline__ int32_t row_position(const attention_view &view,
                                                       const attention_seq &seq,
                                                       const attention_unit &unit, int32_t row)
{
    const int32_t token = (unit.row + row) / view.group;
    return seq.row_ends != nullptr ? seq.row_ends[token] - 1
                                   : seq.kv_tokens - seq.n_queries + token;
}

// ---- copies into shared memory ----

/* All threads: the unit's queries to `q`, zeros in rows it does not have. */
template <int HD>
static __device__ __forceinline__ void
copy_queries_in_order(unsigned char *q, int n_rows, const attention_view &view,
                      const attention_seq &seq, const attention_unit &unit)
{
    for (int i = (int)threadIdx.x; i < n_rows * (HD / 8); i += ATTENTION_THREADS) {
        const int row = i / (HD / 8), piece = i % (HD / 8);
        const bool wanted = row < unit.n_rows;
        const int64_t at = wanted ? row_element<HD>(view, seq, unit, row) + piece * 8 : 0;
        async_copy_16(q + row * tile_row<HD>::BYTES + piece * 16,
                      static_cast<const bf16 *>(view.q) + at, wanted);
    }
}

/* The same beside keys of int8: of each 16 columns the even ones, then the odd ones. Stored, not copied: to be followed by a
 * barrier. */
template <int HD>
static __device__ __forceinline__ void
copy_queries_even_first(unsigned char *q, int n_rows, const attention_view &view,
                        const attention_seq &seq, const attention_unit &unit)
{
    for (int i = (int)threadIdx.x; i < n_rows * (HD / 16); i += ATTENTION_THREADS) {
        const int row = i / (HD / 16), step = i % (HD / 16);
        uint4 w[2] = {};
        if (row < unit.n_rows) {
            const int64_t at = row_element<HD>(view, seq, unit, row) + step * 16;
            const uint4 *const from =
                reinterpret_cast<const uint4 *>(static_cast<const bf16 *>(view.q) + at);
            w[0] = from[0];
            w[1] = from[1];
        }
        uint4 *const to =
            reinterpret_cast<uint4 *>(q + row * tile_row<HD>::BYTES + step * 2 * (int)sizeof *w);
        to[0] = {low_halves(w[0].x, w[0].y), low_halves(w[0].z, w[0].w), low_halves(w[1].x, w[1].y),
                 low_halves(w[1].z, w[1].w)};
        to[1] = {high_halves(w[0].x, w[0].y), high_halves(w[0].z, w[0].w),
                 high_halves(w[1].x, w[1].y), high_halves(w[1].z, w[1].w)};
    }
}

template <int HD, class T>
static __device__ __forceinline__ void
copy_queries(unsigned char *q, int n_rows, const attention_view &view, const attention_seq &seq,
             const attention_unit &unit)
{
    if constexpr (row_scale<T>::BYTES > 0) {
        copy_queries_even_first<HD>(q, n_rows, view, seq, unit);
    } else {
        copy_queries_in_order<HD>(q, n_rows, view, seq, unit);
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

/* The block the page that begins with `key` lies in; 0 where the unit has no such page. Known ahead of the copy, and in one
 * register until then. */
static __device__ __forceinline__ int32_t page_block(const attention_view &view,
                                                     const attention_seq &seq,
                                                     const attention_unit &unit, int32_t key)
{
    return key < unit.key_end ? view.blocks[seq.first_block + key / view.block_tokens] : 0;
}

/* Row of the planes at which it begins. */
static __device__ __forceinline__ int64_t page_row(const attention_view &view,
                                                   const attention_seq &seq,
                                                   const attention_unit &unit, int32_t key,
                                                   int32_t block)
{
    const int64_t head_unit = seq.unit_base + (int64_t)block * seq.n_kv_heads + unit.head;
    return head_unit * view.block_tokens + key % view.block_tokens;
}

/* One warp: the PAGE rows of K or V from `key` on, which lie one behind the other from row `at` of the plane. */
template <int HD, class T>
static __device__ __forceinline__ void copy_page(unsigned char *to, const void *plane, int64_t at,
                                                 int32_t key, key_range keys)
{
    constexpr int n_pieces = tile_row<HD, T>::PIECES;
    const unsigned char *const from =
        static_cast<const unsigned char *>(plane) + at * (HD * (int)sizeof(T));
    const int lane = (int)threadIdx.x % KVASIR_WARP;
#pragma unroll( \
    row_scale <T>::BYTES > 0 ? 1 : 2) // more of it would take the registers of the prefill kernel
    for (int i = lane; i < PAGE * n_pieces; i += KVASIR_WARP) {
        const int row = i / n_pieces, piece = i % n_pieces;
        const bool wanted = key + row >= keys.first && key + row < keys.end;
        async_copy_16(to + row * tile_row<HD, T>::BYTES + piece * 16, from + (wanted ? i * 16 : 0),
                      wanted);
    }
}

/*
 * One warp: the scales of those rows. Zeros where rows are not read: they may be NaN there, and would come through a
 * probability of 0. A copy can leave out its end; where it is the beginning, in the one page that a window cuts, lanes store
 * what they have read.
 */
static __device__ __forceinline__ void copy_scales(unsigned char *to, const void *scales,
                                                   int64_t at, int32_t key, key_range keys)
{
    enum { PER_COPY = 16 / row_scale<int8_t>::BYTES };

    const uint16_t *const from = static_cast<const uint16_t *>(scales) + at;
    const int lane = (int)threadIdx.x % KVASIR_WARP;
    if (key >= keys.first) {
        if (lane < PAGE / PER_COPY) {
            const int n = min(max(keys.end - key - lane * PER_COPY, 0), (int)PER_COPY);
            async_copy_part(to + lane * 16, n > 0 ? from + lane * PER_COPY : from,
                            n * row_scale<int8_t>::BYTES);
        }
    } else if (lane < PAGE) {
        const bool wanted = key + lane >= keys.first && key + lane < keys.end;
        reinterpret_cast<uint16_t *>(to)[lane] = wanted ? from[lane] : (uint16_t)0;
    }
}

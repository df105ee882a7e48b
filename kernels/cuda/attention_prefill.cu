/*
 * attention_prefill.cu - attention of many query rows: prompts and chunks of prompts over what is cached
 *
 * Math:     softmax(q k^T scale) v, causal, over the paged cache; see kernels/backend.h.
 * Shapes:   a unit is at most 128 rows (queries x heads of the group) of one KV head, and a range of keys.
 * Mapping:  a block of 4 warps a unit, 32 rows a warp; all go through tiles of 64 keys together. One buffer each for K and V:
 *           V of a tile is copied while its scores are computed, K of the next one while its outputs are. Tiles no row of
 *           the unit sees are not in its range; those a warp's own rows do not see, the warp leaves out.
 * Numerics: attention_warp.cuh, attention_int8.cuh. Keys are added in their order, whatever rows are computed beside a row.
 * Cost:     bound by tensor cores: 4 head_dim flops a (row, key). Computed, not measured: a warp and tile of head_dim 128
 *           takes 256 mma (2048 cycles of a scheduler's tensor core on A100) for 80 ldmatrix (1280 cycles of shared memory
 *           for the four warps) and about 500 other instructions, mostly exponentials; two blocks a multiprocessor fill
 *           each other's barriers. Expected, after FlashAttention-2 of the same shape: 50-60 % of 312 Tflop/s on A100, and
 *           a third of the wgmma peak on H200, where mma.sync and shared memory are the limit. Tiles of int8 take half the
 *           ldmatrix of K and V and some 1000 instructions more, which the mma of two blocks still hide.
 * Source:   Dao 2023, arXiv:2307.08691.
 */
#include "kernels/cuda/attention_int8.cuh"
#include "kernels/cuda/attention_merge.cuh"

// ---- device helpers ----

enum {
    ROWS = CUDA_ATTENTION_PREFILL_ROWS,
    TILE = CUDA_ATTENTION_TILE,
    TILES_OF_ROWS = ROWS / ATTENTION_WARPS / 16, /* m16 tiles of a warp */
    PAGES = TILE / PAGE,
};

static_assert((int)PAGES == (int)ATTENTION_WARPS, "a warp copies a page of each tile");

template <int HD, class T> struct prefill_shared {
    enum {
        Q_BYTES = ROWS * tile_row<HD>::BYTES,
        TILE_BYTES = TILE * tile_row<HD, T>::BYTES, /* of K; V's follows, and the scales of both */
        K_SCALES = Q_BYTES + 2 * TILE_BYTES,
        V_SCALES = K_SCALES + TILE * row_scale<T>::BYTES,
        BYTES = V_SCALES + TILE * row_scale<T>::BYTES,
    };
};

/* One warp: its page of a tile, K or V, from row `at` of the planes. */
template <int HD, class T>
static __device__ __forceinline__ void copy_keys(unsigned char *shared, const attention_view &view,
                                                 int64_t at, int32_t key, key_range keys)
{
    typedef prefill_shared<HD, T> layout;
    const int first = (int)threadIdx.x / KVASIR_WARP * PAGE;
    copy_page<HD, T>(shared + layout::Q_BYTES + first * tile_row<HD, T>::BYTES, view.k_plane, at,
                     key, keys);
    if constexpr (row_scale<T>::BYTES > 0) {
        copy_scales(shared + layout::K_SCALES + first * row_scale<T>::BYTES, view.k_scales, at, key,
                    keys);
    }
}

template <int HD, class T>
static __device__ __forceinline__ void copy_values(unsigned char *shared,
                                                   const attention_view &view, int64_t at,
                                                   int32_t key, key_range keys)
{
    typedef prefill_shared<HD, T> layout;
    const int first = (int)threadIdx.x / KVASIR_WARP * PAGE;
    copy_page<HD, T>(shared + layout::Q_BYTES + layout::TILE_BYTES + first * tile_row<HD, T>::BYTES,
                     view.v_plane, at, key, keys);
    if constexpr (row_scale<T>::BYTES > 0) {
        copy_scales(shared + layout::V_SCALES + first * row_scale<T>::BYTES, view.v_scales, at, key,
                    keys);
    }
}

/* The warp's scores of the tile. */
template <int HD, class T>
static __device__ __forceinline__ void tile_scores(float (&s)[TILES_OF_ROWS][2 * PAGES][4],
                                                   const unsigned char *q,
                                                   const unsigned char *shared)
{
    typedef prefill_shared<HD, T> layout;
    if constexpr (row_scale<T>::BYTES > 0) {
        add_scores_int8<HD, TILES_OF_ROWS, PAGES>(s, q, shared + layout::Q_BYTES);
        scale_columns(s, shared + layout::K_SCALES);
    } else {
        add_scores<HD, TILES_OF_ROWS, PAGES>(s, q, shared + layout::Q_BYTES);
    }
}

/* Its outputs, for probabilities s. */
template <int HD, class T>
static __device__ __forceinline__ void tile_outputs(float (&o)[TILES_OF_ROWS][HD / 8][4],
                                                    float (&s)[TILES_OF_ROWS][2 * PAGES][4],
                                                    const unsigned char *shared)
{
    typedef prefill_shared<HD, T> layout;
    const unsigned char *const v = shared + layout::Q_BYTES + layout::TILE_BYTES;
    if constexpr (row_scale<T>::BYTES > 0) {
        scale_columns(s, shared + layout::V_SCALES);
        add_outputs_int8<HD, TILES_OF_ROWS, PAGES>(o, s, v);
    } else {
        add_outputs<HD, TILES_OF_ROWS, PAGES>(o, s, v);
    }
}

/* All warps, through the unit's tiles. */
template <int HD, class T>
static __device__ __forceinline__ void
attend_tiles(row_state<TILES_OF_ROWS> &rows, float (&o)[TILES_OF_ROWS][HD / 8][4],
             unsigned char *shared, const attention_view &view, const attention_seq &seq,
             const attention_unit &unit)
{
    const int warp = (int)threadIdx.x / KVASIR_WARP;
    const int first_row = warp * (ROWS / ATTENTION_WARPS);
    const unsigned char *const q = shared + first_row * tile_row<HD>::BYTES;
    const key_range keys = keys_of(view, seq, unit);

    int32_t block = page_block(view, seq, unit, unit.key_begin + warp * PAGE);
    copy_queries<HD, T>(shared, ROWS, view, seq, unit);
    copy_keys<HD, T>(shared, view, page_row(view, seq, unit, unit.key_begin + warp * PAGE, block),
                     unit.key_begin + warp * PAGE, keys);
    async_commit();
    for (int32_t tile = unit.key_begin; tile < unit.key_end; tile += TILE) {
        const int32_t key = tile + warp * PAGE;
        // Worked out for each tile: there are no registers to keep it in.
        const warp_view mine = view_of_warp(view, seq, unit, first_row, ROWS / ATTENTION_WARPS);
        const bool seen = sees_some(mine, tile, TILE);
        async_wait<0>();
        __syncthreads(); // K is there, and nobody reads the last V
        copy_values<HD, T>(shared, view, page_row(view, seq, unit, key, block), key, keys);
        async_commit();
        block = page_block(view, seq, unit, key + TILE); // in time for the copy below
        float s[TILES_OF_ROWS][2 * PAGES][4] = {};
        if (seen) {
            tile_scores<HD, T>(s, q, shared);
        }
        async_wait<0>();
        __syncthreads(); // V is there, and nobody reads this K
        if (tile + TILE < unit.key_end) {
            copy_keys<HD, T>(shared, view, page_row(view, seq, unit, key + TILE, block), key + TILE,
                             keys);
        }
        async_commit();
        if (seen) {
            if (!sees_all(mine, tile, TILE)) {
                mask_scores(s, view, seq, unit, mine, tile);
            }
            raise_maxima<HD>(s, rows, o, view.scale_log2);
            exponentiate(s, rows, view.scale_log2);
            tile_outputs<HD, T>(o, s, shared);
        }
    }
    finish_sums(rows);
}

/* One row of a lane: its outputs divided by the sum, or as they are to the partial results or as a part. */
template <int HD, class T>
static __device__ __forceinline__ void
store_row(const float (&o)[HD / 8][4], int half, float maximum, float sum, int row,
          const attention_view &view, const attention_seq &seq, const attention_unit &unit)
{
    if (unit.n_splits == 1 && view.leaves_parts) {
        float *const to = static_cast<float *>(view.out) + part_element<HD>(view, seq, unit, row);
        store_columns<HD, T>(to, o, half);
        if (threadIdx.x % 4 == 0) {
            *reinterpret_cast<float4 *>(to + HD) = {maximum * view.scale_log2, sum, 0.0f, 0.0f};
        }
        return;
    }
    if (unit.n_splits == 1) {
        bf16 *const to = static_cast<bf16 *>(view.out) + row_element<HD>(view, seq, unit, row);
        store_columns<HD, T>(to, o, half, 1.0f / sum);
        return;
    }
    const int64_t at = partial_row(unit) + row;
    store_columns<HD, T>(view.partial + at * HD, o, half);
    if (threadIdx.x % 4 == 0) {
        const float2 pair = {maximum * view.scale_log2, sum};
        *reinterpret_cast<float2 *>(view.stats + 2 * at) = pair;
    }
}

// ---- kernels ----

template <int HD, class T>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
    attention_prefill(attention_view view)
{
    KVASIR_SHARED(shared);
    __shared__ attention_unit unit;
    __shared__ attention_seq seq;
    const int32_t n_units = view.plan->work.n_units[CUDA_ATTENTION_PREFILL];
    const int32_t first_unit = view.plan->work.first_unit[CUDA_ATTENTION_PREFILL];
    const int lane = (int)threadIdx.x % KVASIR_WARP;
    const int first_row = (int)threadIdx.x / KVASIR_WARP * (ROWS / ATTENTION_WARPS);

    for (int32_t round = 0; round * (int32_t)gridDim.x < n_units; round++) {
        const int32_t index = unit_of_round(round, n_units);
        if (index < 0) {
            return; // only the last round is not full
        }
        take_unit(&unit, &seq, view, first_unit + index);
        row_state<TILES_OF_ROWS> rows;
        float o[TILES_OF_ROWS][HD / 8][4];
        start_rows<HD>(rows, o);
        attend_tiles<HD, T>(rows, o, shared, view, seq, unit);
#pragma unroll
        for (int mt = 0; mt < TILES_OF_ROWS; mt++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = first_row + mt * 16 + half * 8 + lane / 4;
                if (row < unit.n_rows) {
                    store_row<HD, T>(o[mt], half, rows.maximum[mt][half], rows.sum[mt][half], row,
                                     view, seq, unit);
                }
            }
        }
        if (unit.n_splits > 1) {
            arrive<HD>(view, seq, unit);
        }
        __syncthreads(); // shared memory may be written again
    }
}

// ---- launchers ----

template <int HD, class T>
static void launch(const attention_view *view, int32_t grid, cudaStream_t stream)
{
    KVASIR_LAUNCH((attention_prefill<HD, T>), dim3((unsigned)grid), dim3(ATTENTION_THREADS),
                  (prefill_shared<HD, T>::BYTES), stream, *view);
}

#define PREFILL_KERNEL(dtype, hd, type)                                                       \
    {                                                                                         \
        (dtype), CUDA_ATTENTION_PREFILL, (hd), ROWS, ATTENTION_THREADS,                       \
            prefill_shared<(hd), type>::BYTES,                                                \
            reinterpret_cast<const void *>(attention_prefill<(hd), type>), launch<(hd), type> \
    }

/* Of both dtypes. */
#define PREFILL_KERNELS(hd) \
    PREFILL_KERNEL(DTYPE_BF16, hd, bf16), PREFILL_KERNEL(DTYPE_I8, hd, int8_t)

extern "C" const struct cuda_attention_kernel *cuda_attention_prefill_kernel(int kv_dtype,
                                                                             int32_t head_dim)
{
    static const struct cuda_attention_kernel kernels[] = {
        PREFILL_KERNELS(32), PREFILL_KERNELS(64),  PREFILL_KERNELS(80),
        PREFILL_KERNELS(96), PREFILL_KERNELS(128),
    };
    for (const struct cuda_attention_kernel &kernel : kernels) {
        if (kernel.kv_dtype == kv_dtype && kernel.head_dim == head_dim) {
            return &kernel;
        }
    }
    return nullptr;
}

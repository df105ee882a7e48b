/*
 * attention_prefill.cu - attention of many query rows: prompts and chunks of prompts over what is cached
 *
 * Math:     softmax(q k^T scale) v, causal, over the paged cache; see kernels/backend.h.
 * Shapes:   a unit is at most 128 rows (queries x heads of the group) of one KV head, and a range of keys.
 * Mapping:  a block of 4 warps a unit, 32 rows a warp; all go through tiles of 64 keys together. One buffer each for K and V:
 *           V of a tile is copied while its scores are computed, K of the next one while its outputs are. Tiles no row of
 *           the unit sees are not in its range; those a warp's own rows do not see, the warp leaves out.
 * Numerics: attention.cuh. Keys are added in their order, whatever rows are computed beside a row.
 * Cost:     bound by tensor cores: 4 head_dim flops a (row, key). Computed, not measured: a warp and tile of head_dim 128
 *           takes 256 mma (2048 cycles of a scheduler's tensor core on A100) for 80 ldmatrix (1280 cycles of shared memory
 *           for the four warps) and about 500 other instructions, mostly exponentials; two blocks a multiprocessor fill
 *           each other's barriers. Expected, after FlashAttention-2 of the same shape: 50-60 % of 312 Tflop/s on A100, and
 *           a third of the wgmma peak on H200, where mma.sync and shared memory are the limit.
 * Source:   Dao 2023, arXiv:2307.08691.
 */
#include "kernels/cuda/attention_merge.cuh"
#include "kernels/cuda/attention_warp.cuh"

// ---- device helpers ----

enum {
    ROWS = CUDA_ATTENTION_PREFILL_ROWS,
    TILE = CUDA_ATTENTION_TILE,
    TILES_OF_ROWS = ROWS / ATTENTION_WARPS / 16, /* m16 tiles of a warp */
    PAGES = TILE / PAGE,
};

static_assert((int)PAGES == (int)ATTENTION_WARPS, "a warp copies a page of each tile");

template <int HD> struct prefill_shared {
    enum {
        Q_BYTES = ROWS * tile_row<HD>::BYTES,
        TILE_BYTES = TILE * tile_row<HD>::BYTES, /* of K; V's follows */
        BYTES = Q_BYTES + 2 * TILE_BYTES,
    };
};

/* All warps, through the unit's tiles. */
template <int HD>
static __device__ __forceinline__ void
attend_tiles(row_state<TILES_OF_ROWS> &rows, float (&o)[TILES_OF_ROWS][HD / 8][4],
             unsigned char *shared, const attention_view &view, const attention_seq &seq,
             const attention_unit &unit)
{
    const int warp = (int)threadIdx.x / KVASIR_WARP;
    const int first_row = warp * (ROWS / ATTENTION_WARPS);
    const unsigned char *const q = shared + first_row * tile_row<HD>::BYTES;
    unsigned char *const k = shared + prefill_shared<HD>::Q_BYTES;
    unsigned char *const v = k + prefill_shared<HD>::TILE_BYTES;
    const int page = warp * PAGE * tile_row<HD>::BYTES; // the one this warp copies
    const key_range keys = keys_of(view, seq, unit);

    int64_t at = page_element<HD>(view, seq, unit, unit.key_begin + warp * PAGE);
    copy_queries<HD>(shared, ROWS, view, seq, unit);
    copy_page<HD>(k + page, view.k_plane, at, unit.key_begin + warp * PAGE, keys);
    async_commit();
    for (int32_t tile = unit.key_begin; tile < unit.key_end; tile += TILE) {
        const int32_t key = tile + warp * PAGE;
        // Worked out for each tile: there are no registers to keep it in.
        const warp_view mine = view_of_warp(view, seq, unit, first_row, ROWS / ATTENTION_WARPS);
        const bool seen = sees_some(mine, tile, TILE);
        async_wait<0>();
        __syncthreads(); // K is there, and nobody reads the last V
        copy_page<HD>(v + page, view.v_plane, at, key, keys);
        async_commit();
        at = page_element<HD>(view, seq, unit, key + TILE); // in time for the copy below
        float s[TILES_OF_ROWS][2 * PAGES][4] = {};
        if (seen) {
            add_scores<HD, TILES_OF_ROWS, PAGES>(s, q, k);
        }
        async_wait<0>();
        __syncthreads(); // V is there, and nobody reads this K
        if (tile + TILE < unit.key_end) {
            copy_page<HD>(k + page, view.k_plane, at, key + TILE, keys);
        }
        async_commit();
        if (seen) {
            if (!sees_all(mine, tile, TILE)) {
                mask_scores(s, view, seq, unit, mine, tile);
            }
            raise_maxima<HD>(s, rows, o, view.scale_log2);
            exponentiate(s, rows, view.scale_log2);
            add_outputs<HD, TILES_OF_ROWS, PAGES>(o, s, v);
        }
    }
    finish_sums(rows);
}

/* One row of a lane: its outputs divided by the sum, or as they are to the partial results. */
template <int HD>
static __device__ __forceinline__ void
store_row(const float (&o)[HD / 8][4], int half, float maximum, float sum, int row,
          const attention_view &view, const attention_seq &seq, const attention_unit &unit)
{
    const int t = (int)threadIdx.x % 4;
    if (unit.n_splits == 1) {
        const float scale = 1.0f / sum;
        bf16 *const to = static_cast<bf16 *>(view.out) + row_element<HD>(view, seq, unit, row);
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
            const uint32_t pair = pack_bf16(o[n][2 * half] * scale, o[n][2 * half + 1] * scale);
            *reinterpret_cast<uint32_t *>(to + n * 8 + t * 2) = pair;
        }
        return;
    }
    const int64_t at = partial_row(unit) + row;
#pragma unroll
    for (int n = 0; n < HD / 8; n++) {
        const float2 pair = {o[n][2 * half], o[n][2 * half + 1]};
        *reinterpret_cast<float2 *>(view.partial + at * HD + n * 8 + t * 2) = pair;
    }
    if (t == 0) {
        const float2 pair = {maximum * view.scale_log2, sum};
        *reinterpret_cast<float2 *>(view.stats + 2 * at) = pair;
    }
}

// ---- kernels ----

template <int HD>
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
        attend_tiles<HD>(rows, o, shared, view, seq, unit);
#pragma unroll
        for (int mt = 0; mt < TILES_OF_ROWS; mt++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = first_row + mt * 16 + half * 8 + lane / 4;
                if (row < unit.n_rows) {
                    store_row<HD>(o[mt], half, rows.maximum[mt][half], rows.sum[mt][half], row,
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

template <int HD> static void launch(const attention_view *view, int32_t grid, cudaStream_t stream)
{
    KVASIR_LAUNCH((attention_prefill<HD>), dim3((unsigned)grid), dim3(ATTENTION_THREADS),
                  (prefill_shared<HD>::BYTES), stream, *view);
}

#define PREFILL_KERNEL(hd)                                                                  \
    {                                                                                       \
        CUDA_ATTENTION_PREFILL, (hd), ROWS, ATTENTION_THREADS, prefill_shared<(hd)>::BYTES, \
            reinterpret_cast<const void *>(attention_prefill<(hd)>), launch<(hd)>           \
    }

extern "C" const struct cuda_attention_kernel *cuda_attention_prefill_kernel(int32_t head_dim)
{
    static const struct cuda_attention_kernel kernels[] = {
        PREFILL_KERNEL(32), PREFILL_KERNEL(64),  PREFILL_KERNEL(80),
        PREFILL_KERNEL(96), PREFILL_KERNEL(128),
    };
    for (const struct cuda_attention_kernel &kernel : kernels) {
        if (kernel.head_dim == head_dim) {
            return &kernel;
        }
    }
    return nullptr;
}

/*
 * attention_decode.cu - attention of few query rows over many cached keys
 *
 * Math:     softmax(q k^T scale) v, causal, over the paged cache; see kernels/backend.h.
 * Shapes:   a unit is at most 16 MT rows (queries x heads of the group) of one KV head, and a range of keys.
 * Mapping:  a block of 4 warps a unit. Pages of 16 keys go round the warps; each warp has its own two stages in shared
 *           memory and its own running softmax, and waits for nobody until the end, where the four are combined.
 *           The group's heads are the rows of mma.m16n8k16, so that a page is read once for all of them.
 * Numerics: attention_warp.cuh, attention_int8.cuh. The four warps, then the parts of a split, are added in their order: same plan, same bits.
 * Cost:     bound by memory: 4 head_dim bytes a key and KV head. Computed, not measured: a page of head_dim 128 is 8 KB, and
 *           about 200 instructions and 32 mma of a warp; at 2 TB/s (A100) a multiprocessor gets one every 610 cycles, so
 *           that its four schedulers are busy for 8 % (tensor cores 10-20 %), also where a group of 1 leaves 15 of 16 rows
 *           empty. A path of its own for groups of 1 would save work that is not the limit.
 *           Bytes under way are at least a stage of each warp: 2 blocks x 4 warps x 8 KB = 64 KB a multiprocessor, against
 *           the 14 KB (A100) and 24 KB (H200) that latency times bandwidth asks for. Of int8 a page is 4.1 KB and two are
 *           under way; it takes about 430 instructions, so that the schedulers are busy for a third of half the time. Expected: 80-88 % of copy bandwidth.
 * Source:   Ye et al. 2025, arXiv:2501.01005; Dao et al. 2023 (flash decoding).
 */
#include "kernels/cuda/attention_int8.cuh"
#include "kernels/cuda/attention_merge.cuh"

// ---- device helpers ----

/* A stage of a warp: a page of keys, its values, and the scales of both where rows of T have them. */
template <int HD, class T> struct decode_stage {
    enum {
        COUNT = row_scale<T>::BYTES > 0 ? 3 : 2, /* of a warp; all but one are under way */
        V = PAGE * tile_row<HD, T>::BYTES,
        K_SCALES = 2 * V,
        V_SCALES = K_SCALES + PAGE * row_scale<T>::BYTES,
        BYTES = V_SCALES + PAGE * row_scale<T>::BYTES,
    };
};

/* Floats from one row to the next where the warps' outputs are combined: 8 more than a row has, against bank conflicts. */
template <int HD> struct combined_row {
    enum { FLOATS = HD + 8 };
};

template <int HD, int MT, class T> struct decode_shared {
    enum {
        Q_BYTES = 16 * MT * tile_row<HD>::BYTES,
        WARP_BYTES = decode_stage<HD, T>::COUNT * decode_stage<HD, T>::BYTES,
        RING_BYTES = ATTENTION_WARPS * WARP_BYTES,
        COMBINED_BYTES = ATTENTION_WARPS * 16 * MT * combined_row<HD>::FLOATS * 4,
        /* outputs take the place of the stages */
        BYTES = Q_BYTES + (COMBINED_BYTES > RING_BYTES ? COMBINED_BYTES : RING_BYTES),
    };
};

template <int HD, class T>
static __device__ __forceinline__ void copy_stage(unsigned char *stage, const attention_view &view,
                                                  int64_t at, int32_t key, key_range keys)
{
    typedef decode_stage<HD, T> parts;
    copy_page<HD, T>(stage, view.k_plane, at, key, keys);
    copy_page<HD, T>(stage + parts::V, view.v_plane, at, key, keys);
    if constexpr (row_scale<T>::BYTES > 0) {
        copy_scales(stage + parts::K_SCALES, view.k_scales, at, key, keys);
        copy_scales(stage + parts::V_SCALES, view.v_scales, at, key, keys);
    }
}

/* A page of keys: scores, the softmax so far, outputs. */
template <int HD, int MT, class T>
static __device__ __forceinline__ void
attend_page(row_state<MT> &rows, float (&o)[MT][HD / 8][4], const unsigned char *q,
            const unsigned char *stage, const attention_view &view, const attention_seq &seq,
            const attention_unit &unit, const warp_view &mine, int32_t key)
{
    typedef decode_stage<HD, T> parts;
    float s[MT][2][4] = {};
    if constexpr (row_scale<T>::BYTES > 0) {
        add_scores_int8<HD, MT, 1>(s, q, stage);
        scale_columns(s, stage + parts::K_SCALES);
    } else {
        add_scores<HD, MT, 1>(s, q, stage);
    }
    if (!sees_all(mine, key, PAGE)) {
        mask_scores(s, view, seq, unit, mine, key);
    }
    raise_maxima<HD>(s, rows, o, view.scale_log2);
    exponentiate(s, rows, view.scale_log2);
    if constexpr (row_scale<T>::BYTES > 0) {
        scale_columns(s, stage + parts::V_SCALES);
        add_outputs_int8<HD, MT, 1>(o, s, stage + parts::V);
    } else {
        add_outputs<HD, MT, 1>(o, s, stage + parts::V);
    }
}

/* The warp's pages of the unit: every fourth one. */
template <int HD, int MT, class T>
static __device__ __forceinline__ void
attend_pages(row_state<MT> &rows, float (&o)[MT][HD / 8][4], unsigned char *shared,
             const attention_view &view, const attention_seq &seq, const attention_unit &unit)
{
    typedef decode_stage<HD, T> stages;
    typedef decode_shared<HD, MT, T> layout;
    constexpr int ahead = stages::COUNT - 1;
    const int warp = (int)threadIdx.x / KVASIR_WARP;
    unsigned char *const ring = shared + layout::Q_BYTES + warp * layout::WARP_BYTES;
    const key_range keys = keys_of(view, seq, unit);
    const warp_view mine = view_of_warp(view, seq, unit, 0, 16 * MT); // all rows, each warp
    const int32_t stride = ATTENTION_WARPS * PAGE;

    int32_t key = unit.key_begin + warp * PAGE;
    copy_queries<HD, T>(shared, 16 * MT, view, seq, unit);
    async_commit();
#pragma unroll
    for (int i = 0; i < ahead; i++) {
        const int32_t its = key + i * stride;
        if (its < unit.key_end) {
            copy_stage<HD, T>(ring + i * stages::BYTES, view,
                              page_row(view, seq, unit, its, page_block(view, seq, unit, its)), its,
                              keys);
        }
        async_commit();
    }
    // Where a page lies is known a page ahead of its copy.
    int32_t next_block = page_block(view, seq, unit, key + ahead * stride);
    async_wait<ahead>();
    __syncthreads(); // queries

    int stage = 0, free_stage = ahead;
    for (; key < unit.key_end; key += stride) {
        const int32_t next = key + ahead * stride;
        if (next < unit.key_end) {
            copy_stage<HD, T>(ring + free_stage * stages::BYTES, view,
                              page_row(view, seq, unit, next, next_block), next, keys);
            next_block = page_block(view, seq, unit, next + stride);
        }
        async_commit();
        async_wait<ahead>();
        __syncwarp(); // the other lanes' copies
        attend_page<HD, MT, T>(rows, o, shared, ring + stage * stages::BYTES, view, seq, unit, mine,
                               key);
        __syncwarp(); // the stage is free
        free_stage = stage;
        stage = stage == ahead ? 0 : stage + 1;
    }
    async_wait<0>();
    finish_sums(rows);
}

/* Each warp's rows to shared memory: outputs, maximum in powers of two, sum. */
template <int HD, int MT, class T>
static __device__ __forceinline__ void share_rows(float *combined, float2 *stats,
                                                  const row_state<MT> &rows,
                                                  const float (&o)[MT][HD / 8][4], float scale_log2)
{
    const int warp = (int)threadIdx.x / KVASIR_WARP, lane = (int)threadIdx.x % KVASIR_WARP;
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = (warp * MT + mt) * 16 + half * 8 + lane / 4;
            store_columns<HD, T>(combined + row * combined_row<HD>::FLOATS, o[mt], half);
            if (lane % 4 == 0) {
                const float2 pair = {rows.maximum[mt][half] * scale_log2, rows.sum[mt][half]};
                stats[row] = pair;
            }
        }
    }
}

/* All threads: the four warps' rows together, to the output or to the partial results. */
template <int HD, int MT>
static __device__ __forceinline__ void
store_rows(const float *combined, const float2 *stats, const attention_view &view,
           const attention_seq &seq, const attention_unit &unit)
{
    for (int i = (int)threadIdx.x; i < unit.n_rows * (HD / 8); i += ATTENTION_THREADS) {
        const int row = i / (HD / 8), piece = i % (HD / 8);
        float largest = -INFINITY;
        for (int warp = 0; warp < ATTENTION_WARPS; warp++) {
            largest = fmaxf(largest, stats[warp * MT * 16 + row].x);
        }
        float sum = 0.0f, x[8] = {};
        for (int warp = 0; warp < ATTENTION_WARPS; warp++) {
            const float2 its = stats[warp * MT * 16 + row];
            const float weight = part_weight(its.x, largest);
            sum += weight * its.y;
            add_8(x, combined + (warp * MT * 16 + row) * combined_row<HD>::FLOATS + piece * 8,
                  weight);
        }
        if (unit.n_splits == 1) {
            put_row<HD>(view, seq, unit, row, piece, x, largest, sum);
            continue;
        }
        const int64_t at = partial_row(unit) + row;
        float4 *const to = reinterpret_cast<float4 *>(view.partial + at * HD + piece * 8);
        to[0] = {x[0], x[1], x[2], x[3]};
        to[1] = {x[4], x[5], x[6], x[7]};
        if (piece == 0) {
            *reinterpret_cast<float2 *>(view.stats + 2 * at) = {largest, sum};
        }
    }
}

// ---- kernels ----

template <int HD, int MT, class T>
static __global__ void __launch_bounds__(ATTENTION_THREADS, MT == 1 ? 3 : 2)
    attention_decode(attention_view view)
{
    KVASIR_SHARED(shared);
    __shared__ attention_unit unit;
    __shared__ attention_seq seq;
    __shared__ float2 stats[ATTENTION_WARPS * 16 * MT];
    const int32_t n_units = view.plan->work.n_units[CUDA_ATTENTION_DECODE];
    const int32_t first_unit = view.plan->work.first_unit[CUDA_ATTENTION_DECODE];

    for (int32_t round = 0; round * (int32_t)gridDim.x < n_units; round++) {
        const int32_t index = unit_of_round(round, n_units);
        if (index < 0) {
            return; // only the last round is not full
        }
        take_unit(&unit, &seq, view, first_unit + index);
        row_state<MT> rows;
        float o[MT][HD / 8][4];
        start_rows<HD>(rows, o);
        attend_pages<HD, MT, T>(rows, o, shared, view, seq, unit);
        __syncthreads(); // the stages are free
        float *const combined =
            reinterpret_cast<float *>(shared + decode_shared<HD, MT, T>::Q_BYTES);
        share_rows<HD, MT, T>(combined, stats, rows, o, view.scale_log2);
        __syncthreads();
        store_rows<HD, MT>(combined, stats, view, seq, unit);
        if (unit.n_splits > 1) {
            arrive<HD>(view, seq, unit);
        }
        __syncthreads(); // what was shared may be written again
    }
}

// ---- launchers ----

template <int HD, int MT, class T>
static void launch(const attention_view *view, int32_t grid, cudaStream_t stream)
{
    KVASIR_LAUNCH((attention_decode<HD, MT, T>), dim3((unsigned)grid), dim3(ATTENTION_THREADS),
                  (decode_shared<HD, MT, T>::BYTES), stream, *view);
}

#define DECODE_KERNEL(dtype, hd, mt, type)                                      \
    {                                                                           \
        (dtype), CUDA_ATTENTION_DECODE, (hd), 16 * (mt), ATTENTION_THREADS,     \
            decode_shared<(hd), (mt), type>::BYTES,                             \
            reinterpret_cast<const void *>(attention_decode<(hd), (mt), type>), \
            launch<(hd), (mt), type>                                            \
    }

/* Of both dtypes, for up to 16 rows and up to 32. */
#define DECODE_KERNELS(hd)                                                          \
    DECODE_KERNEL(DTYPE_BF16, hd, 1, bf16), DECODE_KERNEL(DTYPE_BF16, hd, 2, bf16), \
        DECODE_KERNEL(DTYPE_I8, hd, 1, int8_t), DECODE_KERNEL(DTYPE_I8, hd, 2, int8_t)

extern "C" const struct cuda_attention_kernel *
cuda_attention_decode_kernel(int kv_dtype, int32_t head_dim, int32_t rows)
{
    static const struct cuda_attention_kernel kernels[] = {
        DECODE_KERNELS(32), DECODE_KERNELS(64),  DECODE_KERNELS(80),
        DECODE_KERNELS(96), DECODE_KERNELS(128),
    };
    for (const struct cuda_attention_kernel &kernel : kernels) {
        if (kernel.kv_dtype == kv_dtype && kernel.head_dim == head_dim && kernel.rows == rows) {
            return &kernel;
        }
    }
    return nullptr;
}

/*
 * attention_warp.cuh - what one warp does with a tile of keys: scores, softmax, outputs
 *
 * Layout:   scores of MT m16 tiles of rows by N n8 tiles of keys are s[MT][N][4], fragment C of mma (device.cuh): the lane's
 *           rows g and g + 8 of an m16 tile are its halves. Outputs are o[MT][head_dim / 8][4] in the same way.
 * Numerics: scores and sums in float32; probabilities are rounded to bfloat16 for the product with V, not for their sum.
 *           The maximum is kept as an unscaled score; an exponent is score * scale / ln 2 - maximum * scale / ln 2 in one fma.
 * Source:   Milakov & Gimelshein 2018, arXiv:1805.02867 (online softmax); Dao 2023, arXiv:2307.08691.
 */
#pragma once

#include "kernels/cuda/attention.cuh"

// ---- one warp's step: scores, softmax, outputs ----

/* s += q k^T for MT m16 tiles of queries and NK groups of 16 keys. */
template <int HD, int MT, int NK>
static __device__ __forceinline__ void add_scores(float (&s)[MT][2 * NK][4], const unsigned char *q,
                                                  const unsigned char *k)
{
    const int lane = (int)threadIdx.x % KVASIR_WARP, row_bytes = tile_row<HD>::BYTES;
    q += lane % 16 * row_bytes + lane / 16 * 16;
    k += (lane % 8 + lane / 16 * 8) * row_bytes + lane / 8 % 2 * 16;
#pragma unroll 2 // all of it would take the registers of the prefill kernel
    for (int step = 0; step < HD / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            load_matrix_4(a[mt], q + mt * 16 * row_bytes + step * 32);
        }
#pragma unroll
        for (int group = 0; group < NK; group++) {
            uint32_t b[4];
            load_matrix_4(b, k + group * 16 * row_bytes + step * 32);
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                mma_bf16(s[mt][2 * group], a[mt], b);
                mma_bf16(s[mt][2 * group + 1], a[mt], b + 2);
            }
        }
    }
}

/* What the warp's rows have seen so far: the lane's rows g and g + 8 of each m16 tile. */
template <int MT> struct row_state {
    float maximum[MT][2]; /* unscaled; the same in the four lanes of a row */
    float sum[MT][2];     /* of the lane's own columns */
};

template <int HD, int MT>
static __device__ __forceinline__ void start_rows(row_state<MT> &rows, float (&o)[MT][HD / 8][4])
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.maximum[mt][half] = -INFINITY;
            rows.sum[mt][half] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                o[mt][n][i] = 0.0f;
            }
        }
    }
}

/* What a warp's rows see of the keys. */
struct warp_view {
    int32_t first_row;                     /* of the unit's */
    int32_t first_position, last_position; /* of its rows; last < first: it has none */
    uint32_t window;                       /* keys seen up to the own position */
};

static __device__ __forceinline__ warp_view view_of_warp(const attention_view &view,
                                                         const attention_seq &seq,
                                                         const attention_unit &unit, int first_row,
                                                         int max_rows)
{
    const int rows = min(unit.n_rows - first_row, max_rows);
    const uint32_t window = view.window > 0 ? (uint32_t)view.window : 0x80000000u;
    if (rows <= 0) {
        return {first_row, 0, -1, window};
    }
    return {first_row, row_position(view, seq, unit, first_row),
            row_position(view, seq, unit, first_row + rows - 1), window};
}

/* Keys [key, key + n): whether some row sees some of them, and whether all rows see all. */
static __device__ __forceinline__ bool sees_some(const warp_view &warp, int32_t key, int n)
{
    const int32_t last = key + n - 1;
    return key <= warp.last_position &&
           (last >= warp.first_position || (uint32_t)(warp.first_position - last) < warp.window);
}

static __device__ __forceinline__ bool sees_all(const warp_view &warp, int32_t key, int n)
{
    return key + n - 1 <= warp.first_position && (uint32_t)(warp.last_position - key) < warp.window;
}

/* Scores of keys a row does not see become -inf; `key` is the first of the tile. Few tiles need it, so that positions are
 * worked out again rather than kept in registers. */
template <int MT, int N>
static __device__ __forceinline__ void
mask_scores(float (&s)[MT][N][4], const attention_view &view, const attention_seq &seq,
            const attention_unit &unit, const warp_view &warp, int32_t key)
{
    const int lane = (int)threadIdx.x % KVASIR_WARP;
    const int32_t first = key + lane % 4 * 2;
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp.first_row + mt * 16 + half * 8 + lane / 4;
            const int32_t position = row_position(view, seq, unit, row);
#pragma unroll
            for (int n = 0; n < 2 * N; n++) {
                // A key behind the position wraps around to a large distance.
                const uint32_t distance = (uint32_t)(position - (first + n / 2 * 8 + n % 2));
                float &score = s[mt][n / 2][2 * half + n % 2];
                score = distance < warp.window ? score : -INFINITY;
            }
        }
    }
}

/* Raises the maxima to those of s; where one moved, brings sums and outputs to the new one. */
template <int HD, int MT, int N>
static __device__ __forceinline__ void raise_maxima(const float (&s)[MT][N][4], row_state<MT> &rows,
                                                    float (&o)[MT][HD / 8][4], float scale_log2)
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float before = rows.maximum[mt][half];
            float most = before;
#pragma unroll
            for (int n = 0; n < N; n++) {
                most = fmaxf(most, fmaxf(s[mt][n][2 * half], s[mt][n][2 * half + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(KVASIR_ALL, most, 1));
            most = fmaxf(most, __shfl_xor_sync(KVASIR_ALL, most, 2));
            factor[half] = most > before ? fast_exp2((before - most) * scale_log2) : 1.0f;
            rows.maximum[mt][half] = most;
        }
        if (!__any_sync(KVASIR_ALL, factor[0] != 1.0f || factor[1] != 1.0f)) {
            continue; // the usual case after the first tiles
        }
        rows.sum[mt][0] *= factor[0];
        rows.sum[mt][1] *= factor[1];
#pragma unroll
        for (int n = 0; n < HD / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                o[mt][n][i] *= factor[i / 2];
            }
        }
    }
}

/* Scores become probabilities, relative to the maxima, and are added to the sums. */
template <int MT, int N>
static __device__ __forceinline__ void exponentiate(float (&s)[MT][N][4], row_state<MT> &rows,
                                                    float scale_log2)
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // A row that has seen no key has only -inf here, and its probabilities are 0.
            const float most = rows.maximum[mt][half];
            const float base = most == -INFINITY ? 0.0f : most * scale_log2;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[mt][n][i] = fast_exp2(fmaf(s[mt][n][i], scale_log2, -base));
                    rows.sum[mt][half] += s[mt][n][i];
                }
            }
        }
    }
}

/* Fragment A of 16 keys from two fragments C. */
static __device__ __forceinline__ void pack_probabilities(uint32_t (&a)[4], const float (&left)[4],
                                                          const float (&right)[4])
{
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

/* o += p v: fragment C of the probabilities is fragment A of this product, lane by lane. */
template <int HD, int MT, int NK>
static __device__ __forceinline__ void
add_outputs(float (&o)[MT][HD / 8][4], const float (&p)[MT][2 * NK][4], const unsigned char *v)
{
    const int lane = (int)threadIdx.x % KVASIR_WARP, row_bytes = tile_row<HD>::BYTES;
    v += lane % 16 * row_bytes + lane / 16 * 16;
#pragma unroll
    for (int group = 0; group < NK; group++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            pack_probabilities(a[mt], p[mt][2 * group], p[mt][2 * group + 1]);
        }
#pragma unroll
        for (int pair = 0; pair < HD / 16; pair++) {
            uint32_t b[4];
            load_matrix_4_transposed(b, v + group * 16 * row_bytes + pair * 32);
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                mma_bf16(o[mt][2 * pair], a[mt], b);
                mma_bf16(o[mt][2 * pair + 1], a[mt], b + 2);
            }
        }
    }
}

/* The sums over all columns: those of the four lanes of a row. */
template <int MT> static __device__ __forceinline__ void finish_sums(row_state<MT> &rows)
{
#pragma unroll
    for (int mt = 0; mt < MT; mt++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            rows.sum[mt][half] += __shfl_xor_sync(KVASIR_ALL, rows.sum[mt][half], 1);
            rows.sum[mt][half] += __shfl_xor_sync(KVASIR_ALL, rows.sum[mt][half], 2);
        }
    }
}

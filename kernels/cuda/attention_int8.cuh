/*
 * attention_int8.cuh - a warp's products with keys and values of int8
 *
 * Layout:   ldmatrix moves pairs of bytes where it would move bfloat16: a register of a lane holds
 *             of keys        columns 4t .. 4t + 3 of key g, as they lie
 *             of values      (transposed) columns 2g and 2g + 1 of key 2t, then of key 2t + 1
 *           in the letters of device.cuh. Bytes 0 and 2 of it, and 1 and 3, become pairs of bfloat16, so that
 *             keys are in the order of columns 0, 2, 4 .. 14, 1, 3, 5 .. 15 of a step of 16, in which queries were put too:
 *             a product does not care in which order it adds;
 *             outputs have the even columns of 16 in one n8 tile and the odd ones in the next: a lane holds columns
 *             4t .. 4t + 3, which is what it stores.
 * Numerics: an int8 is a bfloat16 exactly. Scores are multiplied with their key's scale in float32, probabilities with their
 *           value's after they were added up.
 * Cost:     7 instructions for 4 bytes. Beside the 32 mma of a page and m16 tile of head_dim 128, 224 instructions of a warp.
 * Source:   the numbers hidden below an exponent: Kim et al. 2022, arXiv:2211.10017.
 */
#pragma once

#include "kernels/cuda/attention_warp.cuh"

/*
 * Bytes 0 and 2 of a word. The low seven bits below the exponent of 128 are 128 + those bits; the sign bit there makes 128 or
 * 256, which is taken away: both are bfloat16, and so is the difference.
 */
static __device__ __forceinline__ uint32_t even_bytes(uint32_t word)
{
    return sub_bf16_pairs((word & 0x007f007fu) | 0x43004300u, (word & 0x00800080u) | 0x43004300u);
}

/* Bytes 1 and 3. */
static __device__ __forceinline__ uint32_t odd_bytes(uint32_t word)
{
    return even_bytes(word >> 8);
}

/* s += q k^T, keys as integers; as add_scores of attention_warp.cuh. A load takes a step of up to 32 keys; of a page alone, half of
 * its addresses come twice. */
template <int HD, int MT, int NK>
static __device__ __forceinline__ void
add_scores_int8(float (&s)[MT][2 * NK][4], const unsigned char *q, const unsigned char *k)
{
    constexpr int row_bytes = tile_row<HD, int8_t>::BYTES, n_eights = NK > 1 ? 4 : 2;
    const int lane = (int)threadIdx.x % KVASIR_WARP, q_bytes = tile_row<HD>::BYTES;
    q += lane % 16 * q_bytes + lane / 16 * 16;
    k += lane % (8 * n_eights) * row_bytes;
#pragma unroll 1 // all of it would take the registers of the prefill kernel
    for (int step = 0; step < HD / 16; step++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            load_matrix_4(a[mt], q + mt * 16 * q_bytes + step * 32);
        }
#pragma unroll
        for (int eight = 0; eight < 2 * NK; eight += n_eights) {
            uint32_t words[4];
            load_matrix_4(words, k + eight * 8 * row_bytes + step * 16);
#pragma unroll
            for (int i = 0; i < n_eights; i++) {
                const uint32_t b[2] = {even_bytes(words[i]), odd_bytes(words[i])};
#pragma unroll
                for (int mt = 0; mt < MT; mt++) {
                    mma_bf16(s[mt][eight + i], a[mt], b);
                }
            }
        }
    }
}

/* Each column of s, a key, times its scale. */
template <int MT, int N>
static __device__ __forceinline__ void scale_columns(float (&s)[MT][N][4],
                                                     const unsigned char *scales)
{
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint32_t pair = *reinterpret_cast<const uint32_t *>(scales + (n * 8 + t * 2) * 2);
        const float low = low_bf16(pair), high = high_bf16(pair);
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            s[mt][n][0] *= low;
            s[mt][n][1] *= high;
            s[mt][n][2] *= low;
            s[mt][n][3] *= high;
        }
    }
}

/* o += p v, values as integers; as add_outputs of attention_warp.cuh. A load takes 16 keys of 32 columns. */
template <int HD, int MT, int NK>
static __device__ __forceinline__ void
add_outputs_int8(float (&o)[MT][HD / 8][4], const float (&p)[MT][2 * NK][4], const unsigned char *v)
{
    constexpr int row_bytes = tile_row<HD, int8_t>::BYTES;
    const int lane = (int)threadIdx.x % KVASIR_WARP;
    v += lane % 16 * row_bytes + lane / 16 * 16;
#pragma unroll
    for (int group = 0; group < NK; group++) {
        uint32_t a[MT][4];
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            pack_probabilities(a[mt], p[mt][2 * group], p[mt][2 * group + 1]);
        }
#pragma unroll
        for (int step = 0; step < HD / 16; step += 2) {
            uint32_t words[4];
            load_matrix_4_transposed(words, v + group * 16 * row_bytes + step * 16);
#pragma unroll
            for (int half = 0; half < 2 && step + half < HD / 16; half++) {
                const uint32_t low = words[2 * half], high = words[2 * half + 1];
                const uint32_t even[2] = {even_bytes(low), even_bytes(high)};
                const uint32_t odd[2] = {odd_bytes(low), odd_bytes(high)};
#pragma unroll
                for (int mt = 0; mt < MT; mt++) {
                    mma_bf16(o[mt][2 * (step + half)], a[mt], even);
                    mma_bf16(o[mt][2 * (step + half) + 1], a[mt], odd);
                }
            }
        }
    }
}

// ---- outputs ----

/* The lane's columns of one of its rows, to where the row begins; after products with rows of T. 16-byte aligned. */
template <int HD, class T>
static __device__ __forceinline__ void store_columns(float *to, const float (&o)[HD / 8][4],
                                                     int half)
{
    const uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < HD / 8; n += 2) {
        const float(&first)[4] = o[n], (&second)[4] = o[n + 1];
        const float2 a = {first[2 * half], first[2 * half + 1]};
        const float2 b = {second[2 * half], second[2 * half + 1]};
        if constexpr (row_scale<T>::BYTES > 0) {
            *reinterpret_cast<float4 *>(to + n * 8 + t * 4) = {a.x, b.x, a.y, b.y};
        } else {
            *reinterpret_cast<float2 *>(to + n * 8 + t * 2) = a;
            *reinterpret_cast<float2 *>(to + n * 8 + 8 + t * 2) = b;
        }
    }
}

/* The same times a factor, as bfloat16. 8-byte aligned. */
template <int HD, class T>
static __device__ __forceinline__ void store_columns(bf16 *to, const float (&o)[HD / 8][4],
                                                     int half, float factor)
{
    const uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < HD / 8; n += 2) {
        const float(&first)[4] = o[n], (&second)[4] = o[n + 1];
        const uint32_t a = pack_bf16(first[2 * half] * factor, first[2 * half + 1] * factor);
        const uint32_t b = pack_bf16(second[2 * half] * factor, second[2 * half + 1] * factor);
        if constexpr (row_scale<T>::BYTES > 0) {
            *reinterpret_cast<uint2 *>(to + n * 8 + t * 4) = {low_halves(a, b), high_halves(a, b)};
        } else {
            *reinterpret_cast<uint32_t *>(to + n * 8 + t * 2) = a;
            *reinterpret_cast<uint32_t *>(to + n * 8 + 8 + t * 2) = b;
        }
    }
}

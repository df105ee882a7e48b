/*
 * matmul_i8.cuh - what a warp does with int8 weights, whatever the kernel
 *
 * What:      16 weight rows are A, 8 rows of x are B. Which k a lane brings is free as long as both agree: lane 4g + t has 16 bytes,
 *            columns 16t .. 16t+15 of a chunk of 64, of rows g and g + 8 of W, and the same columns of row g of x.
 *              i8_rows:  x is int8 too. Words 0, 1 and words 2, 3 of the 16 bytes are the fragments of two mma.m16n8k32.
 *              bf16_rows: x is bfloat16. Each word of weights becomes two pairs of bfloat16, and with four columns of x one
 *                        mma.m16n8k16.
 * Numerics:  bfloat16 holds every int8. Sums of bf16_rows follow one order, which all kernels keep to: n_in is cut into SLICES slices of
 *            whole chunks (i8_slice_chunks); in a slice chunks ascend, and in a chunk its four mma; slices are then added up, from the
 *            first. So a row's bits are the same in every kernel and in any company. Those of i8_rows are exact.
 */
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matmul_rows.cuh"
#include "kernels/int8_rows.h"

enum {
    CHUNK = 64, /* columns */
    SLICES = 8,
};

static __host__ __device__ __forceinline__ int32_t i8_chunks(int32_t n_in)
{
    return (n_in + CHUNK - 1) / CHUNK;
}

static __host__ __device__ __forceinline__ int32_t i8_slice_chunks(int32_t n_in)
{
    return (i8_chunks(n_in) + SLICES - 1) / SLICES;
}

struct i8_args {
    const int8_t *weight; // [n_out, ld], rows end in zeros
    const float *scales;  // [n_out]
    const void *x;        // [n_rows, n_in], ld_x: bfloat16, or int8 that ends in zeros at ld_x
    const struct int8_row *rows; // of int8 rows
    void *y;                     // [n_rows, n_out], ld_y
    int64_t ld, ld_x, ld_y;
    int32_t n_out, n_in, n_rows;
    int32_t x_is_aligned; // bfloat16 rows begin at multiples of 16 bytes
};

/*
 * Four int8 as two pairs of bfloat16. With the low seven bits for a mantissa, 0x4300 is 128 + those; taking off 128, or 256 where
 * the eighth is set, leaves the value.
 */
static __device__ __forceinline__ void bf16_of_i8(uint32_t word, uint32_t pairs[2])
{
    const uint32_t one = 0x3f803f80u;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t bytes = __byte_perm(word, 0, i == 0 ? 0x4140 : 0x4342);
        const uint32_t low = (bytes & 0x007f007fu) | 0x43004300u;
        const uint32_t sign = (bytes & 0x00800080u) | 0xc300c300u;
        pairs[i] = fma_bf16_pair(low, one, sign);
    }
}

// ---- the two kinds of rows ----

struct bf16_rows {
    typedef float sum_t;

    enum { MMAS = 4, X_BYTES = 2 * CHUNK }; /* of a chunk */

    struct weights {
        uint32_t a[MMAS][4];
    };

    struct columns_of_x {
        uint4 v[2];
    };

    static __device__ __forceinline__ weights prepare(uint4 low, uint4 high)
    {
        const uint32_t lows[MMAS] = {low.x, low.y, low.z, low.w};
        const uint32_t highs[MMAS] = {high.x, high.y, high.z, high.w};
        weights w;
#pragma unroll
        for (int j = 0; j < MMAS; j++) {
            uint32_t pairs_low[2], pairs_high[2];
            bf16_of_i8(lows[j], pairs_low);
            bf16_of_i8(highs[j], pairs_high);
            w.a[j][0] = pairs_low[0];
            w.a[j][1] = pairs_high[0];
            w.a[j][2] = pairs_low[1];
            w.a[j][3] = pairs_high[1];
        }
        return w;
    }

    static __device__ __forceinline__ void multiply(float sums[4], const weights &w,
                                                    const columns_of_x &x)
    {
#pragma unroll
        for (int j = 0; j < MMAS; j++) {
            const uint4 v = x.v[j / 2];
            const uint32_t b[2] = {j % 2 == 0 ? v.x : v.z, j % 2 == 0 ? v.y : v.w};
            mma_bf16(sums, w.a[j], b);
        }
    }

    /* Columns k .. k+15 of a row in global memory. */
    static __device__ __forceinline__ columns_of_x load(const i8_args &a, int32_t row, int32_t k)
    {
        const bf16 *const x = static_cast<const bf16 *>(a.x) + row * a.ld_x;
        columns_of_x c = {};
        c.v[0] = row_load_8(x, k, a.n_in, a.x_is_aligned);
        if (k + 8 < a.n_in) {
            c.v[1] = row_load_8(x, k + 8, a.n_in, a.x_is_aligned);
        }
        return c;
    }

    static __device__ __forceinline__ float finish(const i8_args &a, float sum, int32_t output,
                                                   int32_t row)
    {
        (void)row;
        return __fmul_rn(sum, a.scales[output]);
    }
};

struct i8_rows {
    typedef int32_t sum_t;

    enum { X_BYTES = CHUNK };

    struct weights {
        uint4 low, high;
    };

    struct columns_of_x {
        uint4 v;
    };

    static __device__ __forceinline__ weights prepare(uint4 low, uint4 high)
    {
        return {low, high};
    }

    static __device__ __forceinline__ void multiply(int32_t sums[4], const weights &w,
                                                    const columns_of_x &x)
    {
        const uint32_t a0[4] = {w.low.x, w.high.x, w.low.y, w.high.y};
        const uint32_t a1[4] = {w.low.z, w.high.z, w.low.w, w.high.w};
        const uint32_t b0[2] = {x.v.x, x.v.y};
        const uint32_t b1[2] = {x.v.z, x.v.w};
        mma_i8(sums, a0, b0);
        mma_i8(sums, a1, b1);
    }

    static __device__ __forceinline__ columns_of_x load(const i8_args &a, int32_t row, int32_t k)
    {
        return {
            *reinterpret_cast<const uint4 *>(static_cast<const int8_t *>(a.x) + row * a.ld_x + k)};
    }

    static __device__ __forceinline__ float finish(const i8_args &a, int32_t sum, int32_t output,
                                                   int32_t row)
    {
        return __fmul_rn(__fmul_rn(__int2float_rn(sum), a.scales[output]), a.rows[row].scale);
    }
};

// ---- host ----

static inline i8_args i8_args_of(const struct matmul_args *call)
{
    const struct matrix *const w = call->weight;
    const bool rounded = w->format == MATRIX_W8A8;
    i8_args a = {};
    a.weight = (const int8_t *)w->data;
    a.scales = w->scales;
    a.x = rounded ? (const char *)call->scratch + int8_rows_offset(call->n_rows) : call->x;
    a.rows = rounded ? (const struct int8_row *)call->scratch : NULL;
    a.y = call->out;
    a.ld = w->ld;
    a.ld_x = rounded ? (int64_t)int8_rows_stride(w->n_in) : call->ld_x;
    a.ld_y = call->ld_out;
    a.n_out = w->n_out;
    a.n_in = w->n_in;
    a.n_rows = call->n_rows;
    a.x_is_aligned = (uintptr_t)call->x % 16 == 0 && call->ld_x % 8 == 0;
    return a;
}

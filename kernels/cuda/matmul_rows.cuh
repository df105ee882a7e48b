/*
 * matmul_rows.cuh - rows of x in, rows of y out, for kernels that multiply
 *
 * What: loads that do not look behind a row, and stores in either type of output.
 */
#pragma once

#include "kernels/cuda/device.cuh"

/* Columns k .. k+7 of a row of n columns, zeros past its end: what lies there in memory may be anything. aligned: the row begins
 * at a multiple of 16 bytes. */
static __device__ __forceinline__ uint4 row_load_8(const bf16 *row, int32_t k, int32_t n,
                                                   int32_t aligned)
{
    if (aligned && k + 8 <= n) {
        return *(const uint4 *)(row + k);
    }
    uint32_t pairs[4];
    for (int32_t i = 0; i < 4; i++) {
        const int32_t at = k + 2 * i;
        const float low = at < n ? __bfloat162float(row[at]) : 0.0f;
        const float high = at + 1 < n ? __bfloat162float(row[at + 1]) : 0.0f;
        pairs[i] = pack_bf16(low, high);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

static __device__ __forceinline__ void row_store(float *y, float value)
{
    *y = value;
}

static __device__ __forceinline__ void row_store(bf16 *y, float value)
{
    *y = __float2bfloat16(value);
}

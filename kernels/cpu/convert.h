/*
 * convert.h - bfloat16 and float16 to float32 and back
 *
 * Thread: any
 * Source: IEEE 754-2019; bfloat16 is the upper half of a float32.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/dtype.h"

static inline uint32_t f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float f32_from_bf16(uint16_t x)
{
    return f32_from_bits((uint32_t)x << 16);
}

/* Round to nearest, ties to even. A NaN stays a NaN, made quiet so that its upper half is not an infinity. */
static inline uint16_t bf16_from_f32(float x)
{
    const uint32_t bits = f32_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

/*
 * Exact. The fields moved into place count exponents from 127 where float16 counts from 15: 2^112 too small, which a
 * multiplication puts right, for subnormals too.
 */
static inline float f32_from_f16(uint16_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    const uint32_t magnitude = x & 0x7FFFu;
    const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0; // infinity, NaN
    const float scaled = f32_from_bits(magnitude << 13) * 0x1p112f;
    return f32_from_bits(f32_bits(scaled) | special | sign);
}

/* n elements of any dtype, at any alignment, to float32. */
static inline void f32_from_any(const void *src, int dtype, int64_t n, float *dst)
{
    const char *const bytes = src;
    if (dtype == DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
    } else if (dtype == DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, bytes + i * 2, sizeof half);
            dst[i] = f32_from_bf16(half);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            uint16_t half;
            memcpy(&half, bytes + i * 2, sizeof half);
            dst[i] = f32_from_f16(half);
        }
    }
}

/* n elements of any dtype, at any alignment, to float32 or bfloat16, or as they are. */
void cpu_convert(const void *src, int src_dtype, int64_t n, void *dst, int dst_dtype);

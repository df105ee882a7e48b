/*
 * columns.cuh - eight columns of a row at a time: 16 bytes of bfloat16, 32 of float32
 *
 * What:      loads and stores for elementwise ops. The whole ones need a pointer that is a multiple of 16 bytes; the others
 *            touch the first n of the eight alone, at any alignment of elements.
 * Numerics:  to bfloat16 with round to nearest even.
 */
#pragma once

#include "kernels/cuda/device.cuh"

enum { COLUMNS = 8 };

struct columns {
    float x[COLUMNS];
};

static __device__ __forceinline__ columns columns_of_bf16(uint4 v)
{
    return {{low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y), low_bf16(v.z),
             high_bf16(v.z), low_bf16(v.w), high_bf16(v.w)}};
}

static __device__ __forceinline__ columns columns_load(const bf16 *from)
{
    return columns_of_bf16(*reinterpret_cast<const uint4 *>(from));
}

static __device__ __forceinline__ columns columns_load(const float *from)
{
    const float4 a = reinterpret_cast<const float4 *>(from)[0];
    const float4 b = reinterpret_cast<const float4 *>(from)[1];
    return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

static __device__ __forceinline__ void columns_store(bf16 *to, const columns &c)
{
    *reinterpret_cast<uint4 *>(to) =
        make_uint4(pack_bf16(c.x[0], c.x[1]), pack_bf16(c.x[2], c.x[3]), pack_bf16(c.x[4], c.x[5]),
                   pack_bf16(c.x[6], c.x[7]));
}

static __device__ __forceinline__ void columns_store(float *to, const columns &c)
{
    reinterpret_cast<float4 *>(to)[0] = make_float4(c.x[0], c.x[1], c.x[2], c.x[3]);
    reinterpret_cast<float4 *>(to)[1] = make_float4(c.x[4], c.x[5], c.x[6], c.x[7]);
}

/* The first n of the eight, zeros behind them. */
template <typename T>
static __device__ __forceinline__ columns columns_load_some(const T *from, int n)
{
    columns c;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        c.x[i] = i < n ? static_cast<float>(from[i]) : 0.0f;
    }
    return c;
}

template <typename T>
static __device__ __forceinline__ void columns_store_some(T *to, const columns &c, int n)
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        if (i < n) {
            to[i] = static_cast<T>(c.x[i]);
        }
    }
}

/* Whether the row is cut into whole eights is the template's: loops then have no branches. */
template <bool whole, typename T>
static __device__ __forceinline__ columns columns_get(const T *from, int n)
{
    if constexpr (whole) {
        return columns_load(from);
    } else {
        return columns_load_some(from, n);
    }
}

template <bool whole, typename T>
static __device__ __forceinline__ void columns_put(T *to, const columns &c, int n)
{
    if constexpr (whole) {
        columns_store(to, c);
    } else {
        columns_store_some(to, c, n);
    }
}

/* Host: whether every eighth column of rows that begin at the pointer and `ld` elements apart is on 16 bytes. */
static inline bool columns_aligned(const void *pointer, int64_t ld)
{
    return (uintptr_t)pointer % 16 == 0 && ld % COLUMNS == 0;
}

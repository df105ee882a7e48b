/*
 * convert.c - arrays from one dtype to another
 *
 * Numerics: to bfloat16 with round to nearest even; to float32 exact.
 * Mapping:  by way of a small block of float32, each loop of one operation, which compilers turn into vectors.
 */
#include "kernels/cpu/convert.h"

enum { BLOCK = 256 };

static void bf16_block(const float *src, int64_t n, char *dst)
{
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = bf16_from_f32(src[i]);
        memcpy(dst + i * 2, &half, sizeof half);
    }
}

void cpu_convert(const void *src, int src_dtype, int64_t n, void *dst, int dst_dtype)
{
    if (src_dtype == dst_dtype) {
        memcpy(dst, src, (size_t)n * dtype_bytes(src_dtype));
        return;
    }
    if (dst_dtype == DTYPE_F32) {
        f32_from_any(src, src_dtype, n, dst);
        return;
    }
    const char *from = src;
    char *to = dst;
    for (int64_t i = 0; i < n; i += BLOCK) {
        float values[BLOCK];
        const int64_t n_block = n - i < BLOCK ? n - i : BLOCK;
        f32_from_any(from + (size_t)i * dtype_bytes(src_dtype), src_dtype, n_block, values);
        bf16_block(values, n_block, to + i * 2);
    }
}

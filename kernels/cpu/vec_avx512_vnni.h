/*
 * vec_avx512_vnni.h - vi_dot for processors with AVX-512 VNNI
 *
 * What, Layout, Thread: as vec_avx2.h; include after vec_avx512.h.
 * Numerics: the instruction multiplies unsigned with signed bytes: w goes in as w + 128, and sums begin with what that makes
 *           too much, 128 times the sum of x. Modulo 2^32 all of it is exact.
 */
#pragma once

#include "kernels/cpu/vec_avx512.h"

static inline vi vi_dot_begin(int32_t sum_x)
{
    return _mm512_set1_epi32(-128 * sum_x);
}

static inline vi vi_dot(vi acc, vi w, vi x)
{
    return _mm512_dpbusd_epi32(acc, _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)), x);
}

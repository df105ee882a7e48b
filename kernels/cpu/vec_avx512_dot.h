/*
 * vec_avx512_dot.h - vi_dot for processors with AVX-512 BW and no VNNI
 *
 * What, Layout, Thread: as vec_avx2.h; include after vec_avx512.h.
 */
#pragma once

#include "kernels/cpu/vec_avx512.h"

static inline vi vi_dot_begin(int32_t sum_x)
{
    (void)sum_x;
    return _mm512_setzero_si512();
}

static inline vi vec_even_bytes(vi v)
{
    return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8);
}

static inline vi vec_odd_bytes(vi v)
{
    return _mm512_srai_epi16(v, 8);
}

/* As 16-bit integers, two products an instruction; the halves of w and of x are common to several calls. */
static inline vi vi_dot(vi acc, vi w, vi x)
{
    const vi even = _mm512_madd_epi16(vec_even_bytes(w), vec_even_bytes(x));
    const vi odd = _mm512_madd_epi16(vec_odd_bytes(w), vec_odd_bytes(x));
    return _mm512_add_epi32(acc, _mm512_add_epi32(even, odd));
}

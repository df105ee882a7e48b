/*
 * vec_avx512.h - the vector vocabulary of the kernel templates, 16 lanes of AVX-512 (F, BW, VL, DQ)
 *
 * What, Layout, Invariant, Thread: as vec_avx2.h.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>

enum { VEC_LANES = 16, VEC_TILE_ROWS = 8, VEC_DOT_ROWS = 4, VEC_DOT_TOKENS = 4 };

typedef __m512 vf;

enum { VEC_WIDE = 8 };

typedef uint64_t vw __attribute__((vector_size(64)));

static inline vw vw_mul_low(vw a, vw b)
{
    return (vw)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}

static inline vf vf_zero(void)
{
    return _mm512_setzero_ps();
}

static inline vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

static inline vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}

static inline __mmask16 vec_first(int n)
{
    return (__mmask16)((1u << n) - 1u);
}

static inline vf vf_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps(vec_first(n), p);
}

static inline void vf_store_n(float *p, vf v, int n)
{
    _mm512_mask_storeu_ps(p, vec_first(n), v);
}

static inline vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

static inline vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

static inline vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

static inline vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

static inline vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

static inline vf vf_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline vf vf_pow2(vf n)
{
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}

static inline vf vf_zero_below(vf x, vf limit, vf y)
{
    // NLT and not GE: a NaN in x keeps y, which is a NaN too.
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), y);
}

/* The halves, then as vec_avx2.h: the intrinsic _mm512_reduce_add_ps promises no order. */
static inline float vf_sum(vf v)
{
    const __m256 high = _mm512_extractf32x8_ps(v, 1);
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), high);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

static inline float vf_largest(vf v)
{
    const __m256 high = _mm512_extractf32x8_ps(v, 1);
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), high);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    s = _mm_max_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

static inline vf vf_load_bf16_even(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}

static inline vf vf_load_bf16_odd(const uint16_t *p)
{
    const __m512i upper = _mm512_set1_epi32((int)0xFFFF0000u);
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), upper));
}

static inline vf vf_max_magnitude(vf a, vf b)
{
    const __m512i magnitude =
        _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(0x7FFFFFFF));
    return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), magnitude));
}

static inline vf vf_load_i8(const int8_t *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i_u *)p)));
}

static inline void vf_store_i8(int8_t *p, vf v)
{
    _mm_storeu_si128((__m128i_u *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}

static inline vf vf_unpack_i8(const uint32_t *p, int which)
{
    const unsigned left = (unsigned)(24 - 8 * which);
    return _mm512_cvtepi32_ps(
        _mm512_srai_epi32(_mm512_slli_epi32(_mm512_loadu_si512(p), left), 24));
}

// ---- integers ----

typedef __m512i vi;

static inline vi vi_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}

static inline vi vi_load(const void *p)
{
    return _mm512_loadu_si512(p);
}

static inline void vi_store(void *p, vi v)
{
    _mm512_storeu_si512(p, v);
}

static inline vf vf_from_vi(vi v)
{
    return _mm512_cvtepi32_ps(v);
}

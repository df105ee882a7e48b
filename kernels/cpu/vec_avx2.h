/*
 * vec_avx2.h - the vector vocabulary of the kernel templates, 8 lanes of AVX2 + FMA
 *
 * What:      one of vec_avx512.h, vec_avx2.h, vec_portable.h is included by an isa_*.c before the templates
 *            (vec_exp.h, row_ops.h, matmul_tiles.h, attention_rows.h), which are written in these names only.
 * Layout:    vf is VEC_LANES floats. Loads and stores need no alignment. *_n handle the first n lanes, 1 <= n
 *            < VEC_LANES, and touch no byte beyond them; a load fills the others with zeros.
 * Invariant: vf_sum adds in one tree, fixed for the instruction set. vf_max(a, b) is b when either is NaN.
 * Thread:    any
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>

/* Wider matmul tiles than these spill registers. */
enum { VEC_LANES = 8, VEC_TILE_ROWS = 6, VEC_DOT_ROWS = 3, VEC_DOT_TOKENS = 4 };

typedef __m256 vf;

/* VEC_WIDE integers of 64 bits; the operators of C work on them, lane by lane. */
enum { VEC_WIDE = 4 };

typedef uint64_t vw __attribute__((vector_size(32)));

/* The products of the lower halves. */
static inline vw vw_mul_low(vw a, vw b)
{
    return (vw)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}

static inline vf vf_zero(void)
{
    return _mm256_setzero_ps();
}

static inline vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

static inline vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}

/* Lane i is all ones where i < n. */
static inline __m256i vec_first(int n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}

static inline vf vf_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, vec_first(n));
}

static inline void vf_store_n(float *p, vf v, int n)
{
    _mm256_maskstore_ps(p, vec_first(n), v);
}

static inline vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

static inline vf vf_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

static inline vf vf_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

static inline vf vf_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

/* a * b + c */
static inline vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline vf vf_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

/* To the nearest integer, ties to even. */
static inline vf vf_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* 2^n for integral n in [-126, 127]. */
static inline vf vf_pow2(vf n)
{
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}

/* 0 in the lanes where x < limit, y elsewhere. */
static inline vf vf_zero_below(vf x, vf limit, vf y)
{
    return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), y);
}

static inline float vf_sum(vf v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

static inline float vf_largest(vf v)
{
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    s = _mm_max_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
}

/* Of VEC_LANES pairs of bfloat16: lane i is p[2i]. */
static inline vf vf_load_bf16_even(const uint16_t *p)
{
    const __m256i v = _mm256_loadu_si256((const __m256i_u *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

/* Lane i is p[2i + 1]. */
static inline vf vf_load_bf16_odd(const uint16_t *p)
{
    const __m256i v = _mm256_loadu_si256((const __m256i_u *)p);
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32((int)0xFFFF0000u)));
}

/* The larger magnitude of each lane, as an integer of its bits: an infinity is larger than all numbers, a NaN than it. */
static inline vf vf_max_magnitude(vf a, vf b)
{
    const __m256i bits = _mm256_castps_si256(b);
    const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), magnitude));
}

/* VEC_LANES int8 in order. */
static inline vf vf_load_i8(const int8_t *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i_u *)p)));
}

/* Integral lanes in [-128, 127]. */
static inline void vf_store_i8(int8_t *p, vf v)
{
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m128i half =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64((__m128i_u *)p, _mm_packs_epi16(half, half));
}

/* VEC_LANES bfloat16 in order. */
static inline vf vf_load_bf16(const uint16_t *p)
{
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
}

/* VEC_LANES words of four int8: lane i is byte `which` of word i. */
static inline vf vf_unpack_i8(const uint32_t *p, int which)
{
    const __m256i v = _mm256_loadu_si256((const __m256i_u *)p);
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * which), 24));
}

// ---- integers ----

/* VEC_LANES int32. */
typedef __m256i vi;

static inline vi vi_set1(int32_t x)
{
    return _mm256_set1_epi32(x);
}

static inline vi vi_load(const void *p)
{
    return _mm256_loadu_si256((const __m256i_u *)p);
}

static inline void vi_store(void *p, vi v)
{
    _mm256_storeu_si256((__m256i_u *)p, v);
}

static inline vf vf_from_vi(vi v)
{
    return _mm256_cvtepi32_ps(v);
}

/* What sums of vi_dot begin with, where x has this sum over all k. */
static inline vi vi_dot_begin(int32_t sum_x)
{
    (void)sum_x;
    return _mm256_setzero_si256();
}

/*
 * acc + the products of four int8 each, lane by lane, none of them -128. The signs of x move to w, as the instruction multiplies
 * unsigned with signed; two products are at most 2 * 127^2 < 2^15, so that their sums do not saturate.
 */
static inline vi vi_dot(vi acc, vi w, vi x)
{
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

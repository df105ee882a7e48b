/*
 * vec_portable.h - the vector vocabulary of the kernel templates in plain C: 4 lanes, no fused multiply-add
 *
 * What, Layout, Invariant, Thread: as vec_avx2.h. The compiler turns the loops into whatever the baseline of its
 * target has (SSE2 on x86-64). vf_fma rounds twice: the fused one would be a library call a lane.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { VEC_LANES = 4, VEC_TILE_ROWS = 2, VEC_DOT_ROWS = 2, VEC_DOT_TOKENS = 2 };

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vec_i32 __attribute__((vector_size(16)));
typedef uint32_t vec_u32 __attribute__((vector_size(16)));

enum { VEC_WIDE = 2 };

typedef uint64_t vw __attribute__((vector_size(16)));

static inline vw vw_mul_low(vw a, vw b)
{
    return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
}

static inline vf vf_zero(void)
{
    return (vf){0.0f, 0.0f, 0.0f, 0.0f};
}

static inline vf vf_set1(float x)
{
    return (vf){x, x, x, x};
}

static inline vf vf_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vf_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

static inline vf vf_load_n(const float *p, int n)
{
    float lane[VEC_LANES] = {0};
    for (int i = 0; i < n; i++) {
        lane[i] = p[i];
    }
    return vf_load(lane);
}

static inline void vf_store_n(float *p, vf v, int n)
{
    for (int i = 0; i < n; i++) {
        p[i] = v[i];
    }
}

static inline vf vf_add(vf a, vf b)
{
    return a + b;
}

static inline vf vf_sub(vf a, vf b)
{
    return a - b;
}

static inline vf vf_mul(vf a, vf b)
{
    return a * b;
}

static inline vf vf_div(vf a, vf b)
{
    return a / b;
}

static inline vf vf_fma(vf a, vf b, vf c)
{
    return a * b + c;
}

/* a where mask is all ones, b where it is zero. */
static inline vf vec_pick(vec_i32 mask, vf a, vf b)
{
    return (vf)((mask & (vec_i32)a) | (~mask & (vec_i32)b));
}

static inline vf vf_max(vf a, vf b)
{
    return vec_pick((vec_i32)(a > b), a, b);
}

static inline vf vf_min(vf a, vf b)
{
    return vec_pick((vec_i32)(a < b), a, b);
}

static inline vf vf_round(vf a)
{
    vf r;
    for (int i = 0; i < VEC_LANES; i++) {
        r[i] = rintf(a[i]);
    }
    return r;
}

static inline vf vf_pow2(vf n)
{
    vec_i32 bits;
    for (int i = 0; i < VEC_LANES; i++) {
        // A NaN has no integer: any scale does, the product is a NaN anyway.
        bits[i] = n[i] >= -126.0f && n[i] <= 127.0f ? ((int32_t)n[i] + 127) << 23 : 0;
    }
    return (vf)bits;
}

static inline vf vf_zero_below(vf x, vf limit, vf y)
{
    return vec_pick((vec_i32)(x < limit), vf_zero(), y);
}

static inline float vf_sum(vf v)
{
    return (v[0] + v[2]) + (v[1] + v[3]);
}

static inline float vec_larger(float a, float b)
{
    return a > b ? a : b;
}

static inline float vf_largest(vf v)
{
    return vec_larger(vec_larger(v[0], v[2]), vec_larger(v[1], v[3]));
}

static inline vf vf_load_bf16_even(const uint16_t *p)
{
    vec_u32 v;
    memcpy(&v, p, sizeof v);
    return (vf)(v << 16);
}

static inline vf vf_load_bf16_odd(const uint16_t *p)
{
    vec_u32 v;
    memcpy(&v, p, sizeof v);
    return (vf)(v & 0xFFFF0000u);
}

static inline vf vf_max_magnitude(vf a, vf b)
{
    const vec_i32 magnitude = (vec_i32)b & 0x7FFFFFFF;
    return vec_pick((vec_i32)a > magnitude, a, (vf)magnitude);
}

static inline vf vf_load_i8(const int8_t *p)
{
    return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]};
}

static inline void vf_store_i8(int8_t *p, vf v)
{
    for (int i = 0; i < VEC_LANES; i++) {
        p[i] = (int8_t)v[i];
    }
}

static inline vf vf_load_bf16(const uint16_t *p)
{
    const vec_u32 bits = {(uint32_t)p[0] << 16, (uint32_t)p[1] << 16, (uint32_t)p[2] << 16,
                          (uint32_t)p[3] << 16};
    return (vf)bits;
}

static inline vf vf_unpack_i8(const uint32_t *p, int which)
{
    vec_u32 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector((vec_i32)(v << (24 - 8 * which)) >> 24, vf);
}

// ---- integers ----

typedef vec_i32 vi;

static inline vi vi_set1(int32_t x)
{
    return (vi){x, x, x, x};
}

static inline vi vi_load(const void *p)
{
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vi_store(void *p, vi v)
{
    memcpy(p, &v, sizeof v);
}

static inline vf vf_from_vi(vi v)
{
    return __builtin_convertvector(v, vf);
}

static inline vi vi_dot_begin(int32_t sum_x)
{
    (void)sum_x;
    return (vi){0, 0, 0, 0};
}

static inline vi vi_dot(vi acc, vi w, vi x)
{
    for (int i = 0; i < 4; i++) {
        const int left = 24 - 8 * i;
        acc += ((vi)((vec_u32)w << left) >> 24) * ((vi)((vec_u32)x << left) >> 24);
    }
    return acc;
}

/*
 * row_ops.h - the elementwise and norm loops
 *
 * What:      a template; include after a vec_*.h and vec_exp.h.
 * Invariant: the elementwise ops give an element the same bits wherever it stands in the row: the last, partial
 *            vector runs the same operations as the full ones.
 * Thread:    any
 */
#pragma once

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/kv_format.h"

static void row_add(float *x, const float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
    }
    if (i < n) {
        const int rest = (int)(n - i);
        vf_store_n(x + i, vf_add(vf_load_n(x + i, rest), vf_load_n(y + i, rest)), rest);
    }
}

/* silu(g) u = g / (1 + e^-g) u */
static inline vf swiglu_lanes(vf g, vf u)
{
    const vf e = vf_exp(vf_sub(vf_zero(), g));
    return vf_mul(vf_div(g, vf_add(vf_set1(1.0f), e)), u);
}

static void row_swiglu(const float *gate, const float *up, int64_t n, float *out)
{
    int64_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vf_store(out + i, swiglu_lanes(vf_load(gate + i), vf_load(up + i)));
    }
    if (i < n) {
        const int rest = (int)(n - i);
        vf_store_n(out + i, swiglu_lanes(vf_load_n(gate + i, rest), vf_load_n(up + i, rest)), rest);
    }
}

static void row_exp_scaled(const float *x, float shift, float divisor, int32_t n, float *out)
{
    const vf s = vf_set1(shift);
    const vf d = vf_set1(divisor);
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vf_store(out + i, vf_exp(vf_div(vf_sub(vf_load(x + i), s), d)));
    }
    if (i < n) {
        vf_store_n(out + i, vf_exp(vf_div(vf_sub(vf_load_n(x + i, n - i), s), d)), n - i);
    }
}

static float row_largest(const float *x, int32_t n)
{
    vf largest = vf_set1(-INFINITY);
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        largest = vf_max(vf_load(x + i), largest); // a NaN in x leaves the other
    }
    float all = vf_largest(largest);
    for (; i < n; i++) {
        all = x[i] > all ? x[i] : all;
    }
    return all;
}

/* Products before sums, each rounded, as the reference implementations compute it. */
static void row_rotate(float *a, float *b, const float *cos, const float *sin, int32_t n)
{
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        const vf x = vf_load(a + i), y = vf_load(b + i);
        const vf c = vf_load(cos + i), s = vf_load(sin + i);
        vf_store(a + i, vf_sub(vf_mul(x, c), vf_mul(y, s)));
        vf_store(b + i, vf_add(vf_mul(y, c), vf_mul(x, s)));
    }
    if (i < n) {
        const int rest = n - i;
        const vf x = vf_load_n(a + i, rest), y = vf_load_n(b + i, rest);
        const vf c = vf_load_n(cos + i, rest), s = vf_load_n(sin + i, rest);
        vf_store_n(a + i, vf_sub(vf_mul(x, c), vf_mul(y, s)), rest);
        vf_store_n(b + i, vf_add(vf_mul(y, c), vf_mul(x, s)), rest);
    }
}

/* Two chains of VEC_LANES sums: one would wait for itself, and each stays short enough for float32. */
static float sum_of_squares(const float *x, int32_t n)
{
    vf even = vf_zero(), odd = vf_zero();
    int32_t i = 0;
    for (; i + 2 * VEC_LANES <= n; i += 2 * VEC_LANES) {
        const vf a = vf_load(x + i), b = vf_load(x + i + VEC_LANES);
        even = vf_fma(a, a, even);
        odd = vf_fma(b, b, odd);
    }
    if (i + VEC_LANES <= n) {
        const vf a = vf_load(x + i);
        even = vf_fma(a, a, even);
        i += VEC_LANES;
    }
    if (i < n) {
        const vf b = vf_load_n(x + i, n - i);
        odd = vf_fma(b, b, odd);
    }
    return vf_sum(vf_add(even, odd));
}

static void row_rmsnorm(const float *x, const float *weight, float eps, int32_t n, float *out)
{
    const float mean = sum_of_squares(x, n) / (float)n;
    const vf scale = vf_set1(1.0f / sqrtf(mean + eps));
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_load(weight + i)));
    }
    if (i < n) {
        const int rest = n - i;
        const vf y = vf_mul(vf_mul(vf_load_n(x + i, rest), scale), vf_load_n(weight + i, rest));
        vf_store_n(out + i, y, rest);
    }
}

/* Chains as in sum_of_squares. */
static float row_sum(const float *x, int32_t n)
{
    vf even = vf_zero(), odd = vf_zero();
    int32_t i = 0;
    for (; i + 2 * VEC_LANES <= n; i += 2 * VEC_LANES) {
        even = vf_add(vf_load(x + i), even);
        odd = vf_add(vf_load(x + i + VEC_LANES), odd);
    }
    if (i + VEC_LANES <= n) {
        even = vf_add(vf_load(x + i), even);
        i += VEC_LANES;
    }
    if (i < n) {
        odd = vf_add(vf_load_n(x + i, n - i), odd);
    }
    return vf_sum(vf_add(even, odd));
}

static void row_subtract(const float *x, float mean, int32_t n, float *out)
{
    const vf m = vf_set1(mean);
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vf_store(out + i, vf_sub(vf_load(x + i), m));
    }
    if (i < n) {
        vf_store_n(out + i, vf_sub(vf_load_n(x + i, n - i), m), n - i);
    }
}

/* The squares are of what is left after the mean: mean(x^2) - mean^2 would cancel. */
static void row_layernorm(const float *x, const float *weight, const float *bias, float eps,
                          int32_t n, float *out)
{
    row_subtract(x, row_sum(x, n) / (float)n, n, out);
    const vf scale = vf_set1(1.0f / sqrtf(sum_of_squares(out, n) / (float)n + eps));
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        const vf y = vf_mul(vf_load(out + i), scale);
        vf_store(out + i, vf_fma(y, vf_load(weight + i), vf_load(bias + i)));
    }
    if (i < n) {
        const int rest = (int)(n - i);
        const vf y = vf_mul(vf_load_n(out + i, rest), scale);
        vf_store_n(out + i, vf_fma(y, vf_load_n(weight + i, rest), vf_load_n(bias + i, rest)),
                   rest);
    }
}

// ---- int8 ----

/* |x| of the row's largest element; a NaN or an infinity where it has one. */
static float row_magnitude(const float *x, int32_t n)
{
    vf most = vf_zero();
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        most = vf_max_magnitude(most, vf_load(x + i));
    }
    if (i < n) {
        most = vf_max_magnitude(most, vf_load_n(x + i, n - i));
    }
    float lane[VEC_LANES];
    vf_store(lane, most);
    uint32_t largest = 0; // magnitudes are in the order of their bits
    for (i = 0; i < VEC_LANES; i++) {
        const uint32_t bits = f32_bits(lane[i]);
        largest = bits > largest ? bits : largest;
    }
    return f32_from_bits(largest);
}

static inline vf quantized_lanes(vf x, vf inverse)
{
    const vf limit = vf_set1(KV_INT8_MAX);
    const vf value = vf_round(vf_mul(x, inverse));
    return vf_min(vf_max(value, vf_sub(vf_zero(), limit)), limit);
}

static uint16_t row_quantize(const float *x, int32_t n, int8_t *out)
{
    const float magnitude = row_magnitude(x, n);
    if (!(magnitude < INFINITY)) {
        memset(out, 0, (size_t)n);
        return bf16_from_f32(NAN);
    }
    const uint16_t bits = bf16_from_f32(magnitude / KV_INT8_MAX);
    const float scale = f32_from_bf16(bits);
    if (scale < FLT_MIN) {
        memset(out, 0, (size_t)n);
        return 0;
    }
    const vf inverse = vf_set1(1.0f / scale);
    int32_t i = 0;
    for (; i + VEC_LANES <= n; i += VEC_LANES) {
        vf_store_i8(out + i, quantized_lanes(vf_load(x + i), inverse));
    }
    if (i < n) {
        int8_t rest[VEC_LANES];
        vf_store_i8(rest, quantized_lanes(vf_load_n(x + i, n - i), inverse));
        memcpy(out + i, rest, (size_t)(n - i));
    }
    return bits;
}

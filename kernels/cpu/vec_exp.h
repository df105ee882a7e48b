/*
 * vec_exp.h - e^x over a vector: the one exponential of attention, SwiGLU and sampling
 *
 * What:      a template; include after one of the vec_*.h.
 *            x = n ln2 + r with |r| <= ln2/2, e^x = 2^n e^r; e^r by its Taylor series to r^7, whose remainder
 *            (r^8 / 8! = 5.2e-9 of e^r) is a tenth of an ulp. ln2 in two parts, the first of which has 9 significant
 *            bits, so that n times it is exact even where vf_fma rounds twice.
 * Errors:    at most 2 ulp; e^0 is exactly 1. Below -87.33654 (the smallest normal result) 0, above 88.72283 infinity,
 *            NaN gives NaN.
 * Thread:    any
 */
#pragma once

static inline vf vf_exp(vf x)
{
    const vf smallest = vf_set1(-87.33654f);
    // Clamped so that n stays in the range of vf_pow2; x second, so that a NaN goes through.
    const vf clamped = vf_min(vf_set1(89.0f), vf_max(smallest, x));
    const vf n = vf_round(vf_mul(clamped, vf_set1(0x1.715476p+0f)));
    vf r = vf_fma(n, vf_set1(-0x1.63p-1f), clamped);
    r = vf_fma(n, vf_set1(0x1.bd0106p-13f), r);

    vf p = vf_set1(1.0f / 5040.0f);
    p = vf_fma(p, r, vf_set1(1.0f / 720.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 120.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 24.0f));
    p = vf_fma(p, r, vf_set1(1.0f / 6.0f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));

    // In two steps: 2^128 is no float, while p * 2^64 * 2^64 overflows only where e^x does.
    const vf half = vf_round(vf_mul(n, vf_set1(0.5f)));
    const vf y = vf_mul(vf_mul(p, vf_pow2(half)), vf_pow2(vf_sub(n, half)));
    return vf_zero_below(x, smallest, y);
}

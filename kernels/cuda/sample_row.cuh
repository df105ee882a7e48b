/*
 * sample_row.cuh - a row of logits as sampling sees it: what a request changes of it, weights, and sums over a block
 *
 * What:      one block works on one row.
 * Numerics:  a weight is e^((logit - largest) / temperature), at most 1, as an integer: a number of 2^-44ths. Integers add up
 *            to the same sum in any order, on any number of threads, through atomics too. A weight's float error is below
 *            2^-22 (1 + |log2 weight|) of it, its rounding 2^-45; 2^18 ids can lose 2^-27 of the largest together.
 * Units:     "mass" is such an integer or a sum of them; 2^18 of them stay under 2^63.
 * Thread:    sums over the block are called by all its threads, at the same place; what takes one logit, by any.
 */
#pragma once

#include <float.h>

#include "kernels/backend.h"
#include "kernels/cuda/device.cuh"

typedef unsigned long long mass_t;

enum {
    SAMPLE_BIN_BITS = 10,
    SAMPLE_BINS = 1 << SAMPLE_BIN_BITS,
    SAMPLE_MAX_WARPS = 32,
    SAMPLE_GROUP = 128
};

/*
 * A row of logits, in shared or in global memory, and what a request changes of it: one bit an id in `changed`, the new
 * logits of those ids in ascending order in `adjusted`. Group g of 128 ids begins at before[g] of them.
 */
struct sample_view {
    const float *logits;
    int32_t n;
    int32_t only_changed;    // 1: ids that are not changed are out
    const uint32_t *changed; // null: nothing is changed
    const uint32_t *before;
    const float *adjusted;
    int32_t alone; // an id that is changed though it has no bit; -1: none
    float alone_logit;
};

/* Kept are logits above `logit`, and those equal to it up to id last_id. */
struct sample_cut {
    float logit;
    int32_t last_id;
};

/* How logits become weights. */
struct sample_weights {
    float largest;
    float scale; // log2(e) / temperature, finite
};

enum sample_measure { SAMPLE_COUNT, SAMPLE_MASS, SAMPLE_EQUAL };

/* A digit of the cut: bins above it hold `before`, it holds `size`, in `count` logits. */
struct sample_bin {
    uint32_t digit, count;
    mass_t before, size;
};

/* What the threads of a block share. */
struct sample_shared {
    uint32_t counts[SAMPLE_BINS];
    uint32_t mass_low[SAMPLE_BINS], mass_high[SAMPLE_BINS]; // halves of a bin's mass
    mass_t of_warp[SAMPLE_MAX_WARPS];
    struct sample_bin found;
    float limit;    // a logit one thread worked out
    double log_sum; // of the raw row's e^logit
    uint32_t n_top;
    struct sample_result result;
};

// ---- one logit ----

/* Where a changed id's logit stands in `adjusted`. */
static __device__ __forceinline__ uint32_t sample_slot(const struct sample_view *view, int32_t id)
{
    const int32_t group = id / SAMPLE_GROUP, word = id / 32;
    uint32_t slot = view->before[group];
    for (int32_t i = group * (SAMPLE_GROUP / 32); i < word; i++) {
        slot += (uint32_t)__popc(view->changed[i]);
    }
    return slot + (uint32_t)__popc(view->changed[word] & ((1u << ((uint32_t)id % 32)) - 1u));
}

static __device__ __forceinline__ float sample_logit(const struct sample_view *view, int32_t id)
{
    if (view->changed == NULL) {
        return view->logits[id];
    }
    if (id == view->alone) {
        return view->alone_logit;
    }
    if ((view->changed[id / 32] >> ((uint32_t)id % 32) & 1u) != 0) {
        return view->adjusted[sample_slot(view, id)];
    }
    return view->only_changed ? -INFINITY : view->logits[id];
}

static __device__ __forceinline__ bool sample_is_kept(struct sample_cut cut, float logit,
                                                      int32_t id)
{
    return logit > cut.logit || (logit == cut.logit && id <= cut.last_id);
}

/* A float as an integer of the same order; -0 as 0. */
static __device__ __forceinline__ uint32_t sample_key(float x)
{
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float sample_of_key(uint32_t key)
{
    return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

/*
 * w in [0, 1] in 2^-44ths, nearest. A float as large as 2^(23-n) has steps of 2^-n: adding one rounds to those steps, and the
 * low bits of the sum count them. Done twice, for 22 bits each: no conversion, which the older chips are slow at.
 */
static __device__ __forceinline__ mass_t sample_mass_of_weight(float w)
{
    const float base_high = 2.0f, base_low = 0x1.8p-21f;
    const float high = w + base_high;
    const float low = (w - (high - base_high)) + base_low;
    const int32_t n_high = (int32_t)(__float_as_uint(high) - __float_as_uint(base_high));
    const int32_t n_low = (int32_t)(__float_as_uint(low) - __float_as_uint(base_low));
    return (mass_t)((long long)n_high * (1 << 22) + n_low);
}

static __device__ __forceinline__ mass_t sample_mass(struct sample_weights weights, float logit)
{
    return sample_mass_of_weight(fast_exp2((logit - weights.largest) * weights.scale));
}

static __device__ __forceinline__ mass_t sample_measure_of(enum sample_measure measure,
                                                           struct sample_weights weights,
                                                           struct sample_cut cut, float logit,
                                                           int32_t id)
{
    if (!sample_is_kept(cut, logit, id)) {
        return 0;
    }
    if (measure == SAMPLE_MASS) {
        return sample_mass(weights, logit);
    }
    return measure == SAMPLE_COUNT || logit == cut.logit ? 1 : 0;
}

// ---- sums over the block ----

static __device__ __forceinline__ mass_t sample_warp_scan(mass_t x)
{
    const uint32_t lane = threadIdx.x % KVASIR_WARP;
    for (uint32_t offset = 1; offset < KVASIR_WARP; offset *= 2) {
        const mass_t before = __shfl_up_sync(KVASIR_ALL, x, offset);
        x += lane >= offset ? before : 0;
    }
    return x;
}

/* What the warps brought, summed up to and with this lane's; lanes past the last warp bring nothing. */
static __device__ __forceinline__ mass_t sample_scan_warps(const mass_t *of_warp, mass_t *own_out)
{
    const uint32_t lane = threadIdx.x % KVASIR_WARP;
    *own_out = lane < blockDim.x / KVASIR_WARP ? of_warp[lane] : 0;
    return sample_warp_scan(*own_out);
}

/* The sum of what threads before this one brought; *total_out: of all. */
static __device__ mass_t sample_block_scan(struct sample_shared *shared, mass_t x,
                                           mass_t *total_out)
{
    const uint32_t lane = threadIdx.x % KVASIR_WARP, warp = threadIdx.x / KVASIR_WARP;
    const mass_t in_warp = sample_warp_scan(x);
    if (lane == KVASIR_WARP - 1) {
        shared->of_warp[warp] = in_warp;
    }
    __syncthreads();
    mass_t own;
    const mass_t up_to = sample_scan_warps(shared->of_warp, &own);
    const mass_t before = __shfl_sync(KVASIR_ALL, up_to - own, (int)warp);
    *total_out = __shfl_sync(KVASIR_ALL, up_to, KVASIR_WARP - 1);
    __syncthreads(); // of_warp may be written again
    return before + in_warp - x;
}

static __device__ mass_t sample_block_sum(struct sample_shared *shared, mass_t x)
{
    mass_t total;
    (void)sample_block_scan(shared, x, &total);
    return total;
}

static __device__ mass_t sample_block_max(struct sample_shared *shared, mass_t x)
{
    const uint32_t lane = threadIdx.x % KVASIR_WARP, warp = threadIdx.x / KVASIR_WARP;
    for (int offset = KVASIR_WARP / 2; offset > 0; offset /= 2) {
        x = max(x, __shfl_xor_sync(KVASIR_ALL, x, offset));
    }
    if (lane == 0) {
        shared->of_warp[warp] = x;
    }
    __syncthreads();
    for (uint32_t i = 0; i < blockDim.x / KVASIR_WARP; i++) {
        x = max(x, shared->of_warp[i]);
    }
    __syncthreads();
    return x;
}

/* The mass of all that is kept. */
static __device__ mass_t sample_total(struct sample_shared *shared, const struct sample_view *view,
                                      struct sample_weights weights, struct sample_cut cut)
{
    mass_t sum = 0;
#pragma unroll 4
    for (int32_t id = (int32_t)threadIdx.x; id < view->n; id += (int32_t)blockDim.x) {
        sum += sample_measure_of(SAMPLE_MASS, weights, cut, sample_logit(view, id), id);
    }
    return sample_block_sum(shared, sum);
}

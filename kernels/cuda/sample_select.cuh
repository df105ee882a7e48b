/*
 * sample_select.cuh - what sampling asks of a row: sums of weights, the cut below which nothing is kept, the id at which a
 * running sum passes a target
 *
 * What:      one block works on one row. What is kept is always "every logit above a cut, and of those equal to it the ids
 *            up to one", so that nothing is sorted.
 * Numerics:  a weight is e^((logit - largest) / temperature), at most 1, as an integer: a number of 2^-44ths. Integers add up
 *            to the same sum in any order, on any number of threads, through atomics too. A weight's float error is below
 *            2^-22 (1 + |log2 weight| / 4) of it, its rounding 2^-45; 2^18 ids can lose 2^-27 of the largest together.
 * Units:     "mass" is such an integer or a sum of them; 2^18 of them stay under 2^63.
 * Thread:    functions are called by all threads of the block, at the same place, unless they say "a thread".
 */
#pragma once

#include <float.h>

#include "kernels/backend.h"
#include "kernels/cuda/device.cuh"

typedef unsigned long long mass_t;

enum { SAMPLE_BINS = 2048, SAMPLE_MAX_WARPS = 32, SAMPLE_GROUP = 128 };

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

// ---- the id at which a running sum passes a target ----

/* floor(total * numerator / 2^24), without 128 bits. */
static __device__ __forceinline__ mass_t sample_share(mass_t total, uint32_t numerator)
{
    const mass_t low = (total & 0xffffffu) * numerator;
    return (total >> 24) * numerator + (low >> 24);
}

/*
 * The first id, ascending, at which the sum of the measure is above a target: `target` itself for SAMPLE_EQUAL; for
 * SAMPLE_MASS, target 2^-24ths of the whole. Warps sum a part of the range each, and the part that passes the target
 * becomes the range, until one warp holds it. The whole is above the target.
 */
static __device__ int32_t sample_search(struct sample_shared *shared,
                                        const struct sample_view *view,
                                        struct sample_weights weights, struct sample_cut cut,
                                        enum sample_measure measure, uint32_t target)
{
    const int32_t lane = (int32_t)(threadIdx.x % KVASIR_WARP);
    const int32_t warp = (int32_t)(threadIdx.x / KVASIR_WARP);
    const int32_t n_warps = (int32_t)(blockDim.x / KVASIR_WARP);
    int32_t first = 0, end = view->n;
    mass_t left = target;
    bool is_share = measure == SAMPLE_MASS;
    for (;;) {
        const int32_t part = (end - first + n_warps - 1) / n_warps;
        const int32_t part_first = first + warp * part;
        const int32_t part_end = min(part_first + part, end);
        mass_t sum = 0;
#pragma unroll 4
        for (int32_t id = part_first + lane; id < part_end; id += KVASIR_WARP) {
            sum += sample_measure_of(measure, weights, cut, sample_logit(view, id), id);
        }
        sum = sample_warp_scan(sum);
        if (lane == KVASIR_WARP - 1) {
            shared->of_warp[warp] = sum;
        }
        __syncthreads();
        mass_t own;
        const mass_t up_to = sample_scan_warps(shared->of_warp, &own);
        if (is_share) {
            left = sample_share(__shfl_sync(KVASIR_ALL, up_to, KVASIR_WARP - 1), target);
            is_share = false;
        }
        const int32_t passes = __ffs((int)__ballot_sync(KVASIR_ALL, up_to > left)) - 1;
        left -= __shfl_sync(KVASIR_ALL, up_to - own, passes);
        first += passes * part;
        end = min(first + part, end);
        __syncthreads(); // of_warp may be written again
        if (part <= KVASIR_WARP) {
            break;
        }
    }
    const int32_t id = first + lane;
    const mass_t each =
        id < end ? sample_measure_of(measure, weights, cut, sample_logit(view, id), id) : 0;
    return first + __ffs((int)__ballot_sync(KVASIR_ALL, sample_warp_scan(each) > left)) - 1;
}

// ---- cuts ----

/* Moves the cut up to a logit that is known not to be above where it will end. */
static __device__ __forceinline__ void sample_raise(struct sample_cut *cut, float logit)
{
    if (logit > cut->logit) {
        cut->logit = logit;
        cut->last_id = INT32_MAX;
    }
}

static __device__ __forceinline__ void sample_add_to_bin(struct sample_shared *shared, uint32_t bin,
                                                         enum sample_measure measure, mass_t mass)
{
    atomicAdd(&shared->counts[bin], 1u);
    if (measure == SAMPLE_MASS) {
        // Shared memory adds 32 bits at once: the carry out of the lower half goes to the upper one.
        const uint32_t low = (uint32_t)mass;
        const uint32_t old = atomicAdd(&shared->mass_low[bin], low);
        const uint32_t high = (uint32_t)(mass >> 32) + (old > 0xffffffffu - low ? 1u : 0u);
        if (high != 0) {
            atomicAdd(&shared->mass_high[bin], high);
        }
    }
}

/* Counts, and adds up, what is kept and has its key in [low, high], by (key - low) >> shift. */
static __device__ void sample_fill_bins(struct sample_shared *shared,
                                        const struct sample_view *view,
                                        struct sample_weights weights, struct sample_cut cut,
                                        enum sample_measure measure, const uint32_t range[2],
                                        int shift)
{
    for (uint32_t i = threadIdx.x; i < SAMPLE_BINS; i += blockDim.x) {
        shared->counts[i] = 0;
        shared->mass_low[i] = 0;
        shared->mass_high[i] = 0;
    }
    __syncthreads();

    // Several loads are under way before the first of them is looked at.
    enum { AT_ONCE = 4 };

    const int32_t step = (int32_t)blockDim.x;
    for (int32_t first = (int32_t)threadIdx.x; first < view->n; first += AT_ONCE * step) {
        float logits[AT_ONCE];
#pragma unroll
        for (int32_t i = 0; i < AT_ONCE; i++) {
            const int32_t id = first + i * step;
            logits[i] = id < view->n ? sample_logit(view, id) : -INFINITY;
        }
#pragma unroll
        for (int32_t i = 0; i < AT_ONCE; i++) {
            const uint32_t key = sample_key(logits[i]);
            if (first + i * step < view->n && key >= range[0] && key <= range[1] &&
                sample_is_kept(cut, logits[i], first + i * step)) {
                sample_add_to_bin(shared, (key - range[0]) >> shift, measure,
                                  sample_mass(weights, logits[i]));
            }
        }
    }
    __syncthreads();
}

static __device__ __forceinline__ mass_t sample_bin_size(const struct sample_shared *shared,
                                                         enum sample_measure measure, uint32_t bin)
{
    if (measure == SAMPLE_COUNT) {
        return shared->counts[bin];
    }
    return (mass_t)shared->mass_high[bin] << 32 | shared->mass_low[bin];
}

/* The bin in which the sum from the top reaches the goal, which is not 0; false when all of them do not pass it. */
static __device__ bool sample_find_bin(struct sample_shared *shared, enum sample_measure measure,
                                       mass_t goal, struct sample_bin *bin_out)
{
    const uint32_t each = SAMPLE_BINS / blockDim.x;
    const uint32_t top = SAMPLE_BINS - 1 - threadIdx.x * each;
    mass_t own = 0;
    for (uint32_t i = 0; i < each; i++) {
        own += sample_bin_size(shared, measure, top - i);
    }
    mass_t total;
    mass_t before = sample_block_scan(shared, own, &total);
    if (total <= goal) {
        return false;
    }
    if (before < goal && goal <= before + own) { // one thread of all
        uint32_t bin = top;
        while (before + sample_bin_size(shared, measure, bin) < goal) {
            before += sample_bin_size(shared, measure, bin);
            bin--;
        }
        shared->found = {bin, shared->counts[bin], before, sample_bin_size(shared, measure, bin)};
    }
    __syncthreads();
    *bin_out = shared->found;
    return true;
}

/*
 * Narrows the cut to the smallest number of largest logits that reach the goal together, all of the same key taken by
 * ascending id. At most three rounds of 11 bits; a round ends it when its bin holds one logit or is wanted whole.
 */
static __device__ void sample_keep(struct sample_shared *shared, const struct sample_view *view,
                                   struct sample_weights weights, enum sample_measure measure,
                                   mass_t goal, struct sample_cut *cut)
{
    uint32_t range[2] = {sample_key(cut->logit), sample_key(weights.largest)};
    for (;;) {
        const uint32_t width = range[1] - range[0];
        const int shift = max(0, 32 - 11 - __clz((int)width)); // width >> shift < SAMPLE_BINS
        sample_fill_bins(shared, view, weights, *cut, measure, range, shift);
        struct sample_bin bin;
        if (!sample_find_bin(shared, measure, goal, &bin)) {
            return;
        }
        range[0] += bin.digit << shift;
        range[1] = min(range[1], range[0] + ((1u << shift) - 1));
        goal -= bin.before;
        sample_raise(cut, sample_of_key(range[0]));
        if (bin.count == 1 || bin.size == goal) {
            return;
        }
        if (shift == 0) {
            break;
        }
    }
    // Equal logits have equal weights: as many as the goal needs.
    const mass_t each = measure == SAMPLE_MASS ? sample_mass(weights, cut->logit) : 1;
    const uint32_t n = (uint32_t)((goal + each - 1) / each);
    cut->last_id = sample_search(shared, view, weights, *cut, SAMPLE_EQUAL, n - 1);
}

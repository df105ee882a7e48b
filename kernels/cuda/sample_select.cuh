/*
 * sample_select.cuh - where sampling cuts a row, and the id at which a running sum passes a target
 *
 * What:      what is kept is always "every logit above a cut, and of those equal to it the ids up to one", so that nothing
 *            is sorted.
 * Thread:    called by all threads of the block, at the same place.
 */
#pragma once

#include "kernels/cuda/sample_row.cuh"

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
 * ascending id. At most four rounds of 10 bits; a round ends it when its bin holds one logit or is wanted whole.
 */
static __device__ void sample_keep(struct sample_shared *shared, const struct sample_view *view,
                                   struct sample_weights weights, enum sample_measure measure,
                                   mass_t goal, struct sample_cut *cut)
{
    uint32_t range[2] = {sample_key(cut->logit), sample_key(weights.largest)};
    for (;;) {
        const uint32_t width = range[1] - range[0];
        // The smallest for which width >> shift is below SAMPLE_BINS.
        const int shift = max(0, 32 - SAMPLE_BIN_BITS - __clz((int)width));
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

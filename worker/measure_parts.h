/*
 * measure_parts.h - what the files that measure share: the machine at hand, and how a thing is timed
 *
 * Ownership: measure.c makes and ends the bench; parts borrow it.
 * Thread:    owner:the rank's main thread.
 * Collective: measure_matmuls, measure_collectives and measure_step: yes.
 */
#pragma once

#include "worker/measure.h"

/* More than the caches of a machine hold: what was used that long ago comes from memory. */
#define MEASURE_COLD_BYTES ((size_t)96 << 20)

struct measure_bench {
    struct group *group;
    const struct model_spec *spec;
    const struct plan *plan;
    struct measure_options options;
    struct backend_stream *stream;
    size_t
        cold_bytes; /* MEASURE_COLD_BYTES, or the rank's weights where they are less: then they stay in caches */
    struct cost_rates *rates; /* filled bit by bit */
};

/* Does the thing the i-th time. */
typedef status_t (*measure_fn)(void *user, int32_t i);

/* Seconds of one call, the median over rounds; a round is as many calls as fill a few milliseconds. */
MUST_USE status_t measure_seconds(const struct measure_bench *bench, measure_fn call, void *user,
                                  double *seconds_out);

MUST_USE status_t measure_alloc(const struct measure_bench *bench, size_t size, void **ptr_out);

MUST_USE status_t measure_matmuls(const struct measure_bench *bench);
MUST_USE status_t measure_attention(const struct measure_bench *bench);
MUST_USE status_t measure_elementwise(const struct measure_bench *bench); /* after the others */
MUST_USE status_t measure_sampling(const struct measure_bench *bench);
MUST_USE status_t measure_collectives(const struct measure_bench *bench);
MUST_USE status_t measure_step(const struct measure_bench *bench);

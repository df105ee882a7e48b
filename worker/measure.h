/*
 * measure.h - how fast this machine runs a model's ops, as rates that predictions are made from
 *
 * What:      times the backend's own ops at the shapes of the model's matrices on this rank, with weights and keys that come
 *            from memory as in a step; collectives over the group; and a step that computes next to nothing.
 *            Medians of several rounds, all ranks at work beside each other.
 * Thread:    owner:the rank's main thread.
 * Collective: yes; rank 0's rates count.
 * Errors:    RESOURCE_EXHAUSTED for memory; those of the backend.
 */
#pragma once

#include "kernels/backend.h"
#include "parallel/cost_rates.h"
#include "parallel/group.h"
#include "parallel/plan.h"
#include "worker/host_cores.h"

struct measure_options {
    const struct backend *backend;
    int device; /* index in backend->devices */
    int dtype, kv_dtype;
    const struct host_cores *cores; /* of a rank's threads on the CPU */
};

MUST_USE status_t measure_run(struct group *group, const struct model_spec *spec,
                              const struct plan *plan, const struct measure_options *options,
                              struct cost_rates *rates_out);

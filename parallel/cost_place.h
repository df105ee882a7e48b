/*
 * cost_place.h - share, replicate or token, layer by layer, by what it costs
 *
 * What:      a plan with --kv-placement auto where rates are known. For each layer all placements are predicted for a
 *            decode step of the workload, and the fastest one is taken: sharing costs an exchange of queries, copying costs
 *            reading more keys, and computing them on more ranks; splitting by token costs exchanges of float32, and divides the
 *            keys of few sequences evenly. Nothing is copied where the copies would leave room for fewer sequences than are
 *            asked for.
 *            DeciLM-7B on 8 a100-80g, 512 tokens in and out: up to 64 sequences every layer copies (two exchanges of 8 us each
 *            beside a few us of keys), 7 layers of 32 at 128, from 256 on all share.
 * Thread:    any
 */
#pragma once

#include "parallel/cost.h"

/* request->placement and placer are filled in. `model`: all but the plan. `memory`: the limits, its plan is not looked at. */
MUST_USE status_t cost_place(const struct cost_model *model, const struct cost_workload *workload,
                             const struct plan_memory_request *memory, double utilization,
                             struct plan_request *request, struct plan *plan_out);

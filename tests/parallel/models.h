/*
 * models.h - models to plan for: random ones and a published one
 *
 * Ownership: the caller's; spec_destroy, plan_destroy.
 * Thread:    the test's main thread
 */
#pragma once

#include "parallel/plan.h"

/* Uniform in [lo, hi]. */
int32_t models_between(int32_t lo, int32_t hi);

/*
 * 1 to 128 heads, 1 to 16 layers, KV heads from the divisors. FFN widths are whole tiles, as in every
 * published model, unless odd ones are asked for. In every third model a block of a layer may be linear or missing.
 */
struct model_spec models_random(bool odd_widths);

/* DeciLM-7B. */
struct model_spec models_deci_7b(void);

/* plan_make that must succeed: of one stage, and of several. */
struct plan models_plan(const struct model_spec *spec, int32_t tp, int placement);
struct plan models_plan_stages(const struct model_spec *spec, const struct plan_request *request);

/* Layers that compute something: the most stages there can be. */
int32_t models_working_layers(const struct model_spec *spec);

/*
 * cost_report.h - a prediction for people and for programs
 *
 * What:      the bound and what to expect of one plan and workload side by side, op by op and layer by layer, with the
 *            part of the device's rates that the expectation assumes, and how many sequences fit.
 * Layout:    text of at most 80 columns; JSON, the member "prediction" of `kvasir plan --json`:
 *
 *              {"device", "rates": "table"|"measured", "prompt_tokens", "generated_tokens", "concurrency", "binds",
 *               "bound"|"expected": {"tokens_per_s", "decode_tokens_per_s", "prefill_tokens_per_s", "first_token_s",
 *                                    "inter_token_s", "decode_step_s": {OP: seconds}, "prefill_step_s": {OP: seconds}},
 *               "efficiency": {...}, "kv_capacity_tokens", "max_concurrency", "usable_bytes", "fixed_bytes",
 *               "layers": [{"layer", "weight_bytes", "kv_bytes", "flops", "collective_bytes", "collective_s",
 *                           "bound_s", "expected_s"}]}
 *
 *            A layer's figures are of one decode step on the rank that has most.
 * Thread:    any
 * Errors:    RESOURCE_EXHAUSTED for memory.
 */
#pragma once

#include "base/bytes.h"
#include "parallel/cost.h"

struct cost_report {
    struct cost_model model; /* with what to expect */
    struct cost_rates bound_rates;
    struct cost_workload workload;
    struct cost_prediction bound, expected;
    struct cost_memory memory;
    double max_concurrency; /* sequences of P + G tokens that fit */
};

/* `request` as in cost_fit. What the model points to must outlive the report. */
void cost_report_make(const struct cost_model *model, const struct cost_workload *workload,
                      const struct plan_memory_request *request, double utilization,
                      struct cost_report *report_out);

/* One decode step of one layer: the bound, and what to expect. */
void cost_report_layer(const struct cost_report *report, int32_t layer, struct cost_time *bound_out,
                       struct cost_time *expected_out);

MUST_USE status_t cost_report_print(const struct cost_report *report, struct bytes *out);

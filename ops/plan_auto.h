/*
 * plan_auto.h - `kvasir plan --auto`: layouts of a model on a cluster, best first
 *
 * Thread: owner:main
 */
#pragma once

#include "base/bytes.h"
#include "parallel/cost_search.h"

/* A table of 80 columns, why the best one is best, and what does not fit with its numbers. */
MUST_USE status_t plan_auto_print(const struct cost_search_request *request,
                                  const struct cost_search *search, struct bytes *out);

/* {"device", "objective", "gpus", "candidates": [{"tensor_parallel", "pipeline_parallel", "replicas", "kv_placement",
 *  "replicated_layers", "token_layers", "fits", "concurrency", "kv_capacity_tokens", "tokens_per_s", "inter_token_s", "first_token_s",
 *  "binds", "needed_bytes", "usable_bytes", "refusal"}]}; figures of what does not fit are 0. */
MUST_USE status_t plan_auto_print_json(const struct cost_search_request *request,
                                       const struct cost_search *search, struct bytes *out);

/* FAILED_PRECONDITION with the numbers when nothing fits. */
MUST_USE status_t plan_auto_check(const struct cost_search_request *request,
                                  const struct cost_search *search);

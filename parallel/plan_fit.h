/*
 * plan_fit.h - whether a plan fits its devices, and what would make it fit
 *
 * What:      a plan fits when every rank has room for its weights, buffers and workspaces and for the KV blocks of one
 *            sequence of max_model_len tokens. More blocks are taken while there is room, up to those that all
 *            sequences need.
 * Thread:    any. Pure.
 * Errors:    FAILED_PRECONDITION with the bytes of the fullest rank, and the nearest values of --max-model-len, -tp, -pp
 *            and --kv-cache-dtype that fit, each by itself and checked by making the plan.
 */
#pragma once

#include <stdint.h>

#include "parallel/plan_memory.h"

/* Fills in request->blocks_per_lane for ranks that may use usable_bytes each. */
MUST_USE status_t plan_fit(struct plan_memory_request *request, uint64_t usable_bytes);

/* Of what a user may change, more ranks, more stages or a narrower dtype of KV, "-tp 4, -pp 2", in buf; "" where none of it is
 * enough. */
void plan_fit_layouts(const struct plan_memory_request *request, uint64_t usable_bytes, char *buf,
                      size_t buf_bytes);

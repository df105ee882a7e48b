/*
 * kv_pool.h - the rank's keys and values, and where a step's rows go in them
 *
 * What:      one K and one V plane a layer, sized by what the rank holds of that layer's KV heads: nothing is padded to
 *            the largest layer, and layers without attention have none. Layers of a lane class share block ids and addresses; kv_pool_place works these out
 *            once a step.
 * Layout:    a plane is [unit][PLAN_BLOCK_TOKENS][head_dim], a unit being one KV head of one block. Planes of int8 have
 *            planes of scales beside them, [unit][PLAN_BLOCK_TOKENS] (kernels/kv_format.h). The dtype is each layer's own.
 *            Lane u's block b is units unit_base(u) + b*n .. + n-1, its n held heads in ascending order (plan.h).
 *            Under replicate, where the rank's query heads cover a group in part, the number of query heads a KV head
 *            serves differs from head to head, and one attention call cannot take them all. Such a class is `split`:
 *            the plane is cut into one part of equal size for each held head, and a head's part is [lane][block].
 *            A class split by token has its runs one behind the other in the plane, as token_run.h says.
 * Ownership: the pool owns planes and tables; the plan is borrowed.
 * Thread:    owner:the rank's main thread.
 * Errors:    RESOURCE_EXHAUSTED for memory.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/plan.h"
#include "worker/device_array.h"
#include "worker/step_plan.h"
#include "worker/token_run.h"

struct kv_lane {
    int64_t unit_base;
    int32_t units_per_block;
    int32_t first_head; /* of the KV heads held for the lane */
    int32_t n_heads;
};

struct kv_class {
    bool split;
    bool fused;           /* k and v are computed with q: one run, every lane */
    int64_t part_units;   /* split: units of one head's part */
    int64_t padding_unit; /* behind those of the plan: nothing in it is ever read */
    int32_t group;        /* query heads a KV head serves, over all ranks */
    int32_t n_runs;
    plan_run_t runs[PLAN_MAX_RUNS];
    bool by_token; /* then token_runs count, lanes and units do not */
    struct token_run token_runs[PLAN_MAX_RUNS];
    struct kv_lane *lanes; /* [n_lanes] */
    struct device_array
        units[PLAN_MAX_RUNS]; /* int64, of the step: the unit of the run's first head, by row */
};

struct kv_planes {
    void *k, *v;
    void *k_scales, *v_scales; /* NULL where the dtype needs none */
    int dtype;
};

struct kv_pool {
    const struct backend *backend;
    struct backend_stream *stream;
    const struct plan *plan;
    int32_t tp_rank;
    plan_interval_t stage; /* its layers */
    int64_t blocks_per_lane;
    int32_t max_steps;
    uint64_t bytes;           /* of planes, scales included */
    struct kv_class *classes; /* [n_classes]; without runs where no layer of the stage is in it */
    struct kv_planes *layers; /* [n_layers]; NULL planes: the layer keeps nothing here */

    /* Of the step. */
    struct device_array offsets; /* int32 [max_rows]: token within its block */
    int32_t *lane_rows; /* [n_lanes + 1]: the rows of lane u are [lane_rows[u], lane_rows[u + 1]) */
};

struct kv_pool_request {
    const struct backend *backend;
    struct backend_stream *stream;
    const struct plan *plan;
    int32_t rank; /* of all stages */
    int kv_dtype;
    int64_t blocks_per_lane;
    int32_t max_seqs, max_rows, max_blocks; /* of a step */
    int32_t max_steps;                      /* under way at once */
};

MUST_USE status_t kv_pool_init(struct kv_pool *pool, const struct kv_pool_request *request);
void kv_pool_destroy(struct kv_pool *pool); /* accepts a zeroed pool */

/* Works out where the rows of a step go, and tells the device. Rows from step->n_rows to n_rows, which a recorded step may
 * have, go to the padding; only where the backend records. */
MUST_USE status_t kv_pool_place(struct kv_pool *pool, const struct step_plan *step, int32_t n_rows);

/* The layer's planes from head `head` of a split class on; 0, and of other classes, from their beginning. */
struct kv_planes kv_pool_part(const struct kv_pool *pool, int32_t layer, int32_t head);

/* Bytes of a unit in a plane of values, and in one of scales. */
size_t kv_pool_unit_bytes(const struct kv_pool *pool, int dtype);
size_t kv_pool_unit_scale_bytes(int dtype);

/* Units from one head of a run to the next: neighbours, or parts of the plane. */
int64_t kv_pool_head_units(const struct kv_class *kv_class);

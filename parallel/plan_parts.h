/*
 * plan_parts.h - what the files of a plan share: its tables, from the cuts to the owners
 *
 * What:      the decisions of a plan are its cuts and its classes; who owns which KV head follows from
 *            them. plan_make decides, plan_unpack reads decisions, plan_complete does the rest for both.
 * Ownership: tables belong to the plan; on failure the caller calls plan_destroy.
 * Thread:    any
 * Errors:    false when memory is exhausted.
 */
#pragma once

#include "parallel/plan.h"

/* Sizes from the spec, layers and vocabulary cuts allocated and zero. *plan must be zeroed. */
MUST_USE bool plan_allocate(struct plan *plan, const struct model_spec *spec, int32_t tp,
                            int32_t pp);

/* Decides: stages; query heads and vocabulary rows; tiles of FFN and of linear blocks. */
MUST_USE bool plan_cut_stages(struct plan *plan, const struct model_spec *spec);
void plan_cut_heads(struct plan *plan, const struct model_spec *spec);
MUST_USE bool plan_cut_tiles(struct plan *plan, const struct model_spec *spec);

/* Room for n_classes classes, zeroed. */
MUST_USE bool plan_allocate_classes(struct plan *plan, int32_t n_classes);

/* Fills n_lanes, stripe and each class's owned tables from n_kv_heads, placement and the layers' cuts. */
MUST_USE bool plan_complete(struct plan *plan);

/* True when the layer computes something. */
bool plan_layer_works(const struct model_spec *spec, int32_t layer);

/* How many tiles of PLAN_TILE units, the last one perhaps shorter. */
int32_t plan_n_tiles(int32_t n);

/* Tiles of FFN columns a rank may have more, or fewer, than an even share: see plan_cuts.c. */
#define PLAN_TILES_OFF 1

/* Units of the layer's attention and feed-forward that the ranks divide: heads, columns or rows; 0 for no block. */
int32_t plan_attention_units(const struct model_spec *spec, int32_t layer);
int32_t plan_ffn_units(const struct model_spec *spec, int32_t layer);

/* KV heads that the query heads of the rank in this layer read, when the layer has n_kv_heads. */
plan_interval_t plan_read_heads(const struct plan *plan, int32_t layer, int32_t n_kv_heads,
                                int32_t rank);

/*
 * Places on the KV line, one for each (head, lane) or under token (head, block of a stripe), head-major: rank r owns
 * [r * n, (r + 1) * n) of them, n = plan_places. Exact: n_lanes and stripe make every cut fall between two places.
 */
int32_t plan_places(const struct plan *plan, const struct plan_class *kv_class);

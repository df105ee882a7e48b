#include <assert.h>

#include "kernels/kv_format.h"
#include "parallel/plan.h"
#include "parallel/plan_parts.h"

static const plan_interval_t nothing = {0, 0};

static plan_interval_t interval_of(const int32_t *cuts, int32_t rank)
{
    const plan_interval_t interval = {.begin = cuts[rank], .end = cuts[rank + 1]};
    return interval;
}

static const struct plan_class *class_at(const struct plan *plan, int32_t class_index)
{
    assert(class_index >= 0 && class_index < plan->n_classes);
    return &plan->classes[class_index];
}

// ---- stages ----

int32_t plan_n_ranks(const struct plan *plan)
{
    return plan->tp * plan->pp;
}

int32_t plan_stage(const struct plan *plan, int32_t rank)
{
    return rank / plan->tp;
}

int32_t plan_tp_rank(const struct plan *plan, int32_t rank)
{
    return rank % plan->tp;
}

plan_interval_t plan_stage_layers(const struct plan *plan, int32_t stage)
{
    return interval_of(plan->stage_cuts, stage);
}

int32_t plan_stage_of_layer(const struct plan *plan, int32_t layer)
{
    int32_t stage = 0;
    while (plan->stage_cuts[stage + 1] <= layer) {
        stage++;
    }
    return stage;
}

plan_interval_t plan_embedding_rows(const struct plan *plan, int32_t rank)
{
    const bool first = plan_stage(plan, rank) == 0;
    return first ? plan_vocab_rows(plan, plan_tp_rank(plan, rank)) : nothing;
}

plan_interval_t plan_head_rows(const struct plan *plan, int32_t rank)
{
    const bool last = plan_stage(plan, rank) == plan->pp - 1;
    return last ? plan_vocab_rows(plan, plan_tp_rank(plan, rank)) : nothing;
}

static plan_interval_t layers_of_rank(const struct plan *plan, int32_t rank)
{
    return plan_stage_layers(plan, plan_stage(plan, rank));
}

// ---- in a layer ----

plan_interval_t plan_q_heads(const struct plan *plan, int32_t layer, int32_t tp_rank)
{
    const struct plan_layer *at = &plan->layers[layer];
    return at->attention == SPEC_BLOCK_FULL ? interval_of(at->attention_cuts, tp_rank) : nothing;
}

plan_interval_t plan_ffn_columns(const struct plan *plan, int32_t layer, int32_t tp_rank)
{
    const struct plan_layer *at = &plan->layers[layer];
    return at->ffn == SPEC_BLOCK_FULL ? interval_of(at->ffn_cuts, tp_rank) : nothing;
}

plan_interval_t plan_attention_rows(const struct plan *plan, int32_t layer, int32_t tp_rank)
{
    const struct plan_layer *at = &plan->layers[layer];
    return at->attention == SPEC_BLOCK_LINEAR ? interval_of(at->attention_cuts, tp_rank) : nothing;
}

plan_interval_t plan_ffn_rows(const struct plan *plan, int32_t layer, int32_t tp_rank)
{
    const struct plan_layer *at = &plan->layers[layer];
    return at->ffn == SPEC_BLOCK_LINEAR ? interval_of(at->ffn_cuts, tp_rank) : nothing;
}

plan_interval_t plan_vocab_rows(const struct plan *plan, int32_t tp_rank)
{
    return interval_of(plan->vocab_cuts, tp_rank);
}

// ---- KV heads ----

int32_t plan_held(const struct plan *plan, int32_t class_index, int32_t tp_rank, int32_t lane,
                  const int32_t **heads_out)
{
    const struct plan_class *kv_class = class_at(plan, class_index);
    const int32_t *at = &kv_class->owned_at[tp_rank * plan->n_lanes + lane];
    *heads_out = &kv_class->owned[at[0]];
    return at[1] - at[0];
}

int32_t plan_attention_rank(const struct plan *plan, int32_t class_index, int32_t head,
                            int32_t lane, int32_t q_rank)
{
    const struct plan_class *kv_class = class_at(plan, class_index);
    if (kv_class->placement == PLAN_REPLICATE) {
        return q_rank;
    }
    return (head * plan->n_lanes + lane) / plan_places(plan, kv_class);
}

bool plan_attention_is_local(const struct plan *plan, int32_t layer)
{
    if (plan->layers[layer].attention != SPEC_BLOCK_FULL) {
        return true;
    }
    const struct plan_class *kv_class = class_at(plan, plan->layers[layer].class_index);
    if (kv_class->placement == PLAN_REPLICATE) {
        return true;
    }
    // Local when the rank owns, in every lane, what its query heads read: whole heads on the line.
    const int32_t n = plan_places(plan, kv_class);
    for (int32_t r = 0; r < plan->tp; r++) {
        const plan_interval_t read = plan_read_heads(plan, layer, kv_class->n_kv_heads, r);
        if (read.begin * plan->n_lanes < r * n || read.end * plan->n_lanes > (r + 1) * n) {
            return false;
        }
    }
    return true;
}

plan_interval_t plan_kv_weight_heads(const struct plan *plan, int32_t class_index, int32_t tp_rank)
{
    plan_interval_t heads = {.begin = class_at(plan, class_index)->n_kv_heads, .end = 0};
    for (int32_t u = 0; u < plan->n_lanes; u++) {
        const int32_t *held;
        const int32_t n = plan_held(plan, class_index, tp_rank, u, &held);
        if (n > 0) {
            heads.begin = held[0] < heads.begin ? held[0] : heads.begin;
            heads.end = held[n - 1] >= heads.end ? held[n - 1] + 1 : heads.end;
        }
    }
    return heads;
}

/*
 * The rank's places on the KV line are one interval, head-major: the end of one head, whole heads, the
 * beginning of another.
 *
 *              lane 0 1 2
 *     head 1        . # #     run 0: what is left of the first head
 *     head 2        # # #     run 1: whole heads
 *     head 3        # . .     run 2: the beginning of the last
 */
int32_t plan_kv_runs(const struct plan *plan, int32_t class_index, int32_t tp_rank,
                     plan_run_t runs_out[PLAN_MAX_RUNS])
{
    const struct plan_class *kv_class = class_at(plan, class_index);
    const int32_t lanes = plan->n_lanes;
    if (kv_class->placement == PLAN_REPLICATE) {
        const plan_interval_t heads = plan_kv_weight_heads(plan, class_index, tp_rank);
        runs_out[0] = (plan_run_t){heads.begin, heads.end, 0, lanes};
        return 1;
    }

    const int32_t n = plan_places(plan, kv_class);
    int32_t head = tp_rank * n / lanes;
    const int32_t first_lane = tp_rank * n % lanes;
    const int32_t last_head = (tp_rank + 1) * n / lanes;
    const int32_t last_lane = (tp_rank + 1) * n % lanes; // not included
    if (head == last_head) {
        runs_out[0] = (plan_run_t){head, head + 1, first_lane, last_lane};
        return 1;
    }
    int32_t n_runs = 0;
    if (first_lane > 0) {
        runs_out[n_runs++] = (plan_run_t){head, head + 1, first_lane, lanes};
        head++;
    }
    if (head < last_head) {
        runs_out[n_runs++] = (plan_run_t){head, last_head, 0, lanes};
    }
    if (last_lane > 0) {
        runs_out[n_runs++] = (plan_run_t){last_head, last_head + 1, 0, last_lane};
    }
    return n_runs;
}

bool plan_fuses_kv(const struct plan *plan, int32_t class_index, int32_t tp_rank)
{
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n = plan_kv_runs(plan, class_index, tp_rank, runs);
    return n == 1 && runs[0].lane_begin == 0 && runs[0].lane_end == plan->n_lanes;
}

void plan_exchange_heads(const struct plan *plan, int32_t rank, int32_t *kv_side_out,
                         int32_t *either_out)
{
    int32_t kv_side = 0;
    int32_t either = 0;
    const int32_t tp_rank = plan_tp_rank(plan, rank);
    const plan_interval_t layers = layers_of_rank(plan, rank);
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        if (plan_attention_is_local(plan, layer)) {
            continue;
        }
        const int32_t class_index = plan->layers[layer].class_index;
        const int32_t group = plan->n_heads / plan->classes[class_index].n_kv_heads;
        const plan_interval_t q = plan_q_heads(plan, layer, tp_rank);
        either = q.end - q.begin > either ? q.end - q.begin : either;
        for (int32_t lane = 0; lane < plan->n_lanes; lane++) {
            const int32_t *held;
            const int32_t n = group * plan_held(plan, class_index, tp_rank, lane, &held);
            kv_side = n > kv_side ? n : kv_side;
        }
    }
    *kv_side_out = kv_side;
    *either_out = kv_side > either ? kv_side : either;
}

int64_t plan_units(const struct plan *plan, int32_t class_index, int32_t tp_rank, int64_t n_blocks)
{
    return plan_unit_base(plan, class_index, tp_rank, plan->n_lanes, n_blocks);
}

int64_t plan_unit_base(const struct plan *plan, int32_t class_index, int32_t tp_rank, int32_t lane,
                       int64_t n_blocks)
{
    const int32_t *owned_at = class_at(plan, class_index)->owned_at;
    const int32_t first = tp_rank * plan->n_lanes;
    return n_blocks * (owned_at[first + lane] - owned_at[first]);
}

// ---- bytes ----

/* (KV head, lane) pairs the rank holds, over the layers of its stage. */
static int64_t held_pairs(const struct plan *plan, int32_t rank)
{
    int64_t pairs = 0;
    const plan_interval_t layers = layers_of_rank(plan, rank);
    for (int32_t i = layers.begin; i < layers.end; i++) {
        const int32_t c = plan->layers[i].class_index;
        pairs += c >= 0 ? plan_units(plan, c, plan_tp_rank(plan, rank), 1) : 0;
    }
    return pairs;
}

/* Bytes of K and V of one token in one head, scales included. */
static int64_t head_bytes(const struct plan *plan, int kv_dtype)
{
    return 2 * kv_row_bytes(plan->head_dim, kv_dtype);
}

int64_t plan_kv_block_bytes(const struct plan *plan, int32_t rank, int kv_dtype)
{
    return held_pairs(plan, rank) * PLAN_BLOCK_TOKENS * head_bytes(plan, kv_dtype);
}

double plan_kv_bytes_per_token(const struct plan *plan, int32_t rank, int kv_dtype)
{
    return (double)(held_pairs(plan, rank) * head_bytes(plan, kv_dtype)) / plan->n_lanes;
}

double plan_kv_replication(const struct plan *plan, const struct model_spec *spec)
{
    int64_t held = 0;
    for (int32_t r = 0; r < plan_n_ranks(plan); r++) {
        held += held_pairs(plan, r);
    }
    int64_t once = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        once += spec->layers[i].n_kv_heads;
    }
    return once > 0 ? (double)held / (double)(once * plan->n_lanes) : 1.0;
}

static int32_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

/* A matrix of a layer on a rank. */
struct part {
    enum weight_kind kind;
    int64_t n_out, n_in;
};

enum { MAX_PARTS = 6 };

/* The layer's matrices on the rank; those it has no part of are empty. */
static void list_parts(const struct plan *plan, const struct model_spec *spec, int32_t layer,
                       int32_t tp_rank, struct part parts[MAX_PARTS])
{
    const int64_t n_hidden = spec->n_hidden;
    const int64_t q = (int64_t)length(plan_q_heads(plan, layer, tp_rank)) * plan->head_dim;
    const int64_t ffn = length(plan_ffn_columns(plan, layer, tp_rank));
    int64_t kv = 0;
    if (plan->layers[layer].attention == SPEC_BLOCK_FULL) {
        const int32_t class_index = plan->layers[layer].class_index;
        kv = (int64_t)length(plan_kv_weight_heads(plan, class_index, tp_rank)) * plan->head_dim;
    }
    const struct part all[MAX_PARTS] = {
        {WEIGHT_KIND_QKV, q + 2 * kv, n_hidden},
        {WEIGHT_KIND_O, n_hidden, q},
        {WEIGHT_KIND_GATE_UP, 2 * ffn, n_hidden},
        {WEIGHT_KIND_DOWN, n_hidden, ffn},
        {WEIGHT_KIND_LINEAR_ATTENTION, length(plan_attention_rows(plan, layer, tp_rank)), n_hidden},
        {WEIGHT_KIND_LINEAR_FFN, length(plan_ffn_rows(plan, layer, tp_rank)), n_hidden},
    };
    for (int i = 0; i < MAX_PARTS; i++) {
        parts[i] = all[i];
    }
}

int64_t plan_weight_bytes(const struct plan *plan, const struct model_spec *spec, int32_t rank,
                          const struct weight_formats *formats)
{
    const plan_interval_t layers = layers_of_rank(plan, rank);
    const int64_t embedding = length(plan_embedding_rows(plan, rank));
    const int64_t head_rows = length(plan_head_rows(plan, rank));
    const bool last = plan_stage(plan, rank) == plan->pp - 1;
    const bool same = spec->tied_head && plan->pp == 1;
    const int head = weight_formats_of(formats, -1, WEIGHT_KIND_HEAD);
    int64_t bytes = embedding * spec->n_hidden * (int64_t)dtype_bytes(formats->dtype);
    int64_t n_norms = last ? 1 : 0;
    bytes += same ? 0 : weight_formats_bytes(head, head_rows, spec->n_hidden);
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        struct part parts[MAX_PARTS];
        list_parts(plan, spec, layer, plan_tp_rank(plan, rank), parts);
        for (int i = 0; i < MAX_PARTS; i++) {
            const int format = weight_formats_of(formats, layer, parts[i].kind);
            bytes += weight_formats_bytes(format, parts[i].n_out, parts[i].n_in);
        }
        n_norms += spec_layer_norms(spec, layer);
    }
    return bytes + n_norms * spec_norm_parameters(spec) * (int64_t)dtype_bytes(DTYPE_F32);
}

int32_t plan_rounded_inputs(const struct plan *plan, const struct model_spec *spec, int32_t rank,
                            const struct weight_formats *formats)
{
    const plan_interval_t layers = layers_of_rank(plan, rank);
    int64_t most = 0;
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        struct part parts[MAX_PARTS];
        list_parts(plan, spec, layer, plan_tp_rank(plan, rank), parts);
        for (int i = 0; i < MAX_PARTS; i++) {
            const int format = weight_formats_of(formats, layer, parts[i].kind);
            const bool rounds = format == MATRIX_W8A8 && parts[i].n_out > 0;
            most = rounds && parts[i].n_in > most ? parts[i].n_in : most;
        }
    }
    return (int32_t)most;
}

#include <assert.h>

#include "kernels/attention_args.h"
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

int32_t plan_columns(const struct plan *plan, int32_t class_index)
{
    return class_at(plan, class_index)->placement == PLAN_TOKEN ? plan->stripe : plan->n_lanes;
}

int32_t plan_held(const struct plan *plan, int32_t class_index, int32_t tp_rank, int32_t lane,
                  const int32_t **heads_out)
{
    const struct plan_class *kv_class = class_at(plan, class_index);
    const int32_t *at = &kv_class->owned_at[tp_rank * plan_columns(plan, class_index) + lane];
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
    return (head * plan_columns(plan, class_index) + lane) / plan_places(plan, kv_class);
}

bool plan_attention_is_local(const struct plan *plan, int32_t layer)
{
    if (plan->layers[layer].attention != SPEC_BLOCK_FULL) {
        return true;
    }
    const int32_t class_index = plan->layers[layer].class_index;
    const struct plan_class *kv_class = class_at(plan, class_index);
    if (kv_class->placement == PLAN_REPLICATE) {
        return true;
    }
    const int32_t columns = plan_columns(plan, class_index);
    // Local when the rank owns, in every lane, what its query heads read: whole heads on the line.
    const int32_t n = plan_places(plan, kv_class);
    for (int32_t r = 0; r < plan->tp; r++) {
        const plan_interval_t read = plan_read_heads(plan, layer, kv_class->n_kv_heads, r);
        if (read.begin * columns < r * n || read.end * columns > (r + 1) * n) {
            return false;
        }
    }
    return true;
}

plan_interval_t plan_kv_weight_heads(const struct plan *plan, int32_t class_index, int32_t tp_rank)
{
    plan_interval_t heads = {.begin = class_at(plan, class_index)->n_kv_heads, .end = 0};
    const int32_t columns = plan_columns(plan, class_index);
    for (int32_t u = 0; u < columns; u++) {
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
    const int32_t lanes = plan_columns(plan, class_index);
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
    if (class_at(plan, class_index)->placement == PLAN_TOKEN) {
        return true;
    }
    const int32_t n = plan_kv_runs(plan, class_index, tp_rank, runs);
    return n == 1 && runs[0].lane_begin == 0 && runs[0].lane_end == plan->n_lanes;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Query heads of the layer on q_rank whose KV head kv_rank has, for some column. */
static int64_t common_heads(const struct plan *plan, int32_t layer, int32_t q_rank, int32_t kv_rank)
{
    const int32_t class_index = plan->layers[layer].class_index;
    const int32_t group = plan->n_heads / class_at(plan, class_index)->n_kv_heads;
    const plan_interval_t q = plan_q_heads(plan, layer, q_rank);
    const plan_interval_t kv = plan_kv_weight_heads(plan, class_index, kv_rank);
    const int32_t begin = q.begin > kv.begin * group ? q.begin : kv.begin * group;
    const int32_t end = q.end < kv.end * group ? q.end : kv.end * group;
    return end > begin ? end - begin : 0;
}

/* Queries of all rows go to every rank that shares their head, and from each of these comes what it found. */
static struct plan_exchange token_exchange(const struct plan *plan, int32_t layer, int32_t tp_rank,
                                           int64_t query_bytes)
{
    const int32_t class_index = plan->layers[layer].class_index;
    const int32_t group = plan->n_heads / class_at(plan, class_index)->n_kv_heads;
    const plan_interval_t held = plan_kv_weight_heads(plan, class_index, tp_rank);
    const int64_t heads = (int64_t)(held.end - held.begin) * group;
    const int64_t part_bytes = (plan->head_dim + ATTENTION_STATS) * (int64_t)sizeof(float);
    int64_t asked = 0, answered = 0;
    for (int32_t peer = 0; peer < plan->tp; peer++) {
        asked += peer != tp_rank ? common_heads(plan, layer, tp_rank, peer) : 0;
        answered += peer != tp_rank ? common_heads(plan, layer, peer, tp_rank) : 0;
    }
    const int64_t most = larger(asked, answered);
    return (struct plan_exchange){heads * query_bytes, heads * part_bytes, most * query_bytes,
                                  most * part_bytes};
}

/* In the lane for which the rank holds most. */
static struct plan_exchange share_exchange(const struct plan *plan, int32_t layer, int32_t tp_rank,
                                           int64_t query_bytes)
{
    const int32_t class_index = plan->layers[layer].class_index;
    const int32_t group = plan->n_heads / class_at(plan, class_index)->n_kv_heads;
    const plan_interval_t q = plan_q_heads(plan, layer, tp_rank);
    int64_t heads = 0;
    for (int32_t lane = 0; lane < plan->n_lanes; lane++) {
        const int32_t *held;
        heads = larger(heads, (int64_t)group * plan_held(plan, class_index, tp_rank, lane, &held));
    }
    const int64_t message = larger(heads, q.end - q.begin) * query_bytes;
    return (struct plan_exchange){heads * query_bytes, heads * query_bytes, message, message};
}

void plan_layer_exchange(const struct plan *plan, int32_t layer, int32_t tp_rank, int activation,
                         struct plan_exchange *exchange_out)
{
    const int64_t query_bytes = plan->head_dim * (int64_t)dtype_bytes(activation);
    const struct plan_exchange nothing_moves = {0};
    if (plan_attention_is_local(plan, layer)) {
        *exchange_out = nothing_moves;
    } else if (class_at(plan, plan->layers[layer].class_index)->placement == PLAN_TOKEN) {
        *exchange_out = token_exchange(plan, layer, tp_rank, query_bytes);
    } else {
        *exchange_out = share_exchange(plan, layer, tp_rank, query_bytes);
    }
}

void plan_exchange_bytes(const struct plan *plan, int32_t rank, int activation,
                         struct plan_exchange *exchange_out)
{
    const int64_t query_bytes = plan->head_dim * (int64_t)dtype_bytes(activation);
    const plan_interval_t layers = layers_of_rank(plan, rank);
    struct plan_exchange most = {0};
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        struct plan_exchange x;
        plan_layer_exchange(plan, layer, plan_tp_rank(plan, rank), activation, &x);
        most.queries = larger(most.queries, x.queries);
        most.outputs = larger(most.outputs, x.outputs);
        most.query_message = larger(most.query_message, x.query_message);
        most.output_message = larger(most.output_message, x.output_message);
    }
    // A rank may hold nothing in the layers that exchange: buffers of one head are still buffers.
    if (most.query_message > 0) {
        most.queries = larger(most.queries, query_bytes);
        most.outputs = larger(most.outputs, query_bytes);
    }
    *exchange_out = most;
}

// ---- units ----

int64_t plan_stripes_in(const struct plan *plan, int64_t n_blocks)
{
    return n_blocks / plan->stripe * plan->stripe;
}

int64_t plan_stripes_for(const struct plan *plan, int64_t n_blocks)
{
    return (n_blocks + plan->stripe - 1) / plan->stripe * plan->stripe;
}

/* Heads for each of the class's columns. */
static int64_t pairs_of(const struct plan *plan, int32_t class_index, int32_t tp_rank)
{
    const int32_t *owned_at = class_at(plan, class_index)->owned_at;
    const int32_t columns = plan_columns(plan, class_index);
    const int32_t *of_rank = &owned_at[(size_t)tp_rank * (size_t)columns];
    return of_rank[columns] - of_rank[0];
}

int64_t plan_units(const struct plan *plan, int32_t class_index, int32_t tp_rank, int64_t n_blocks)
{
    assert(n_blocks % plan->stripe == 0);
    const int64_t each = n_blocks * plan->n_lanes / plan_columns(plan, class_index);
    return pairs_of(plan, class_index, tp_rank) * each;
}

int64_t plan_unit_base(const struct plan *plan, int32_t class_index, int32_t tp_rank, int32_t lane,
                       int64_t n_blocks)
{
    const int32_t *owned_at = class_at(plan, class_index)->owned_at;
    const int32_t first = tp_rank * plan->n_lanes;
    assert(class_at(plan, class_index)->placement != PLAN_TOKEN);
    return n_blocks * (owned_at[first + lane] - owned_at[first]);
}

int64_t plan_run_block(const struct plan *plan, const plan_run_t *run, int64_t block)
{
    const int32_t place = (int32_t)(block % plan->stripe);
    if (place < run->lane_begin || place >= run->lane_end) {
        return -1;
    }
    return block / plan->stripe * (run->lane_end - run->lane_begin) + place - run->lane_begin;
}

int64_t plan_run_units(const struct plan *plan, const plan_run_t *run, int64_t n_blocks)
{
    assert(n_blocks % plan->stripe == 0);
    return n_blocks / plan->stripe * (run->lane_end - run->lane_begin) *
           (run->head_end - run->head_begin);
}

// ---- bytes ----

/* Units of all layers of the rank's stage. */
static int64_t units_of_rank(const struct plan *plan, int32_t rank, int64_t n_blocks)
{
    int64_t units = 0;
    const plan_interval_t layers = layers_of_rank(plan, rank);
    for (int32_t i = layers.begin; i < layers.end; i++) {
        const int32_t c = plan->layers[i].class_index;
        units += c >= 0 ? plan_units(plan, c, plan_tp_rank(plan, rank), n_blocks) : 0;
    }
    return units;
}

int64_t plan_kv_bytes(const struct plan *plan, int32_t rank, int kv_dtype, int64_t n_blocks)
{
    return units_of_rank(plan, rank, n_blocks) * PLAN_BLOCK_TOKENS * 2 *
           kv_row_bytes(plan->head_dim, kv_dtype);
}

int64_t plan_kv_blocks_in(const struct plan *plan, int32_t rank, int kv_dtype, uint64_t bytes)
{
    const int64_t stripe = larger(plan_kv_bytes(plan, rank, kv_dtype, plan->stripe), 1);
    return (int64_t)(bytes / (uint64_t)stripe) * plan->stripe;
}

double plan_kv_bytes_per_token(const struct plan *plan, int32_t rank, int kv_dtype)
{
    const int64_t n_tokens = (int64_t)plan->stripe * plan->n_lanes * PLAN_BLOCK_TOKENS;
    return (double)plan_kv_bytes(plan, rank, kv_dtype, plan->stripe) / (double)n_tokens;
}

double plan_kv_replication(const struct plan *plan, const struct model_spec *spec)
{
    int64_t held = 0;
    for (int32_t r = 0; r < plan_n_ranks(plan); r++) {
        held += units_of_rank(plan, r, plan->stripe);
    }
    int64_t once = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        once += spec->layers[i].n_kv_heads;
    }
    return once > 0 ? (double)held / (double)(once * plan->n_lanes * plan->stripe) : 1.0;
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

#include "parallel/cost.h"

#include <math.h>
#include <stdlib.h>

#include "kernels/kv_format.h"
#include "parallel/plan_parts.h"

const char *cost_op_name(int op)
{
    static const char *const names[COST_N_OPS] = {
        [COST_PROJECT] = "projections",
        [COST_FFN] = "feed-forward",
        [COST_HEAD] = "head",
        [COST_ATTENTION] = "attention",
        [COST_ELEMENTWISE] = "elementwise",
        [COST_SAMPLE] = "sampling",
        [COST_LAUNCH] = "launches",
        [COST_ALL_REDUCE] = "all-reduce",
        [COST_EXCHANGE] = "exchange",
        [COST_EDGES] = "edges",
        [COST_STEP] = "step",
    };
    return names[op];
}

// ---- numbers ----

static int32_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

static double n_rows(const struct cost_rows *rows)
{
    return rows->n_seqs * rows->n_new;
}

/* Sequences of a lane: whole ones are dealt to the lanes in turn; what is left of an average is spread. */
static double lane_seqs(const struct plan *plan, double n_seqs, int32_t lane)
{
    const double whole = floor(n_seqs);
    const double dealt = floor((whole + plan->n_lanes - 1 - lane) / plan->n_lanes);
    return dealt + (n_seqs - whole) / plan->n_lanes;
}

static void add_op(struct cost_time *time, int op, double seconds)
{
    time->seconds[op] += seconds;
    time->total_s += seconds;
}

/* What two blocks take one after the other. */
static void add_time(struct cost_time *sum, const struct cost_time *more, double times)
{
    for (int op = 0; op < COST_N_OPS; op++) {
        sum->seconds[op] += times * more->seconds[op];
    }
    sum->total_s += times * more->total_s;
    sum->weight_bytes += times * more->weight_bytes;
    sum->kv_bytes += times * more->kv_bytes;
    sum->flops += times * more->flops;
    sum->collective_bytes += times * more->collective_bytes;
}

// ---- single ops, on one rank ----

/* enum matrix_format; the same for all layers. */
static int format_of(const struct cost_model *m, int op)
{
    const struct weight_formats formats = {.dtype = m->dtype, .quantization = m->quantization};
    return op == COST_HEAD ? weight_formats_of(&formats, -1, WEIGHT_KIND_HEAD)
                           : weight_formats_of(&formats, 0, WEIGHT_KIND_QKV);
}

static void matmul(const struct cost_model *m, int op, double rows, plan_interval_t sides,
                   struct cost_time *time)
{
    const int format = format_of(m, op);
    const double size = (double)sides.begin * sides.end; // n_out, n_in
    if (rows <= 0 || size <= 0) {
        return;
    }
    add_op(time, op, cost_rates_matmul_s(m->rates, format, rows, sides.begin, sides.end));
    add_op(time, COST_LAUNCH, m->rates->n_matmuls > 0 ? 0 : m->rates->efficiency.op_s);
    time->weight_bytes += size * (double)dtype_bytes(dtype_of_format(format));
    time->flops += 2 * rows * size;
}

static void elementwise(const struct cost_model *m, double bytes, struct cost_time *time)
{
    const struct cost_efficiency *e = &m->rates->efficiency;
    if (e->elementwise > 0) {
        add_op(time, COST_ELEMENTWISE, bytes / (m->rates->read_bytes_per_s * e->elementwise));
    }
    add_op(time, COST_LAUNCH, e->op_s);
}

/* x in and out in float32, what is to be added, what comes out. */
static void norm(const struct cost_model *m, double rows, struct cost_time *time)
{
    elementwise(m, rows * m->spec->n_hidden * (8 + 2.0 * m->rates->activation_bytes), time);
}

static const struct cost_attention_rate *attention_rate(const struct cost_rates *rates,
                                                        int32_t group)
{
    const struct cost_attention_rate *best = NULL;
    for (int32_t i = 0; i < rates->n_attentions; i++) {
        const struct cost_attention_rate *at = &rates->attentions[i];
        if (best == NULL || abs(at->group - group) < abs(best->group - group)) {
            best = at;
        }
    }
    return best;
}

/*
 * pairs: (sequence, KV head) the rank attends to; q_pairs: (sequence, query head). A query at position p sees p + 1 keys
 * or the window: over n_new queries that is n_new n_past + n_new^2 / 2 keys. Scores and sums of values: 4 flops a key
 * and column.
 */
static void attention(const struct cost_model *m, const struct cost_rows *rows, double pairs,
                      double q_pairs, struct cost_time *time)
{
    const struct cost_rates *r = m->rates;
    const double window = m->spec->sliding_window > 0 ? m->spec->sliding_window : HUGE_VAL;
    const double kept = fmin(rows->n_past + rows->n_new, window + rows->n_new - 1);
    const double seen = fmin(rows->n_past + rows->n_new / 2, window) * rows->n_new;
    const double bytes = pairs * kept * 2 * (double)kv_row_bytes(m->spec->head_dim, m->kv_dtype);
    const double flops = q_pairs * seen * 4 * m->spec->head_dim;
    if (pairs <= 0) {
        return;
    }
    const struct cost_attention_rate *measured =
        attention_rate(r, (int32_t)lround(fmax(1, q_pairs / pairs)));
    double seconds;
    if (measured != NULL) {
        seconds =
            rows->n_new > 1 ? flops / measured->flops_per_s : bytes / measured->kv_bytes_per_s;
    } else {
        seconds = bytes / (r->read_bytes_per_s * r->efficiency.kv_read);
        if (rows->n_new > 1) {
            seconds = fmax(seconds, flops / (r->flops_per_s * r->efficiency.attention_flops));
        }
    }
    add_op(time, COST_ATTENTION, seconds);
    add_op(time, COST_LAUNCH, r->efficiency.op_s);
    time->kv_bytes += bytes;
    time->flops += flops;
}

// ---- collectives ----

static bool leaves_node(const struct cost_model *m)
{
    return m->ranks_per_node > 0 && m->plan->tp > m->ranks_per_node;
}

/* Between nodes a rank has its own port. */
static const struct cost_link *exchange_link(const struct cost_model *m)
{
    return leaves_node(m) ? &m->rates->stage : &m->rates->exchange;
}

/* Over nodes there is a ring through each port of a node, so that they carry the volume together, and the network's latency. */
static void all_reduce(const struct cost_model *m, int op, double bytes, struct cost_time *time)
{
    struct cost_link link = m->rates->all_reduce;
    if (leaves_node(m)) {
        link = m->rates->stage;
        link.bytes_per_s =
            fmin(m->rates->all_reduce.bytes_per_s, m->rates->stage.bytes_per_s * m->ranks_per_node);
    }
    if (m->plan->tp > 1) {
        add_op(time, op, cost_link_all_reduce_s(&link, m->plan->tp, bytes));
        time->collective_bytes += bytes;
    }
}

static bool by_token(const struct plan *plan, int32_t layer)
{
    return plan->classes[plan->layers[layer].class_index].placement == PLAN_TOKEN;
}

/* Activations of the rates have two bytes or four. */
static struct plan_exchange exchange_of(const struct cost_model *m, int32_t layer, int32_t rank)
{
    struct plan_exchange x;
    const int activation = m->rates->activation_bytes > 2 ? DTYPE_F32 : DTYPE_BF16;
    plan_layer_exchange(m->plan, layer, rank, activation, &x);
    return x;
}

/* Queries of the rank whose KV head another rank holds, as (sequence, head): as many outputs come back to it. */
static double leaving_queries(const struct plan *plan, double n_seqs, int32_t layer, int32_t rank)
{
    const int32_t c = plan->layers[layer].class_index;
    const int32_t group = plan->n_heads / plan->classes[c].n_kv_heads;
    const plan_interval_t q = plan_q_heads(plan, layer, rank);
    double leaving = 0;
    for (int32_t head = q.begin / group; head * group < q.end; head++) {
        const int32_t first = head * group > q.begin ? head * group : q.begin;
        const int32_t end = (head + 1) * group < q.end ? (head + 1) * group : q.end;
        for (int32_t lane = 0; lane < plan->n_lanes; lane++) {
            if (plan_attention_rank(plan, c, head, lane, rank) != rank) {
                leaving += (end - first) * lane_seqs(plan, n_seqs, lane);
            }
        }
    }
    return leaving;
}

/* Queries to all ranks that share their head, parts of outputs back, in float32. */
static void exchange_parts(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                           struct cost_time *time)
{
    const struct cost_link *link = exchange_link(m);
    double there = 0, back = 0;
    for (int32_t rank = 0; rank < m->plan->tp; rank++) {
        const struct plan_exchange x = exchange_of(m, layer, rank);
        there = fmax(there, n_rows(rows) * (double)x.query_message);
        back = fmax(back, n_rows(rows) * (double)x.output_message);
    }
    add_op(time, COST_EXCHANGE, cost_link_exchange_s(link, m->plan->tp, there));
    add_op(time, COST_EXCHANGE, cost_link_exchange_s(link, m->plan->tp, back));
    time->collective_bytes += there + back;
}

/* There and back; a rank sends its own queries away, or the outputs of others. */
static void exchange(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                     struct cost_time *time)
{
    if (plan_attention_is_local(m->plan, layer)) {
        return;
    }
    if (by_token(m->plan, layer)) {
        exchange_parts(m, rows, layer, time);
        return;
    }
    double most = 0;
    for (int32_t rank = 0; rank < m->plan->tp; rank++) {
        most = fmax(most, leaving_queries(m->plan, rows->n_seqs, layer, rank));
    }
    const double bytes = most * rows->n_new * m->spec->head_dim * m->rates->activation_bytes;
    const struct cost_link *link = exchange_link(m);
    add_op(time, COST_EXCHANGE, 2 * cost_link_exchange_s(link, m->plan->tp, bytes));
    time->collective_bytes += 2 * bytes;
}

// ---- blocks ----

static void keep_slower(struct cost_time *slowest, const struct cost_time *time)
{
    if (time->total_s > slowest->total_s) {
        *slowest = *time;
    }
}

/* Keys and values of the lanes a rank holds are computed for these alone. */
static void project_keys(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                         int32_t rank, struct cost_time *time)
{
    const struct plan *plan = m->plan;
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n = plan_kv_runs(plan, plan->layers[layer].class_index, rank, runs);
    for (int32_t i = 0; i < n; i++) {
        double seqs = 0;
        for (int32_t lane = runs[i].lane_begin; lane < runs[i].lane_end; lane++) {
            seqs += lane_seqs(plan, rows->n_seqs, lane);
        }
        const int32_t heads = runs[i].head_end - runs[i].head_begin;
        const plan_interval_t sides = {2 * heads * plan->head_dim, m->spec->n_hidden};
        matmul(m, COST_PROJECT, seqs * rows->n_new, sides, time);
        elementwise(m, seqs * rows->n_new * heads * plan->head_dim * 3 * m->rates->activation_bytes,
                    time);
    }
}

/* (Sequence, KV head) that the rank attends to; of a head split by token, its part of each sequence. */
static double held_pairs(const struct plan *plan, int32_t c, int32_t rank, double n_seqs)
{
    const bool token = plan->classes[c].placement == PLAN_TOKEN;
    double pairs = 0;
    for (int32_t lane = 0; lane < plan_columns(plan, c); lane++) {
        const int32_t *held;
        const double seqs = token ? n_seqs / plan->stripe : lane_seqs(plan, n_seqs, lane);
        pairs += plan_held(plan, c, rank, lane, &held) * seqs;
    }
    return pairs;
}

/* Parts are written, read and put together; a run more is an op more. */
static void merge_parts(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                        int32_t rank, struct cost_time *time)
{
    plan_run_t runs[PLAN_MAX_RUNS];
    const struct plan_exchange x = exchange_of(m, layer, rank);
    const int32_t n = plan_kv_runs(m->plan, m->plan->layers[layer].class_index, rank, runs);
    elementwise(m, n_rows(rows) * (double)(x.outputs + x.output_message), time);
    add_op(time, COST_LAUNCH, 2 * (n - 1) * m->rates->efficiency.op_s); // attending, storing keys
}

static void full_attention(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                           int32_t rank, struct cost_time *time)
{
    const struct plan *plan = m->plan;
    const int32_t c = plan->layers[layer].class_index;
    const int32_t q_heads = length(plan_q_heads(plan, layer, rank));
    const bool fused = plan_fuses_kv(plan, c, rank);
    const int32_t kv_heads = fused ? length(plan_kv_weight_heads(plan, c, rank)) : 0;
    const int32_t hidden = m->spec->n_hidden;
    const double activation = m->rates->activation_bytes;
    const int32_t columns = (q_heads + 2 * kv_heads) * plan->head_dim;
    norm(m, n_rows(rows), time);
    matmul(m, COST_PROJECT, n_rows(rows), (plan_interval_t){columns, hidden}, time);
    elementwise(m, n_rows(rows) * columns * 2 * activation, time); // rotation and storing
    if (!fused) {
        project_keys(m, rows, layer, rank, time);
    }
    const double pairs = held_pairs(plan, c, rank, rows->n_seqs);
    const bool copied = plan->classes[c].placement == PLAN_REPLICATE;
    const double group = (double)plan->n_heads / plan->classes[c].n_kv_heads;
    attention(m, rows, pairs, copied ? rows->n_seqs * q_heads : pairs * group, time);
    if (by_token(plan, layer)) {
        merge_parts(m, rows, layer, rank, time);
    }
    matmul(m, COST_PROJECT, n_rows(rows), (plan_interval_t){hidden, q_heads * plan->head_dim},
           time);
}

static void linear(const struct cost_model *m, int op, const struct cost_rows *rows, int32_t n_out,
                   struct cost_time *time)
{
    norm(m, n_rows(rows), time);
    matmul(m, op, n_rows(rows), (plan_interval_t){n_out, m->spec->n_hidden}, time);
}

static void full_ffn(const struct cost_model *m, const struct cost_rows *rows, int32_t columns,
                     struct cost_time *time)
{
    const int32_t hidden = m->spec->n_hidden;
    norm(m, n_rows(rows), time);
    matmul(m, COST_FFN, n_rows(rows), (plan_interval_t){2 * columns, hidden}, time);
    elementwise(m, n_rows(rows) * columns * 3 * m->rates->activation_bytes, time);
    matmul(m, COST_FFN, n_rows(rows), (plan_interval_t){hidden, columns}, time);
}

static void attention_block(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                            struct cost_time *sum)
{
    const int kind = m->plan->layers[layer].attention;
    struct cost_time slowest = {.total_s = -1};
    if (kind == SPEC_BLOCK_NONE) {
        return;
    }
    for (int32_t rank = 0; rank < m->plan->tp; rank++) {
        struct cost_time time = {.total_s = 0};
        if (kind == SPEC_BLOCK_FULL) {
            full_attention(m, rows, layer, rank, &time);
        } else {
            linear(m, COST_PROJECT, rows, length(plan_attention_rows(m->plan, layer, rank)), &time);
        }
        keep_slower(&slowest, &time);
    }
    exchange(m, rows, layer, &slowest);
    all_reduce(m, COST_ALL_REDUCE, n_rows(rows) * m->spec->n_hidden * m->rates->activation_bytes,
               &slowest);
    add_time(sum, &slowest, 1);
}

static void ffn_block(const struct cost_model *m, const struct cost_rows *rows, int32_t layer,
                      struct cost_time *sum)
{
    const int kind = m->plan->layers[layer].ffn;
    struct cost_time slowest = {.total_s = -1};
    if (kind == SPEC_BLOCK_NONE) {
        return;
    }
    for (int32_t rank = 0; rank < m->plan->tp; rank++) {
        struct cost_time time = {.total_s = 0};
        if (kind == SPEC_BLOCK_FULL) {
            full_ffn(m, rows, length(plan_ffn_columns(m->plan, layer, rank)), &time);
        } else {
            linear(m, COST_FFN, rows, length(plan_ffn_rows(m->plan, layer, rank)), &time);
        }
        keep_slower(&slowest, &time);
    }
    all_reduce(m, COST_ALL_REDUCE, n_rows(rows) * m->spec->n_hidden * m->rates->activation_bytes,
               &slowest);
    add_time(sum, &slowest, 1);
}

void cost_of_layer(const struct cost_model *model, const struct cost_rows *rows, int32_t layer,
                   struct cost_time *time_out)
{
    struct cost_time time = {.total_s = 0};
    attention_block(model, rows, layer, &time);
    ffn_block(model, rows, layer, &time);
    *time_out = time;
}

// ---- the ends of a step ----

static void first_end(const struct cost_model *m, const struct cost_rows *rows,
                      struct cost_time *time)
{
    const double bytes = n_rows(rows) * m->spec->n_hidden * (double)sizeof(float);
    elementwise(m, 2 * bytes, time);
    all_reduce(m, COST_EDGES, bytes, time);
}

static void last_end(const struct cost_model *m, const struct cost_rows *rows,
                     struct cost_time *time)
{
    const struct cost_efficiency *e = &m->rates->efficiency;
    const double logits_bytes = rows->n_logits * m->spec->n_vocab * (double)sizeof(float);
    int32_t most = 0;
    if (rows->n_logits <= 0) {
        return;
    }
    for (int32_t rank = 0; rank < m->plan->tp; rank++) {
        const int32_t n = length(plan_vocab_rows(m->plan, rank));
        most = n > most ? n : most;
    }
    norm(m, rows->n_logits, time);
    matmul(m, COST_HEAD, rows->n_logits, (plan_interval_t){most, m->spec->n_hidden}, time);
    if (m->plan->tp > 1) {
        const double others = logits_bytes * (m->plan->tp - 1) / m->plan->tp;
        const struct cost_link *link = exchange_link(m);
        add_op(time, COST_EDGES, cost_link_exchange_s(link, m->plan->tp, others));
        time->collective_bytes += others;
    }
    if (e->sampling > 0) {
        add_op(time, COST_SAMPLE,
               e->row_s * rows->n_logits +
                   2 * logits_bytes / (m->rates->read_bytes_per_s * e->sampling));
    }
}

// ---- stages ----

/* Activations to the next stage, over the node's link where both are on one. */
static void hand_over(const struct cost_model *m, const struct cost_rows *rows,
                      struct cost_time *time)
{
    const int32_t ranks = plan_n_ranks(m->plan);
    const bool leaves = m->ranks_per_node > 0 && ranks > m->ranks_per_node;
    const struct cost_link *link = leaves ? &m->rates->stage : &m->rates->exchange;
    const double bytes = n_rows(rows) * m->spec->n_hidden * (double)sizeof(float);
    add_op(time, COST_EDGES, cost_link_exchange_s(link, 2, bytes));
    time->collective_bytes += bytes;
}

static void stage_time(const struct cost_model *m, const struct cost_rows *rows, int32_t stage,
                       struct cost_time *time_out)
{
    const plan_interval_t layers = plan_stage_layers(m->plan, stage);
    struct cost_time time = {.total_s = 0};
    if (stage == 0) {
        first_end(m, rows, &time);
    }
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        struct cost_time one;
        cost_of_layer(m, rows, layer, &one);
        add_time(&time, &one, 1);
    }
    if (stage == m->plan->pp - 1) {
        last_end(m, rows, &time);
    } else {
        hand_over(m, rows, &time);
    }
    add_op(&time, COST_STEP, m->rates->efficiency.step_s);
    *time_out = time;
}

/* One step through all stages, and the slowest of them. */
static void all_stages(const struct cost_model *m, const struct cost_rows *rows,
                       struct cost_time *through_out, struct cost_time *slowest_out)
{
    struct cost_time through = {.total_s = 0};
    struct cost_time slowest = {.total_s = -1};
    for (int32_t stage = 0; stage < m->plan->pp; stage++) {
        struct cost_time time;
        stage_time(m, rows, stage, &time);
        add_time(&through, &time, 1);
        keep_slower(&slowest, &time);
    }
    *through_out = through;
    *slowest_out = slowest;
}

void cost_of_step(const struct cost_model *model, const struct cost_rows *rows,
                  struct cost_time *time_out)
{
    const double most = floor(rows->n_seqs) > 1 ? floor(rows->n_seqs) : 1;
    const double n_micro = fmin(model->plan->pp, most);
    const struct cost_rows micro = {.n_seqs = rows->n_seqs / n_micro,
                                    .n_new = rows->n_new,
                                    .n_past = rows->n_past,
                                    .n_logits = rows->n_logits / n_micro};
    struct cost_time through, slowest;
    all_stages(model, &micro, &through, &slowest);
    struct cost_time round = {.total_s = 0};
    add_time(&round, &slowest, n_micro);
    *time_out = round.total_s > through.total_s ? round : through;
}

// ---- workloads ----

/* A prompt alone, in chunks, which stages compute one behind the other. */
static double prompt_alone_s(const struct cost_model *m, const struct cost_workload *w)
{
    double sum = 0;
    double last_through = 0;
    for (int32_t done = 0; done < w->n_prompt;) {
        const int32_t n = w->n_prompt - done < w->chunk_rows ? w->n_prompt - done : w->chunk_rows;
        const struct cost_rows rows = {
            .n_seqs = 1, .n_new = n, .n_past = done, .n_logits = done + n == w->n_prompt ? 1 : 0};
        struct cost_time through, slowest;
        all_stages(m, &rows, &through, &slowest);
        sum += slowest.total_s;
        last_through = through.total_s - slowest.total_s;
        done += n;
    }
    return sum + last_through;
}

/* One prompt of many: steps are full of them, or of a part of one; stages are all at work. */
static void prompt_among_many(const struct cost_model *m, const struct cost_workload *w,
                              struct cost_time *time_out)
{
    const double together = fmin(w->concurrency, floor((double)w->chunk_rows / w->n_prompt));
    struct cost_time sum = {.total_s = 0};
    if (together >= 1) {
        const struct cost_rows rows = {
            .n_seqs = together, .n_new = w->n_prompt, .n_logits = together};
        struct cost_time through, slowest;
        all_stages(m, &rows, &through, &slowest);
        add_time(&sum, &slowest, 1 / together);
    }
    for (int32_t done = 0; together < 1 && done < w->n_prompt;) {
        const int32_t n = w->n_prompt - done < w->chunk_rows ? w->n_prompt - done : w->chunk_rows;
        const struct cost_rows rows = {
            .n_seqs = 1, .n_new = n, .n_past = done, .n_logits = done + n == w->n_prompt ? 1 : 0};
        struct cost_time through, slowest;
        all_stages(m, &rows, &through, &slowest);
        add_time(&sum, &slowest, 1);
        done += n;
    }
    *time_out = sum;
}

void cost_predict(const struct cost_model *model, const struct cost_workload *workload,
                  struct cost_prediction *prediction_out)
{
    const double b = workload->concurrency;
    const double g = workload->n_generate;
    const double p = workload->n_prompt;
    const struct cost_rows decode = {
        .n_seqs = b, .n_new = 1, .n_past = p + g / 2 - 1, .n_logits = b};
    struct cost_prediction out = {.first_token_s = prompt_alone_s(model, workload)};
    cost_of_step(model, &decode, &out.decode);
    prompt_among_many(model, workload, &out.prefill);
    out.decode_tokens_per_s = b / out.decode.total_s;
    out.prefill_tokens_per_s = p / out.prefill.total_s;
    out.inter_token_s = out.decode.total_s;
    out.tokens_per_s = b * g / (g * out.decode.total_s + b * out.prefill.total_s);
    *prediction_out = out;
}

const char *cost_binds(const struct cost_model *model, const struct cost_time *time)
{
    const double *s = time->seconds;
    const double matmuls = s[COST_PROJECT] + s[COST_FFN] + s[COST_HEAD];
    const bool int8 = model->quantization == QUANTIZATION_W8A8;
    const double peak = int8 ? model->rates->int8_flops_per_s : model->rates->flops_per_s;
    const bool computes = time->flops / peak > time->weight_bytes / model->rates->read_bytes_per_s;

    const struct {
        const char *name;
        double seconds;
    } causes[] = {
        {computes ? "compute" : "weights", matmuls},
        {"KV reads", s[COST_ATTENTION]},
        {"collectives", s[COST_ALL_REDUCE] + s[COST_EXCHANGE] + s[COST_EDGES]},
        {"launches", s[COST_LAUNCH] + s[COST_STEP] + s[COST_SAMPLE]},
        {"elementwise", s[COST_ELEMENTWISE]},
    };

    size_t most = 0;
    for (size_t i = 1; i < sizeof causes / sizeof causes[0]; i++) {
        most = causes[i].seconds > causes[most].seconds ? i : most;
    }
    return causes[most].name;
}

// ---- memory ----

void cost_fit(const struct cost_model *model, const struct plan_memory_request *request,
              double utilization, struct cost_memory *memory_out)
{
    const struct plan *plan = model->plan;
    struct cost_memory fit = {.usable_bytes = model->rates->memory_bytes * utilization,
                              .kv_tokens = HUGE_VAL};
    for (int32_t rank = 0; rank < plan_n_ranks(plan); rank++) {
        struct plan_memory memory;
        plan_memory_of(request, rank, &memory);
        const double fixed = (double)(memory.total - memory.kv);
        const double per_token = plan_kv_bytes_per_token(plan, rank, model->kv_dtype);
        const double left = fit.usable_bytes - fixed;
        fit.fixed_bytes = fmax(fit.fixed_bytes, fixed);
        if (left < 0) {
            fit.kv_tokens = 0;
        } else if (per_token > 0) {
            fit.kv_tokens = fmin(fit.kv_tokens, left / per_token);
        }
    }
    *memory_out = fit;
}

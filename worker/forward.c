/*
 * Call tree of a step:
 *   forward_run
 *     kv_pool_place                       where the rows go in the KV pools
 *     embed
 *     for each layer
 *       attention_block, or linear_block, or nothing
 *         project_queries, append_keys_and_values
 *         attend | attend_by_head | exchange_queries, attend, exchange_outputs
 *         project_out, add over ranks
 *       ffn_block, or linear_block, or nothing; add over ranks
 *     norm_last_rows, project_logits, gather_logits
 */
#include "worker/forward.h"

#include <math.h>
#include <string.h>

// ---- small steps ----

static status_t matmul(struct forward *f, const struct matrix *weight, const float *x,
                       int32_t n_rows, float *out, int64_t n_out)
{
    const struct matmul_args args = {
        .weight = weight,
        .x = x,
        .ld_x = f->parts.spec->n_hidden,
        .n_rows = n_rows,
        .out = out,
        .ld_out = n_out,
    };
    return f->parts.backend->matmul(f->parts.stream, &args);
}

/* The model's norm: LayerNorm where it has a bias, RMSNorm elsewhere. */
static status_t norm(struct forward *f, const float *x, const struct norm_weights *weights,
                     int32_t n_rows, float *out)
{
    const struct model_spec *spec = f->parts.spec;
    if (spec->norm == SPEC_NORM_LAYER) {
        const struct layernorm_args args = {
            .x = x,
            .weight = weights->weight,
            .bias = weights->bias,
            .eps = (float)spec->norm_eps,
            .n_rows = n_rows,
            .n_columns = spec->n_hidden,
            .out = out,
        };
        return f->parts.backend->layernorm(f->parts.stream, &args);
    }
    const struct rmsnorm_args args = {
        .x = x,
        .weight = weights->weight,
        .eps = (float)spec->norm_eps,
        .n_rows = n_rows,
        .n_columns = spec->n_hidden,
        .out = out,
    };
    return f->parts.backend->rmsnorm(f->parts.stream, &args);
}

static status_t rope(struct forward *f, float *x, int32_t n_rows, int32_t n_heads,
                     const int32_t *positions)
{
    const struct model_spec *spec = f->parts.spec;
    const struct rope_args args = {
        .x = x,
        .ld = (int64_t)n_heads * spec->head_dim,
        .n_rows = n_rows,
        .n_heads = n_heads,
        .head_dim = spec->head_dim,
        .rotary_dim = spec->rotary_dim,
        .positions = positions,
        .cos = f->rope.cos,
        .sin = f->rope.sin,
        .max_positions = f->rope.max_positions,
    };
    return f->parts.backend->rope(f->parts.stream, &args);
}

/* Sum over ranks, in place; alone there is nothing to do. */
static status_t sum_over_ranks(struct forward *f, float *x, int32_t n_rows)
{
    struct comm *comm = f->parts.comm;
    if (comm->size == 1) {
        return status_ok();
    }
    TRY(f->parts.backend->stream_sync(f->parts.stream));
    return comm->ops->all_reduce(comm, x, (int64_t)n_rows * f->parts.spec->n_hidden);
}

/* x += the sum over ranks of f->partial. */
static status_t add_partial(struct forward *f, int32_t n_rows)
{
    TRY(sum_over_ranks(f, f->partial, n_rows));
    const struct add_args args = {
        .x = f->x,
        .y = f->partial,
        .n = (int64_t)n_rows * f->parts.spec->n_hidden,
    };
    return f->parts.backend->add(f->parts.stream, &args);
}

/*
 * One matrix in the place of attention or feed-forward. Each rank computes its own columns of the result and leaves
 * the others zero, so that the sum over ranks is the same to the bit for any number of them.
 */
static status_t linear_block(struct forward *f, const struct step_plan *step,
                             const struct norm_weights *norm_weights, const struct matrix *matrix,
                             plan_interval_t rows)
{
    const int64_t n_hidden = f->parts.spec->n_hidden;
    TRY(norm(f, f->x, norm_weights, step->n_rows, f->normed));
    if (rows.end - rows.begin < n_hidden) {
        memset(f->partial, 0, (size_t)step->n_rows * (size_t)n_hidden * sizeof *f->partial);
    }
    if (matrix != NULL) {
        const struct matmul_args args = {
            .weight = matrix,
            .x = f->normed,
            .ld_x = n_hidden,
            .n_rows = step->n_rows,
            .out = f->partial + rows.begin,
            .ld_out = n_hidden,
        };
        TRY(f->parts.backend->matmul(f->parts.stream, &args));
    }
    return add_partial(f, step->n_rows);
}

static int32_t n_query_heads(const struct forward *f, int32_t layer)
{
    const plan_interval_t q = plan_q_heads(f->parts.plan, layer, f->parts.comm->rank);
    return q.end - q.begin;
}

// ---- embedding ----

static status_t embed(struct forward *f, const struct step_plan *step)
{
    const struct weights *w = f->parts.weights;
    const plan_interval_t rows = plan_vocab_rows(f->parts.plan, f->parts.comm->rank);
    const struct embedding_args args = {
        .table = w->embedding,
        .dtype = w->embedding_dtype,
        .row_begin = rows.begin,
        .row_end = rows.end,
        .n_columns = f->parts.spec->n_hidden,
        .ids = step->tokens,
        .n_rows = step->n_rows,
        .out = f->x,
    };
    TRY(f->parts.backend->embedding(f->parts.stream, &args));
    return sum_over_ranks(f, f->x, step->n_rows);
}

// ---- attention ----

static status_t project_queries(struct forward *f, const struct step_plan *step, int32_t layer)
{
    const int32_t n_heads = n_query_heads(f, layer);
    const int64_t width = (int64_t)n_heads * f->parts.spec->head_dim;
    TRY(matmul(f, f->parts.weights->layers[layer].q, f->normed, step->n_rows, f->q, width));
    return rope(f, f->q, step->n_rows, n_heads, step->positions);
}

/* k and v of a run are in f->k and f->v: into the planes. A split class keeps head after head. */
static status_t append_run(struct forward *f, int32_t layer, int32_t run_index, int32_t n_rows)
{
    const struct kv_pool *pool = f->parts.pool;
    const struct kv_class *kv_class = &pool->classes[f->parts.plan->layers[layer].class_index];
    const plan_run_t run = kv_class->runs[run_index];
    const int32_t head_dim = f->parts.spec->head_dim;
    const int32_t n_heads = run.head_end - run.head_begin;
    const int32_t n_calls = kv_class->split ? n_heads : 1;
    const size_t part_bytes = kv_class->split ? kv_pool_part_bytes(pool, kv_class) : 0;
    for (int32_t i = 0; i < n_calls; i++) {
        const struct kv_append_args args = {
            .k = f->k + (int64_t)i * head_dim,
            .v = f->v + (int64_t)i * head_dim,
            .ld = (int64_t)n_heads * head_dim,
            .n_rows = n_rows,
            .n_heads = n_heads / n_calls,
            .head_dim = head_dim,
            .block_tokens = PLAN_BLOCK_TOKENS,
            .units = kv_class->units[run_index],
            .offsets = pool->offsets + pool->lane_rows[run.lane_begin],
            .k_plane = (char *)pool->layers[layer].k + (size_t)i * part_bytes,
            .v_plane = (char *)pool->layers[layer].v + (size_t)i * part_bytes,
            .kv_dtype = pool->kv_dtype,
        };
        TRY(f->parts.backend->kv_append(f->parts.stream, &args));
    }
    return status_ok();
}

/* The KV heads held here, computed for the rows of the lanes they are held for and for no others. */
static status_t append_keys_and_values(struct forward *f, const struct step_plan *step,
                                       int32_t layer)
{
    const struct kv_pool *pool = f->parts.pool;
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const struct kv_class *kv_class = &pool->classes[f->parts.plan->layers[layer].class_index];
    for (int32_t i = 0; i < kv_class->n_runs; i++) {
        const plan_run_t run = kv_class->runs[i];
        const int32_t first_row = pool->lane_rows[run.lane_begin];
        const int32_t n_rows = pool->lane_rows[run.lane_end] - first_row;
        if (n_rows == 0) {
            continue;
        }
        const int32_t n_heads = run.head_end - run.head_begin;
        const int64_t width = (int64_t)n_heads * f->parts.spec->head_dim;
        const float *x = f->normed + (int64_t)first_row * f->parts.spec->n_hidden;
        TRY(matmul(f, w->k[i], x, n_rows, f->k, width));
        TRY(matmul(f, w->v[i], x, n_rows, f->v, width));
        TRY(rope(f, f->k, n_rows, n_heads, step->positions + first_row));
        TRY(append_run(f, layer, i, n_rows));
    }
    return status_ok();
}

/* One call of the attention op. */
struct attention_call {
    const float *q;
    float *out;
    int32_t group;     /* query heads of each KV head in q */
    int32_t n_heads;   /* KV heads in q; 0: all that are held for the sequence's lane */
    size_t part_bytes; /* from the beginning of the planes */
};

static void list_sequences(struct forward *f, const struct step_plan *step,
                           const struct kv_class *kv_class, const struct attention_call *call)
{
    int64_t q_offset = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct step_seq *seq = &step->seqs[i];
        const struct kv_lane *lane = &kv_class->lanes[seq->lane];
        const int32_t n_heads = call->n_heads > 0 ? call->n_heads : lane->n_heads;
        f->seqs[i] = (struct attention_seq){
            .n_queries = seq->n_tokens,
            .kv_tokens = seq->n_computed + seq->n_tokens,
            .blocks = step->blocks + seq->first_block,
            .unit_base = lane->unit_base,
            .n_kv_heads = n_heads,
            .q_offset = q_offset,
        };
        q_offset += (int64_t)seq->n_tokens * n_heads * call->group * f->parts.spec->head_dim;
    }
}

static status_t attend(struct forward *f, const struct step_plan *step, int32_t layer,
                       const struct attention_call *call)
{
    const struct model_spec *spec = f->parts.spec;
    const struct kv_pool *pool = f->parts.pool;
    const struct kv_class *kv_class = &pool->classes[f->parts.plan->layers[layer].class_index];
    list_sequences(f, step, kv_class, call);
    const struct attention_args args = {
        .q = call->q,
        .out = call->out,
        .k_plane = (const char *)pool->layers[layer].k + call->part_bytes,
        .v_plane = (const char *)pool->layers[layer].v + call->part_bytes,
        .kv_dtype = pool->kv_dtype,
        .head_dim = spec->head_dim,
        .group = call->group,
        .block_tokens = PLAN_BLOCK_TOKENS,
        .window = spec->sliding_window,
        .scale = (float)(1.0 / sqrt(spec->head_dim)),
        .seqs = f->seqs,
        .n_seqs = step->n_seqs,
    };
    return f->parts.backend->attention(f->parts.stream, &args);
}

/* n_rows rows of `width` floats from one row stride to another. */
static void copy_columns(float *to, int64_t ld_to, const float *from, int64_t ld_from,
                         int32_t n_rows, int64_t width)
{
    for (int32_t i = 0; i < n_rows; i++) {
        memcpy(to + i * ld_to, from + i * ld_from, (size_t)width * sizeof *to);
    }
}

/*
 * A split class: the rank's query heads of each KV head form a group of their own size, and a call of their own.
 *
 *     KV heads           |   0   |   1   |   2   |      group 4
 *     query heads here     . . # # # # # # # . . .      groups of 2, 4 and 1
 */
static status_t attend_by_head(struct forward *f, const struct step_plan *step, int32_t layer)
{
    const struct kv_pool *pool = f->parts.pool;
    const struct kv_class *kv_class = &pool->classes[f->parts.plan->layers[layer].class_index];
    const plan_interval_t q = plan_q_heads(f->parts.plan, layer, f->parts.comm->rank);
    const struct kv_lane *lane = &kv_class->lanes[0]; // replicate: all lanes hold the same heads
    const int64_t head_dim = f->parts.spec->head_dim;
    const int64_t ld = (q.end - q.begin) * head_dim;
    float *outputs = f->by_head + step->n_rows * ld;
    for (int32_t i = 0; i < lane->n_heads; i++) {
        const int32_t first = (lane->first_head + i) * kv_class->group;
        const int32_t begin = first > q.begin ? first : q.begin;
        const int32_t end = first + kv_class->group < q.end ? first + kv_class->group : q.end;
        const int64_t width = (end - begin) * head_dim;
        const int64_t column = (begin - q.begin) * head_dim;
        const struct attention_call call = {
            .q = f->by_head + step->n_rows * column,
            .out = outputs + step->n_rows * column,
            .group = end - begin,
            .n_heads = 1,
            .part_bytes = (size_t)i * kv_pool_part_bytes(pool, kv_class),
        };
        copy_columns(f->by_head + step->n_rows * column, width, f->q + column, ld, step->n_rows,
                     width);
        TRY(attend(f, step, layer, &call));
        copy_columns(f->attended + column, ld, call.out, width, step->n_rows, width);
    }
    return status_ok();
}

/* f->q -> f->attended. */
static status_t attend_everywhere(struct forward *f, const struct step_plan *step, int32_t layer)
{
    const struct plan *plan = f->parts.plan;
    const struct kv_class *kv_class = &f->parts.pool->classes[plan->layers[layer].class_index];
    if (kv_class->split) {
        return attend_by_head(f, step, layer);
    }
    struct attention_call call = {.q = f->q, .out = f->attended, .group = kv_class->group};
    if (plan_attention_is_local(plan, layer)) {
        return attend(f, step, layer, &call);
    }
    call.q = f->exchange.q;
    call.out = f->exchange.out;
    const int32_t *lane_rows = f->parts.pool->lane_rows;
    const struct exchange_step queries = {layer, lane_rows, f->q};
    const struct exchange_step outputs = {layer, lane_rows, f->attended};
    TRY(f->parts.backend->stream_sync(f->parts.stream));
    TRY(exchange_queries(&f->exchange, &queries));
    TRY(attend(f, step, layer, &call));
    TRY(f->parts.backend->stream_sync(f->parts.stream));
    return exchange_outputs(&f->exchange, &outputs);
}

static status_t project_out(struct forward *f, const struct step_plan *step, int32_t layer)
{
    const struct matmul_args args = {
        .weight = f->parts.weights->layers[layer].o,
        .x = f->attended,
        .ld_x = (int64_t)n_query_heads(f, layer) * f->parts.spec->head_dim,
        .n_rows = step->n_rows,
        .out = f->partial,
        .ld_out = f->parts.spec->n_hidden,
    };
    return f->parts.backend->matmul(f->parts.stream, &args);
}

static status_t attention_block(struct forward *f, const struct step_plan *step, int32_t layer)
{
    TRY(norm(f, f->x, &f->parts.weights->layers[layer].attention_norm, step->n_rows, f->normed));
    TRY(project_queries(f, step, layer));
    TRY(append_keys_and_values(f, step, layer));
    TRY(attend_everywhere(f, step, layer));
    TRY(project_out(f, step, layer));
    return add_partial(f, step->n_rows);
}

// ---- feed forward ----

/* f->partial = down( silu(gate) * up ) of this rank's columns. */
static status_t ffn_columns(struct forward *f, int32_t n_rows, int32_t layer)
{
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const plan_interval_t columns = plan_ffn_columns(f->parts.plan, layer, f->parts.comm->rank);
    const int32_t n = columns.end - columns.begin;
    if (n == 0) {
        memset(f->partial, 0, (size_t)n_rows * (size_t)f->parts.spec->n_hidden * sizeof(float));
        return status_ok();
    }
    TRY(matmul(f, w->gate_up, f->normed, n_rows, f->gate_up, 2 * (int64_t)n));
    const struct swiglu_args swiglu = {
        .gate = f->gate_up,
        .up = f->gate_up + n,
        .ld_in = 2 * (int64_t)n,
        .n_rows = n_rows,
        .n_columns = n,
        .out = f->gate_up,
        .ld_out = 2 * (int64_t)n,
    };
    TRY(f->parts.backend->swiglu(f->parts.stream, &swiglu));
    const struct matmul_args down = {
        .weight = w->down,
        .x = f->gate_up,
        .ld_x = 2 * (int64_t)n,
        .n_rows = n_rows,
        .out = f->partial,
        .ld_out = f->parts.spec->n_hidden,
    };
    return f->parts.backend->matmul(f->parts.stream, &down);
}

static status_t ffn_block(struct forward *f, const struct step_plan *step, int32_t layer)
{
    TRY(norm(f, f->x, &f->parts.weights->layers[layer].ffn_norm, step->n_rows, f->normed));
    TRY(ffn_columns(f, step->n_rows, layer));
    return add_partial(f, step->n_rows);
}

// ---- logits ----

/* The last rows of the sequences that want logits, normed, one after the other in f->normed. */
static status_t norm_last_rows(struct forward *f, const struct step_plan *step)
{
    const int64_t n_hidden = f->parts.spec->n_hidden;
    const struct norm_weights *weights = &f->parts.weights->final_norm;
    int32_t done = 0; // rows normed
    int32_t row = 0;  // first of a stretch of neighbouring rows
    int32_t n = 0;    // rows of that stretch
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct step_seq *seq = &step->seqs[i];
        if (seq->wants_logits == 0) {
            continue;
        }
        const int32_t last = seq->first_row + seq->n_tokens - 1;
        if (n > 0 && last != row + n) {
            TRY(norm(f, f->x + row * n_hidden, weights, n, f->normed + done * n_hidden));
            done += n;
            n = 0;
        }
        row = n == 0 ? last : row;
        n++;
    }
    return norm(f, f->x + row * n_hidden, weights, n, f->normed + done * n_hidden);
}

/* Rank 0 gets every rank's [n_logits, V] and lays them side by side. */
static status_t gather_logits(struct forward *f, int32_t n_logits)
{
    struct comm *comm = f->parts.comm;
    const int64_t n_vocab = f->parts.spec->n_vocab;
    int64_t total = 0;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        const plan_interval_t rows = plan_vocab_rows(f->parts.plan, rank);
        f->counts[rank] = (int64_t)n_logits * (rows.end - rows.begin);
        f->displs[rank] = total;
        total += f->counts[rank];
    }
    TRY(f->parts.backend->stream_sync(f->parts.stream));
    TRY(comm->ops->gather_v(comm, f->slice, f->counts[comm->rank], f->gathered, f->counts,
                            f->displs, 0));
    for (int32_t rank = 0; comm->rank == 0 && rank < comm->size; rank++) {
        const plan_interval_t rows = plan_vocab_rows(f->parts.plan, rank);
        const int64_t width = rows.end - rows.begin;
        copy_columns(f->logits + rows.begin, n_vocab, f->gathered + f->displs[rank], width,
                     n_logits, width);
    }
    return status_ok();
}

static status_t project_logits(struct forward *f, const struct step_plan *step)
{
    if (step->n_logits == 0) {
        return status_ok();
    }
    TRY(norm_last_rows(f, step));
    const plan_interval_t rows = plan_vocab_rows(f->parts.plan, f->parts.comm->rank);
    const int32_t n = rows.end - rows.begin;
    const bool alone = f->parts.comm->size == 1;
    if (n > 0) {
        TRY(matmul(f, f->parts.weights->head, f->normed, step->n_logits,
                   alone ? f->logits : f->slice, n));
    }
    return alone ? status_ok() : gather_logits(f, step->n_logits);
}

// ---- a step ----

static status_t run_layer(struct forward *f, const struct step_plan *step, int32_t layer)
{
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const struct spec_layer *kind = &f->parts.spec->layers[layer];
    const int32_t rank = f->parts.comm->rank;
    if (kind->attention == SPEC_BLOCK_FULL) {
        TRY(attention_block(f, step, layer));
    } else if (kind->attention == SPEC_BLOCK_LINEAR) {
        const plan_interval_t rows = plan_attention_rows(f->parts.plan, layer, rank);
        TRY(linear_block(f, step, &w->attention_norm, w->attention_linear, rows));
    }
    if (kind->ffn == SPEC_BLOCK_FULL) {
        TRY(ffn_block(f, step, layer));
    } else if (kind->ffn == SPEC_BLOCK_LINEAR) {
        const plan_interval_t rows = plan_ffn_rows(f->parts.plan, layer, rank);
        TRY(linear_block(f, step, &w->ffn_norm, w->ffn_linear, rows));
    }
    return status_ok();
}

status_t forward_run(struct forward *f, const struct step_plan *step, const float **logits_out)
{
    kv_pool_place(f->parts.pool, step);
    if (step->n_rows > 0) {
        TRY(embed(f, step));
    }
    for (int32_t layer = 0; step->n_rows > 0 && layer < f->parts.spec->n_layers; layer++) {
        TRY(run_layer(f, step, layer));
    }
    TRY(project_logits(f, step));
    TRY(f->parts.backend->stream_sync(f->parts.stream));
    *logits_out = f->parts.comm->rank == 0 ? f->logits : NULL;
    return status_ok();
}

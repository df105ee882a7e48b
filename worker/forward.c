/*
 * Call tree of a step:
 *   forward_run
 *     kv_pool_place, send_step, plan_attention    what the device must know of the step
 *     compute, or run_recorded
 *     embed, or take x from the stage before
 *     for each layer of the stage
 *       attention_block, or linear_block, or nothing
 *         project_queries, append_keys_and_values
 *         attend | attend_by_head | exchange_queries, attend or attend_by_run, exchange_outputs
 *         project_out, sum over ranks
 *       ffn_block, or linear_block, or nothing; sum over ranks
 *     project_logits, gather_logits, draw, or hand x over to the next stage
 */
#include "worker/forward.h"

#include <string.h>

/* How much there is to compute: of a step, or of a recorded one that is a little larger. */
struct step_rows {
    int32_t n_rows, n_logits;
    int32_t n_sampled; /* where ids are drawn: n_logits, or 0 where nothing is */
};

// ---- small steps ----

/* Element `at` of an activation. */
static void *element(const struct forward *f, void *activation, int64_t at)
{
    return (char *)activation + at * (int64_t)dtype_bytes(f->parts.backend->activation);
}

/* From normed rows to rows of n_out elements, ld_out apart. */
static status_t project(struct forward *f, const struct matrix *weight, const void *x,
                        int32_t n_rows, void *out, int64_t ld_out)
{
    const struct matmul_args args = {
        .weight = weight,
        .scratch = f->scratch,
        .x = x,
        .ld_x = f->parts.spec->n_hidden,
        .n_rows = n_rows,
        .out = out,
        .ld_out = ld_out,
        .out_dtype = f->parts.backend->activation,
    };
    return f->parts.backend->matmul(f->parts.stream, &args);
}

/* From rows of n_in elements, ld_x apart, to rows of partial. */
static status_t project_back(struct forward *f, const struct matrix *weight, const void *x,
                             int64_t ld_x, int32_t n_rows)
{
    const struct matmul_args args = {
        .weight = weight,
        .scratch = f->scratch,
        .x = x,
        .ld_x = ld_x,
        .n_rows = n_rows,
        .out = f->partial,
        .ld_out = f->parts.spec->n_hidden,
        .out_dtype = f->parts.backend->activation,
    };
    return f->parts.backend->matmul(f->parts.stream, &args);
}

/* Takes in what is pending, then norms into f->normed: every row, or those of a list. */
static status_t norm(struct forward *f, const struct norm_weights *weights, const int32_t *rows,
                     int32_t n_rows)
{
    const struct model_spec *spec = f->parts.spec;
    const struct add_norm_args args = {
        .x = f->x,
        .delta = f->pending == FORWARD_PENDING_SUM ? f->partial : NULL,
        .rows = rows,
        .n_rows = n_rows,
        .n_columns = spec->n_hidden,
        .kind = spec->norm == SPEC_NORM_LAYER ? NORM_LAYER : NORM_RMS,
        .weight = weights->weight,
        .bias = weights->bias,
        .eps = (float)spec->norm_eps,
        .out = f->normed,
    };
    struct comm *comm = f->parts.comm;
    const int32_t pending = f->pending;
    const void *const partial = f->partial;
    f->pending = FORWARD_PENDING_NOTHING;
    if (pending != FORWARD_PENDING_PARTS) {
        return f->parts.backend->add_norm(f->parts.stream, &args);
    }
    f->partial =
        f->partials[partial == f->partials[1] ? 2 : 1]; // the others may still read this one
    return comm->ops->all_reduce_add_norm(comm, partial, &args);
}

/* Where sums of a step of so many rows are put together. Ranks that are late may still read what the step before left in either
 * buffer of the comm; the sum of the embedding, which comes before the first use, waits for them. Later stages have none: with
 * several, sums are made apart. */
static void choose_partial(struct forward *f, int32_t n_rows)
{
    const struct comm *comm = f->parts.comm;
    const int64_t n_bytes = (int64_t)n_rows * f->parts.spec->n_hidden *
                            (int64_t)dtype_bytes(f->parts.backend->activation);
    const bool fused = f->parts.stages == NULL && n_bytes <= comm->fused_bytes && n_bytes > 0;
    f->partial = f->partials[fused ? 1 : 0];
}

/* What the ranks left in partial becomes its sum, to be added by the next norm. */
static status_t sum_partial(struct forward *f, int32_t n_rows, int32_t layer, enum comm_part part)
{
    struct comm *comm = f->parts.comm;
    f->pending = FORWARD_PENDING_SUM;
    if (comm->size == 1) {
        return status_ok();
    }
    comm_label(comm, layer, part);
    if (f->partial != f->partials[0]) {
        f->pending = FORWARD_PENDING_PARTS;
        return status_ok();
    }
    return comm->ops->all_reduce(comm, f->partial, (int64_t)n_rows * f->parts.spec->n_hidden,
                                 f->parts.backend->activation);
}

static status_t clear_partial(struct forward *f, int32_t n_rows)
{
    const size_t row_bytes =
        (size_t)f->parts.spec->n_hidden * dtype_bytes(f->parts.backend->activation);
    return f->parts.backend->zero(f->parts.stream, f->partial, (size_t)n_rows * row_bytes);
}

static int32_t n_query_heads(const struct forward *f, int32_t layer)
{
    const plan_interval_t q = plan_q_heads(f->parts.plan, layer, f->parts.comm->rank);
    return q.end - q.begin;
}

static const struct kv_class *class_of(const struct forward *f, int32_t layer)
{
    return &f->parts.pool->classes[f->parts.plan->layers[layer].class_index];
}

// ---- before the layers ----

/* n of them, then the first one again until there are n_padded. */
static status_t send_array(struct forward *f, struct device_array *array, const int32_t *from,
                           int32_t n, int32_t n_padded)
{
    int32_t *to = device_array_host(array);
    for (int32_t i = 0; i < n_padded; i++) {
        to[i] = from[i < n ? i : 0];
    }
    return device_array_send(array, f->parts.backend, f->parts.stream,
                             (size_t)n_padded * sizeof *to);
}

static status_t send_step(struct forward *f, const struct step_plan *step,
                          const struct step_rows *padded)
{
    int32_t *rows = device_array_host(&f->logit_rows);
    int32_t n = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct step_seq *seq = &step->seqs[i];
        const int32_t end = seq->first_row + seq->n_tokens;
        for (int32_t row = end - seq->n_logits; row < end; row++) {
            rows[n++] = row;
        }
    }
    while (n < padded->n_logits) {
        rows[n] = n; // a row that only fills up
        n++;
    }
    TRY(send_array(f, &f->tokens, step->tokens, step->n_rows, padded->n_rows));
    TRY(send_array(f, &f->positions, step->positions, step->n_rows, padded->n_rows));
    TRY(send_array(f, &f->blocks, step->blocks, step->n_blocks, step->n_blocks));
    return device_array_send(&f->logit_rows, f->parts.backend, f->parts.stream,
                             (size_t)n * sizeof *rows);
}

static void list_sequences(struct forward *f, const struct step_plan *step,
                           const struct forward_attention *attention)
{
    const struct kv_class *kv_class = &f->parts.pool->classes[attention->class_index];
    int64_t offset = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct step_seq *seq = &step->seqs[i];
        const struct kv_lane *lane = &kv_class->lanes[seq->lane];
        const int32_t n_heads = attention->head < 0 ? lane->n_heads : 1;
        const int64_t width = (int64_t)n_heads * attention->group * f->parts.spec->head_dim;
        const int64_t ld = attention->exchanged ? width : f->ld;
        f->seqs[i] = (struct attention_seq){
            .n_queries = seq->n_tokens,
            .kv_tokens = seq->n_computed + seq->n_tokens,
            .first_block = seq->first_block,
            .n_kv_heads = n_heads,
            .unit_base = lane->unit_base,
            .q_offset = offset,
            .ld = ld,
        };
        offset += seq->n_tokens * ld;
    }
}

/* A run of a class split by token: in the exchange's rows of all heads held, those of the run. */
static void list_run(struct forward *f, const struct step_plan *step,
                     const struct forward_attention *attention)
{
    const struct kv_class *kv_class = &f->parts.pool->classes[attention->class_index];
    const struct token_run *run = &kv_class->token_runs[attention->head];
    const int32_t first = kv_class->runs[0].head_begin;
    const int32_t end = kv_class->runs[kv_class->n_runs - 1].head_end;
    const int64_t n_heads = (int64_t)(end - first) * kv_class->group;
    const int64_t before = (int64_t)(run->run.head_begin - first) * kv_class->group;
    const int64_t head_dim = f->parts.spec->head_dim;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const int64_t head = step->seqs[i].first_row * n_heads + before;
        struct attention_seq *seq = &f->seqs[i];
        token_run_attend(run, step, i, seq);
        seq->q_offset = head * head_dim;
        seq->ld = n_heads * head_dim;
        seq->out_offset = head * (head_dim + ATTENTION_STATS);
        seq->ld_out = n_heads * (head_dim + ATTENTION_STATS);
    }
}

static status_t plan_attention(struct forward *f, const struct step_plan *step)
{
    for (int32_t i = 0; i < f->n_attentions; i++) {
        const struct forward_attention *attention = &f->attentions[i];
        if (f->parts.pool->classes[attention->class_index].by_token) {
            list_run(f, step, attention);
        } else {
            list_sequences(f, step, attention);
        }
        TRY(f->parts.backend->attention_plan_set(f->parts.stream, f->attentions[i].plan, f->seqs,
                                                 step->n_seqs));
    }
    return status_ok();
}

static status_t embed(struct forward *f, const struct step_rows *step)
{
    const struct weights *w = f->parts.weights;
    struct comm *comm = f->parts.comm;
    const plan_interval_t rows = plan_vocab_rows(f->parts.plan, comm->rank);
    const struct embedding_args args = {
        .table = w->embedding,
        .dtype = w->embedding_dtype,
        .row_begin = rows.begin,
        .row_end = rows.end,
        .n_columns = f->parts.spec->n_hidden,
        .ids = f->tokens.device,
        .n_rows = step->n_rows,
        .out = f->x,
        .drawn = f->drawn,
        .n_drawn = f->limits.max_seqs,
    };
    f->pending = FORWARD_PENDING_NOTHING;
    choose_partial(f, step->n_rows);
    TRY(f->parts.backend->embedding(f->parts.stream, &args));
    if (comm->size == 1) {
        return status_ok();
    }
    comm_label(comm, -1, COMM_PART_EMBEDDING);
    return comm->ops->all_reduce(comm, f->x, (int64_t)step->n_rows * f->parts.spec->n_hidden,
                                 DTYPE_F32);
}

// ---- one matrix in the place of a block ----

/*
 * Each rank computes its own columns of the result and leaves the others zero, so that the sum over ranks is the same to
 * the bit for any number of them.
 */
static status_t linear_block(struct forward *f, const struct step_rows *step, int32_t layer,
                             enum comm_part part)
{
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const bool attends = part == COMM_PART_ATTENTION;
    const struct norm_weights *norm_weights = attends ? &w->attention_norm : &w->ffn_norm;
    const struct matrix *matrix = attends ? w->attention_linear : w->ffn_linear;
    const int32_t rank = f->parts.comm->rank;
    const plan_interval_t rows = attends ? plan_attention_rows(f->parts.plan, layer, rank)
                                         : plan_ffn_rows(f->parts.plan, layer, rank);
    const int64_t n_hidden = f->parts.spec->n_hidden;
    TRY(norm(f, norm_weights, NULL, step->n_rows));
    if (rows.end - rows.begin < n_hidden) {
        TRY(clear_partial(f, step->n_rows));
    }
    if (matrix != NULL) {
        void *const out = element(f, f->partial, rows.begin);
        TRY(project(f, matrix, f->normed, step->n_rows, out, n_hidden));
    }
    return sum_partial(f, step->n_rows, layer, part);
}

// ---- attention ----

/* Of n_rows rows from first_row on; which heads is still to be said. */
static struct rope_append_args rope_args(const struct forward *f, int32_t layer, int32_t first_row,
                                         int32_t n_rows)
{
    const struct model_spec *spec = f->parts.spec;
    const struct kv_pool *pool = f->parts.pool;
    const struct kv_planes *planes = &pool->layers[layer];
    return (struct rope_append_args){
        .n_rows = n_rows,
        .head_dim = spec->head_dim,
        .rotary_dim = spec->rotary_dim,
        .block_tokens = PLAN_BLOCK_TOKENS,
        .positions = (const int32_t *)f->positions.device + first_row,
        .cos = f->cos,
        .sin = f->sin,
        .max_positions = f->limits.max_model_len,
        .head_units = kv_pool_head_units(class_of(f, layer)),
        .offsets = (const int32_t *)pool->offsets.device + first_row,
        .k_plane = planes->k,
        .v_plane = planes->v,
        .k_scales = planes->k_scales,
        .v_scales = planes->v_scales,
        .kv_dtype = planes->dtype,
    };
}

/* Where the keys of n_heads KV heads begin, and their values after them. */
static void put_kv(const struct forward *f, struct rope_append_args *args, void *k, int32_t n_heads,
                   int64_t ld)
{
    args->k = k;
    args->v = element(f, k, (int64_t)n_heads * f->parts.spec->head_dim);
    args->ld_kv = ld;
    args->n_kv_heads = n_heads;
}

static status_t project_queries(struct forward *f, const struct step_rows *step, int32_t layer)
{
    const struct kv_class *kv_class = class_of(f, layer);
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const int32_t n_heads = n_query_heads(f, layer);
    TRY(project(f, w->qkv, f->normed, step->n_rows, f->qkv, f->ld));
    struct rope_append_args args = rope_args(f, layer, 0, step->n_rows);
    args.q = f->qkv;
    args.ld_q = f->ld;
    args.n_q_heads = n_heads;
    if (kv_class->fused && !kv_class->by_token) {
        void *const k = element(f, f->qkv, (int64_t)n_heads * f->parts.spec->head_dim);
        const plan_run_t run = kv_class->runs[0];
        put_kv(f, &args, k, run.head_end - run.head_begin, f->ld);
        args.units = kv_class->units[0].device;
    }
    return f->parts.backend->rope_append(f->parts.stream, &args);
}

/* The KV heads held here, computed for the rows of the lanes they are held for and for no others. */
static status_t append_keys_and_values(struct forward *f, int32_t layer)
{
    const struct kv_pool *pool = f->parts.pool;
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const struct kv_class *kv_class = class_of(f, layer);
    for (int32_t i = 0; i < kv_class->n_runs; i++) {
        const plan_run_t run = kv_class->runs[i];
        const int32_t first_row = pool->lane_rows[run.lane_begin];
        const int32_t n_rows = pool->lane_rows[run.lane_end] - first_row;
        const int32_t n_heads = run.head_end - run.head_begin;
        const int64_t width = 2 * (int64_t)n_heads * f->parts.spec->head_dim;
        if (n_rows == 0) {
            continue;
        }
        const void *x = element(f, f->normed, (int64_t)first_row * f->parts.spec->n_hidden);
        TRY(project(f, w->kv[i], x, n_rows, f->kv, width));
        struct rope_append_args args = rope_args(f, layer, first_row, n_rows);
        put_kv(f, &args, f->kv, n_heads, width);
        args.units = kv_class->units[i].device;
        TRY(f->parts.backend->rope_append(f->parts.stream, &args));
    }
    return status_ok();
}

/* A class split by token: keys and values have been computed with the queries, for all rows; each run keeps those of its blocks. */
static status_t append_by_run(struct forward *f, const struct step_rows *step, int32_t layer)
{
    const struct kv_class *kv_class = class_of(f, layer);
    const int64_t head_dim = f->parts.spec->head_dim;
    const int32_t first = kv_class->runs[0].head_begin;
    const int32_t n_held = kv_class->runs[kv_class->n_runs - 1].head_end - first;
    for (int32_t i = 0; i < kv_class->n_runs; i++) {
        const plan_run_t run = kv_class->runs[i];
        const int64_t head = n_query_heads(f, layer) + run.head_begin - first;
        struct rope_append_args args = rope_args(f, layer, 0, step->n_rows);
        args.k = element(f, f->qkv, head * head_dim);
        args.v = element(f, f->qkv, (head + n_held) * head_dim);
        args.ld_kv = f->ld;
        args.n_kv_heads = run.head_end - run.head_begin;
        args.units = kv_class->token_runs[i].units.device;
        TRY(f->parts.backend->rope_append(f->parts.stream, &args));
    }
    return status_ok();
}

static status_t append_apart(struct forward *f, const struct step_rows *step, int32_t layer)
{
    const struct kv_class *kv_class = class_of(f, layer);
    if (kv_class->by_token) {
        return append_by_run(f, step, layer);
    }
    return kv_class->fused ? status_ok() : append_keys_and_values(f, layer);
}

/* Queries to outputs, both laid out as the attention's plan says. */
static status_t attend(struct forward *f, int32_t layer, const struct forward_attention *attention,
                       const void *q, void *out)
{
    const struct kv_planes planes =
        kv_pool_part(f->parts.pool, layer, attention->head > 0 ? attention->head : 0);
    const struct kv_class *kv_class = class_of(f, layer);
    const void *const blocks =
        kv_class->by_token ? kv_class->token_runs[attention->head].blocks.device : f->blocks.device;
    const struct attention_args args = {
        .q = q,
        .out = out,
        .k_plane = planes.k,
        .v_plane = planes.v,
        .k_scales = planes.k_scales,
        .v_scales = planes.v_scales,
        .blocks = blocks,
    };
    return f->parts.backend->attention(f->parts.stream, attention->plan, &args);
}

/*
 * A split class: the rank's query heads of each KV head form a group of their own size, and a call of their own.
 *
 *     KV heads           |   0   |   1   |   2   |      group 4
 *     query heads here     . . # # # # # # # . . .      groups of 2, 4 and 1
 */
static status_t attend_by_head(struct forward *f, int32_t layer)
{
    const plan_interval_t q = plan_q_heads(f->parts.plan, layer, f->parts.comm->rank);
    const int32_t n_held =
        class_of(f, layer)->lanes[0].n_heads; // replicate: the same for all lanes
    for (int32_t i = 0; i < n_held; i++) {
        const plan_interval_t heads = forward_query_heads(&f->parts, layer, i);
        const int64_t column = (int64_t)(heads.begin - q.begin) * f->parts.spec->head_dim;
        if (heads.end > heads.begin) {
            TRY(attend(f, layer, forward_find_attention(f, layer, i), element(f, f->qkv, column),
                       element(f, f->attended, column)));
        }
    }
    return status_ok();
}

/* A class split by token: every run with the blocks it has, to parts of outputs. */
static status_t attend_by_run(struct forward *f, int32_t layer)
{
    for (int32_t i = 0; i < class_of(f, layer)->n_runs; i++) {
        TRY(attend(f, layer, forward_find_attention(f, layer, i), f->exchange.q, f->exchange.out));
    }
    return status_ok();
}

/* f->qkv -> f->attended. */
static status_t attend_everywhere(struct forward *f, const struct step_rows *step, int32_t layer)
{
    const bool by_token = class_of(f, layer)->by_token;
    if (class_of(f, layer)->split) {
        return attend_by_head(f, layer);
    }
    const struct forward_attention *attention = forward_find_attention(f, layer, by_token ? 0 : -1);
    if (!attention->exchanged) {
        return attend(f, layer, attention, f->qkv, f->attended);
    }
    const int32_t all_rows[2] = {0, step->n_rows};
    const int32_t *lane_rows = by_token ? all_rows : f->parts.pool->lane_rows;
    const struct exchange_step queries = {layer, lane_rows, f->qkv};
    const struct exchange_step outputs = {layer, lane_rows, f->attended};
    comm_label(f->parts.comm, layer, COMM_PART_QUERIES);
    TRY(exchange_queries(&f->exchange, &queries));
    TRY(by_token ? attend_by_run(f, layer)
                 : attend(f, layer, attention, f->exchange.q, f->exchange.out));
    comm_label(f->parts.comm, layer, COMM_PART_OUTPUTS);
    return exchange_outputs(&f->exchange, &outputs);
}

static status_t attention_block(struct forward *f, const struct step_rows *step, int32_t layer)
{
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    TRY(norm(f, &w->attention_norm, NULL, step->n_rows));
    TRY(project_queries(f, step, layer));
    TRY(append_apart(f, step, layer));
    TRY(attend_everywhere(f, step, layer));
    TRY(project_back(f, w->o, f->attended, f->ld, step->n_rows));
    return sum_partial(f, step->n_rows, layer, COMM_PART_ATTENTION);
}

// ---- feed forward ----

/* f->partial = down( silu(gate) * up ) of this rank's columns. */
static status_t ffn_columns(struct forward *f, int32_t n_rows, int32_t layer)
{
    const struct layer_weights *w = &f->parts.weights->layers[layer];
    const plan_interval_t columns = plan_ffn_columns(f->parts.plan, layer, f->parts.comm->rank);
    const int32_t n = columns.end - columns.begin;
    if (n == 0) {
        return clear_partial(f, n_rows);
    }
    TRY(project(f, w->gate_up, f->normed, n_rows, f->gate_up, 2 * (int64_t)n));
    const struct swiglu_args swiglu = {
        .gate_up = f->gate_up,
        .ld_in = 2 * (int64_t)n,
        .n_rows = n_rows,
        .n_columns = n,
        .out = f->gate_up,
        .ld_out = 2 * (int64_t)n,
    };
    TRY(f->parts.backend->swiglu(f->parts.stream, &swiglu));
    return project_back(f, w->down, f->gate_up, 2 * (int64_t)n, n_rows);
}

static status_t ffn_block(struct forward *f, const struct step_rows *step, int32_t layer)
{
    TRY(norm(f, &f->parts.weights->layers[layer].ffn_norm, NULL, step->n_rows));
    TRY(ffn_columns(f, step->n_rows, layer));
    return sum_partial(f, step->n_rows, layer, COMM_PART_FFN);
}

static status_t run_layer(struct forward *f, const struct step_rows *step, int32_t layer)
{
    const struct spec_layer *kind = &f->parts.spec->layers[layer];
    if (kind->attention == SPEC_BLOCK_FULL) {
        TRY(attention_block(f, step, layer));
    } else if (kind->attention == SPEC_BLOCK_LINEAR) {
        TRY(linear_block(f, step, layer, COMM_PART_ATTENTION));
    }
    if (kind->ffn == SPEC_BLOCK_FULL) {
        TRY(ffn_block(f, step, layer));
    } else if (kind->ffn == SPEC_BLOCK_LINEAR) {
        TRY(linear_block(f, step, layer, COMM_PART_FFN));
    }
    return status_ok();
}

// ---- logits ----

/* Rank 0 gets every rank's [n_logits, V] and lays them side by side. */
static status_t gather_logits(struct forward *f, int32_t n_logits)
{
    struct comm *comm = f->parts.comm;
    const int64_t row_bytes = f->parts.spec->n_vocab * (int64_t)sizeof(float);
    int64_t total = 0;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        const plan_interval_t rows = plan_vocab_rows(f->parts.plan, rank);
        const int64_t width = (rows.end - rows.begin) * (int64_t)sizeof(float);
        f->counts[rank] = n_logits * width;
        f->displs[rank] = total;
        f->strips[rank] = (struct strip){
            .from = (char *)f->gathered + total,
            .to = (char *)f->logits + rows.begin * (int64_t)sizeof(float),
            .from_stride_bytes = width,
            .to_stride_bytes = row_bytes,
            .row_bytes = width,
            .n_rows = n_logits,
        };
        total += f->counts[rank];
    }
    comm_label(comm, -1, COMM_PART_LOGITS);
    TRY(comm->ops->gather_v(comm, f->slice, f->counts[comm->rank], f->gathered, f->counts,
                            f->displs, 0));
    return comm->rank == 0 ? f->parts.backend->copy_strips(f->parts.stream, f->strips, comm->size)
                           : status_ok();
}

/* Only the rows whose logits are wanted go through the final norm and the head. */
static status_t project_logits(struct forward *f, const struct step_rows *step)
{
    if (step->n_logits == 0) {
        return status_ok();
    }
    const bool alone = f->parts.comm->size == 1;
    TRY(norm(f, &f->parts.weights->final_norm, f->logit_rows.device, step->n_logits));
    const plan_interval_t rows = plan_vocab_rows(f->parts.plan, f->parts.comm->rank);
    if (rows.end > rows.begin) {
        const struct matmul_args args = {
            .weight = f->parts.weights->head,
            .x = f->normed,
            .ld_x = f->parts.spec->n_hidden,
            .n_rows = step->n_logits,
            .out = alone ? f->logits : f->slice,
            .ld_out = rows.end - rows.begin,
            .out_dtype = DTYPE_F32,
        };
        TRY(f->parts.backend->matmul(f->parts.stream, &args));
    }
    return alone ? status_ok() : gather_logits(f, step->n_logits);
}

/* All ranks of the stage come here for the same steps, whether the first one draws or not. */
static status_t draw(struct forward *f, const struct step_rows *step)
{
    if (step->n_sampled > 0) {
        TRY(forward_sample(f, step->n_sampled));
    }
    return step->n_logits > 0 ? forward_share_drawn(f, step->n_sampled) : status_ok();
}

// ---- from stage to stage ----

static size_t x_bytes(const struct forward *f, const struct step_rows *step)
{
    return (size_t)step->n_rows * (size_t)f->parts.spec->n_hidden * sizeof(float);
}

static status_t take_over(struct forward *f, const struct step_rows *step)
{
    struct stages *stages = f->parts.stages;
    if (stages == NULL || stages_is_first(stages)) {
        return embed(f, step);
    }
    f->pending = FORWARD_PENDING_NOTHING;
    return stages_recv_x(stages, f->x, x_bytes(f, step));
}

/* What is pending is added here, as the next norm would have: the same sum, rounded once. */
static status_t hand_over(struct forward *f, const struct step_rows *step)
{
    const struct add_norm_args args = {
        .x = f->x,
        .delta = f->partial,
        .n_rows = step->n_rows,
        .n_columns = f->parts.spec->n_hidden,
        .kind = NORM_RMS,
    };
    if (f->pending == FORWARD_PENDING_SUM) {
        TRY(f->parts.backend->add_norm(f->parts.stream, &args));
    }
    f->pending = FORWARD_PENDING_NOTHING;
    return stages_send_x(f->parts.stages, f->x, x_bytes(f, step));
}

static status_t run_layers(struct forward *f, const struct step_rows *step)
{
    for (int32_t layer = f->stage.begin; layer < f->stage.end; layer++) {
        TRY(run_layer(f, step, layer));
        if (f->parts.stages != NULL) {
            stages_progress(f->parts.stages);
        }
    }
    return status_ok();
}

/* All that the device does in a step: nothing here depends on the step but through arrays that have been sent. */
static status_t compute(struct forward *f, const struct step_rows *step)
{
    if (step->n_rows > 0) {
        TRY(take_over(f, step));
        TRY(run_layers(f, step));
    }
    if (f->parts.stages == NULL || stages_is_last(f->parts.stages)) {
        TRY(project_logits(f, step));
        return draw(f, step);
    }
    return step->n_rows > 0 ? hand_over(f, step) : status_ok();
}

// ---- recorded steps ----

/* Steps of one token a sequence are many and short: launching their ops one by one would take longer than some of them run. With
 * several lanes how many rows each has decides what is computed and sent, and that changes from step to step. */
static bool is_recordable(const struct forward *f, const struct step_plan *step)
{
    const struct comm *comm = f->parts.comm;
    const bool alone = comm->size == 1;
    return f->parts.backend->graph_begin != NULL && (alone || comm->recordable) &&
           f->parts.stages == NULL && f->parts.plan->n_lanes == 1 && step->n_rows > 0 &&
           step->n_rows == step->n_seqs && step->n_logits == step->n_rows;
}

/* A recording is of a fixed number of rows; those that a step does not fill begin with its first token, attend to nothing, and
 * leave keys, values and logits where nobody reads them. */
static int32_t padded_rows(const struct forward *f, int32_t n_rows)
{
    static const int32_t sizes[] = {1,  2,   4,   8,   16,  24,  32,  48,  64,
                                    96, 128, 160, 192, 256, 384, 512, 768, 1024};
    const int32_t most =
        f->limits.max_rows < f->limits.max_seqs ? f->limits.max_rows : f->limits.max_seqs;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i] >= n_rows) {
            return sizes[i] < most ? sizes[i] : most;
        }
    }
    return n_rows;
}

static status_t record(struct forward *f, const struct step_rows *step,
                       struct forward_recording *recording)
{
    const struct backend *backend = f->parts.backend;
    TRY(backend->graph_begin(f->parts.stream));
    const status_t computed = compute(f, step);
    const status_t ended = backend->graph_end(f->parts.stream, &recording->graph);
    return status_is_ok(&computed) ? ended : computed;
}

/* The first step of a size is computed as it comes, which lets ops choose and allocate what they need; the second is recorded. */
static status_t run_recorded(struct forward *f, const struct step_rows *step)
{
    struct forward_recording *recording = f->recordings;
    while (recording < f->recordings + f->n_recordings &&
           (recording->n_rows != step->n_rows || recording->n_sampled != step->n_sampled)) {
        recording++;
    }
    if (recording == f->recordings + FORWARD_RECORDINGS) {
        return compute(f, step);
    }
    if (recording == f->recordings + f->n_recordings) {
        f->n_recordings++;
        recording->n_rows = step->n_rows;
        recording->n_sampled = step->n_sampled;
        return compute(f, step);
    }
    if (recording->graph == NULL) {
        TRY(record(f, step, recording));
    }
    return f->parts.backend->graph_run(f->parts.stream, recording->graph);
}

// ---- a step ----

status_t forward_run(struct forward *f, const struct step_plan *step,
                     const struct step_sampling *sampling, struct sample_result *results_out)
{
    const struct backend *backend = f->parts.backend;
    const bool samples = sampling != NULL && step->n_logits > 0;
    const bool recordable = is_recordable(f, step);
    struct step_rows rows = {.n_rows = step->n_rows, .n_logits = step->n_logits};
    if (recordable) {
        rows.n_rows = padded_rows(f, step->n_rows);
        rows.n_logits = rows.n_rows;
    }
    rows.n_sampled = samples ? rows.n_logits : 0;
    if (f->parts.stages != NULL) {
        TRY(stages_begin(f->parts.stages, step->n_logits > 0, f->drawn));
    }
    TRY(kv_moves_run(f->parts.moves, step)); // before what may be recorded
    TRY(kv_pool_place(f->parts.pool, step, rows.n_rows));
    TRY(send_step(f, step, &rows));
    TRY(plan_attention(f, step));
    if (samples) {
        TRY(forward_send_sampling(f, sampling, step->n_logits, rows.n_sampled));
    }
    TRY(recordable ? run_recorded(f, &rows) : compute(f, &rows));
    return samples && f->parts.stages == NULL
               ? backend->download(f->parts.stream, results_out, f->results,
                                   (size_t)step->n_logits * sizeof *results_out)
               : status_ok();
}

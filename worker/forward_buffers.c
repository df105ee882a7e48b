#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/int8_rows.h"
#include "parallel/plan_memory.h"
#include "worker/forward.h"

// ---- attention's plans ----

plan_interval_t forward_query_heads(const struct forward_parts *parts, int32_t layer, int32_t head)
{
    const struct kv_class *kv_class = &parts->pool->classes[parts->plan->layers[layer].class_index];
    const plan_interval_t q = plan_q_heads(parts->plan, layer, parts->comm->rank);
    const int32_t first = (kv_class->lanes[0].first_head + head) * kv_class->group;
    const int32_t end = first + kv_class->group;
    const plan_interval_t both = {first > q.begin ? first : q.begin, end < q.end ? end : q.end};
    return both.end > both.begin ? both : (plan_interval_t){0, 0};
}

static int32_t group_of(const struct forward *f, int32_t layer, int32_t head)
{
    const struct kv_class *kv_class =
        &f->parts.pool->classes[f->parts.plan->layers[layer].class_index];
    if (head < 0 || kv_class->by_token) {
        return kv_class->group;
    }
    const plan_interval_t heads = forward_query_heads(&f->parts, layer, head);
    return heads.end - heads.begin;
}

const struct forward_attention *forward_find_attention(const struct forward *f, int32_t layer,
                                                       int32_t head)
{
    const int32_t group = group_of(f, layer, head);
    const int kv_dtype = f->parts.pool->layers[layer].dtype;
    for (int32_t i = 0; i < f->n_attentions; i++) {
        const struct forward_attention *a = &f->attentions[i];
        if (a->class_index == f->parts.plan->layers[layer].class_index && a->head == head &&
            a->group == group && a->kv_dtype == kv_dtype) {
            return a;
        }
    }
    return NULL;
}

/* KV heads of a sequence in one call of the class's attention. */
static int32_t most_heads(const struct forward *f, const struct kv_class *kv_class, int32_t head)
{
    if (kv_class->by_token) {
        return kv_class->runs[head].head_end - kv_class->runs[head].head_begin;
    }
    if (head >= 0) {
        return 1;
    }
    int32_t most = 0;
    for (int32_t lane = 0; lane < f->parts.plan->n_lanes; lane++) {
        most = kv_class->lanes[lane].n_heads > most ? kv_class->lanes[lane].n_heads : most;
    }
    return most;
}

static status_t add_attention(struct forward *f, int32_t layer, int32_t head)
{
    const struct model_spec *spec = f->parts.spec;
    const int32_t class_index = f->parts.plan->layers[layer].class_index;
    const int32_t group = group_of(f, layer, head);
    if (group == 0 || forward_find_attention(f, layer, head) != NULL) {
        return status_ok();
    }
    const struct attention_shape shape = {
        .head_dim = spec->head_dim,
        .group = group,
        .block_tokens = PLAN_BLOCK_TOKENS,
        .window = spec->sliding_window,
        .kv_dtype = f->parts.pool->layers[layer].dtype,
        .scale = (float)(1.0 / sqrt(spec->head_dim)),
        .max_seqs = f->limits.max_seqs,
        .max_rows = f->limits.max_rows,
        .max_kv_heads = most_heads(f, &f->parts.pool->classes[class_index], head),
        .max_tokens = f->limits.max_model_len,
        .batch_invariant = f->parts.batch_invariant,
        .partial = f->parts.pool->classes[class_index].by_token,
    };
    struct forward_attention *to = &f->attentions[f->n_attentions];
    *to = (struct forward_attention){
        .class_index = class_index,
        .head = head,
        .group = group,
        .kv_dtype = shape.kv_dtype,
        .exchanged = !plan_attention_is_local(f->parts.plan, layer),
    };
    TRY(f->parts.backend->attention_plan_new(f->parts.stream, &shape, &to->plan));
    f->n_attentions++;
    return status_ok();
}

/* Calls of attention that a layer of the class takes: one for each run, or each held head, or one in all; numbered from 0, where
 * there is one from -1. */
static int32_t n_calls(const struct kv_class *kv_class)
{
    return kv_class->by_token ? kv_class->n_runs : kv_class->split ? kv_class->lanes[0].n_heads : 1;
}

/* One for each class, for each held head and group size of a split one, and for each run of one split by token. */
static status_t add_attentions(struct forward *f)
{
    const struct plan *plan = f->parts.plan;
    int64_t most = 1; // an array, also where no layer attends
    for (int32_t layer = f->stage.begin; layer < f->stage.end; layer++) {
        const int32_t class_index = plan->layers[layer].class_index;
        most += class_index >= 0 ? n_calls(&f->parts.pool->classes[class_index]) : 0;
    }
    f->attentions = calloc((size_t)most, sizeof *f->attentions);
    if (f->attentions == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for plans of attention");
    }
    for (int32_t layer = f->stage.begin; layer < f->stage.end; layer++) {
        const int32_t class_index = plan->layers[layer].class_index;
        if (class_index < 0) {
            continue;
        }
        const struct kv_class *kv_class = &f->parts.pool->classes[class_index];
        const bool one = !kv_class->split && !kv_class->by_token;
        for (int32_t i = 0; i < n_calls(kv_class); i++) {
            TRY(add_attention(f, layer, one ? -1 : i));
        }
    }
    return status_ok();
}

// ---- memory ----

static status_t alloc(const struct forward *f, int64_t n, int dtype, void **out)
{
    return n == 0
               ? status_ok()
               : f->parts.backend->mem_alloc(f->parts.stream, (size_t)n * dtype_bytes(dtype), out);
}

static status_t alloc_floats(const struct forward *f, int64_t n, float **out)
{
    void *memory = NULL;
    TRY(alloc(f, n, DTYPE_F32, &memory));
    *out = memory;
    return status_ok();
}

/* Every buffer a row of the step needs. */
static status_t alloc_rows(struct forward *f)
{
    const int64_t n = f->limits.max_rows;
    const int64_t n_hidden = f->parts.spec->n_hidden;
    const int dtype = f->parts.backend->activation;
    struct plan_widths widths;
    plan_memory_widths(f->parts.plan, f->parts.rank, &widths);
    f->ld = widths.attention;
    TRY(alloc_floats(f, n * n_hidden, &f->x));
    TRY(alloc(f, n * n_hidden, dtype, &f->normed));
    TRY(alloc(f, n * n_hidden, dtype, &f->partials[0]));
    f->partial = f->partials[0];
    f->partials[1] = f->parts.comm->ops->buffer(f->parts.comm, 0);
    f->partials[2] = f->parts.comm->ops->buffer(f->parts.comm, 1);
    TRY(alloc(f, n * widths.attention, dtype, &f->qkv));
    TRY(alloc(f, n * widths.attention, dtype, &f->attended));
    TRY(alloc(f, n * widths.kv, dtype, &f->kv));
    TRY(alloc(f, n * widths.gate_up, dtype, &f->gate_up));
    const int32_t n_in = plan_rounded_inputs(f->parts.plan, f->parts.spec, f->parts.rank,
                                             &f->parts.weights->formats);
    const int64_t n_scratch = n_in > 0 ? (int64_t)int8_rows_bytes(f->limits.max_rows, n_in) : 0;
    return alloc(f, n_scratch, DTYPE_I8, &f->scratch);
}

/* Logits, and what a sequence of the step needs. */
static status_t alloc_seqs(struct forward *f)
{
    const struct comm *comm = f->parts.comm;
    const int64_t n = f->limits.max_logits;
    const int64_t n_vocab = f->parts.spec->n_vocab;
    const plan_interval_t rows = plan_head_rows(f->parts.plan, f->parts.rank);
    const bool alone = comm->size == 1;
    const bool draws = forward_draws(f);
    TRY(alloc_floats(f, draws ? n * n_vocab : 0, &f->logits));
    TRY(alloc_floats(f, alone ? 0 : n * (rows.end - rows.begin), &f->slice));
    TRY(alloc_floats(f, !alone && draws ? n * n_vocab : 0, &f->gathered));
    f->counts = calloc((size_t)comm->size, sizeof *f->counts);
    f->displs = calloc((size_t)comm->size, sizeof *f->displs);
    f->strips = calloc((size_t)comm->size, sizeof *f->strips);
    f->seqs = calloc((size_t)f->limits.max_seqs, sizeof *f->seqs);
    if (f->counts == NULL || f->displs == NULL || f->strips == NULL || f->seqs == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d sequences",
                             f->limits.max_seqs);
    }
    return status_ok();
}

static status_t alloc_step(struct forward *f)
{
    const struct {
        struct device_array *array;
        int32_t n;
        size_t size;
    } arrays[] = {
        {&f->tokens, f->limits.max_rows, sizeof(int32_t)},
        {&f->positions, f->limits.max_rows, sizeof(int32_t)},
        {&f->blocks, f->limits.max_blocks, sizeof(int32_t)},
        {&f->logit_rows, f->limits.max_logits, sizeof(int32_t)},
        // Where ids are drawn:
        {&f->sample_rows, f->limits.max_logits, sizeof(struct sample_row)},
        {&f->sample_tokens, f->limits.max_sample_tokens, sizeof(struct sample_token)},
    };

    const size_t n_arrays = sizeof arrays / sizeof arrays[0] - (forward_draws(f) ? 0 : 2);

    for (size_t i = 0; i < n_arrays; i++) {
        TRY(device_array_init(arrays[i].array, f->parts.backend, f->parts.stream,
                              (size_t)arrays[i].n * arrays[i].size, f->limits.max_steps));
    }
    return status_ok();
}

/* Ids that were never drawn are 0, which every vocabulary has. */
static status_t alloc_drawn(struct forward *f)
{
    const struct backend *backend = f->parts.backend;
    const size_t drawn_bytes = (size_t)f->limits.max_seqs * sizeof *f->drawn;
    void *memory = NULL;
    TRY(backend->mem_alloc(f->parts.stream, drawn_bytes, &memory));
    f->drawn = memory;
    if (forward_draws(f)) {
        TRY(backend->mem_alloc(f->parts.stream, (size_t)f->limits.max_logits * sizeof *f->results,
                               &memory));
        f->results = memory;
    }
    return backend->zero(f->parts.stream, f->drawn, drawn_bytes);
}

// ---- angles ----

static status_t send_floats(struct forward *f, const float *from, int64_t n, float **to_out)
{
    TRY(alloc_floats(f, n, to_out));
    TRY(f->parts.backend->upload(f->parts.stream, *to_out, from, (size_t)n * sizeof *from));
    return f->parts.backend->stream_sync(f->parts.stream);
}

static status_t make_angles(struct forward *f)
{
    const struct model_spec *spec = f->parts.spec;
    const struct rope_scaling scaling = {
        .factor = spec->rope_scaling.factor,
        .low = spec->rope_scaling.low_freq_factor,
        .high = spec->rope_scaling.high_freq_factor,
        .original_positions = spec->rope_scaling.original_positions,
    };
    struct rope_table table;
    TRY(rope_table_init_scaled(&table, f->limits.max_model_len, spec->rotary_dim, spec->rope_theta,
                               &scaling));
    const int64_t n = (int64_t)table.max_positions * (table.rotary_dim / 2);
    status_t s = send_floats(f, table.cos, n, &f->cos);
    if (status_is_ok(&s)) {
        s = send_floats(f, table.sin, n, &f->sin);
    }
    rope_table_destroy(&table);
    return s;
}

// ---- life ----

static status_t init(struct forward *f)
{
    TRY(make_angles(f));
    TRY(alloc_rows(f));
    TRY(alloc_seqs(f));
    TRY(alloc_step(f));
    TRY(alloc_drawn(f));
    const struct exchange_parts exchange = {
        .backend = f->parts.backend,
        .stream = f->parts.stream,
        .plan = f->parts.plan,
        .comm = f->parts.comm,
        .rank = f->parts.rank,
        .max_rows = f->limits.max_rows,
        .ld = f->ld,
    };
    TRY(exchange_init(&f->exchange, &exchange));
    return add_attentions(f);
}

status_t forward_init(struct forward *forward, const struct forward_parts *parts,
                      const struct forward_limits *limits)
{
    struct forward made = {
        .parts = *parts,
        .limits = *limits,
        .stage = plan_stage_layers(parts->plan, plan_stage(parts->plan, parts->rank)),
    };
    const status_t s = init(&made);
    if (!status_is_ok(&s)) {
        forward_destroy(&made);
        return status_wrapf(s, "buffers for steps of %d rows and %d sequences", limits->max_rows,
                            limits->max_seqs);
    }
    *forward = made;
    return status_ok();
}

void forward_destroy(struct forward *f)
{
    const struct backend *backend = f->parts.backend;
    if (backend == NULL) {
        return;
    }
    void *const buffers[] = {f->x,        f->normed,  f->partials[0], f->qkv,    f->kv,
                             f->attended, f->gate_up, f->scratch,     f->logits, f->slice,
                             f->gathered, f->cos,     f->sin,         f->drawn,  f->results};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        backend->mem_free(f->parts.stream, buffers[i]);
    }
    struct device_array *const arrays[] = {&f->tokens,     &f->positions,   &f->blocks,
                                           &f->logit_rows, &f->sample_rows, &f->sample_tokens};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        device_array_destroy(arrays[i], backend, f->parts.stream);
    }
    for (int32_t i = 0; i < f->n_recordings; i++) {
        if (f->recordings[i].graph != NULL) {
            backend->graph_free(f->recordings[i].graph);
        }
    }
    for (int32_t i = 0; i < f->n_attentions; i++) {
        backend->attention_plan_free(f->attentions[i].plan);
    }
    exchange_destroy(&f->exchange);
    free(f->attentions);
    free(f->counts);
    free(f->displs);
    free(f->strips);
    free(f->seqs);
    memset(f, 0, sizeof *f);
}

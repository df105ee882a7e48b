/*
 * measure_ops.c - attention, norms and the like, sampling, and what a step takes when it computes next to nothing
 */
#include <math.h>

#include "parallel/cost.h"
#include "worker/engine.h"
#include "worker/measure_parts.h"

static void free_all(const struct measure_bench *bench, void **pointers, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bench->options.backend->mem_free(bench->stream, pointers[i]);
    }
}

// ---- attention ----

enum { ATTENTION_SEQS = 4, CONTEXT = 512, QUERIES = 256 };

struct attend {
    const struct measure_bench *bench;
    struct attention_plan *plan;
    int32_t group, n_heads; /* KV heads of a sequence here */
    int64_t call_bytes;     /* of one plane, that a call reads */
    int32_t n_calls;        /* before the planes begin anew */
    void *memory[5];        /* q, out, k, v, blocks */
};

static status_t attend_once(void *user, int32_t i)
{
    struct attend *a = user;
    const int64_t at = (int64_t)(i % a->n_calls) * a->call_bytes;
    const struct attention_args args = {.q = a->memory[0],
                                        .out = a->memory[1],
                                        .k_plane = (const char *)a->memory[2] + at,
                                        .v_plane = (const char *)a->memory[3] + at,
                                        .blocks = a->memory[4]};
    return a->bench->options.backend->attention(a->bench->stream, a->plan, &args);
}

static status_t set_seqs(struct attend *a, int32_t n_seqs, int32_t n_queries, int32_t kv_tokens)
{
    struct attention_seq seqs[ATTENTION_SEQS];
    const int64_t ld = (int64_t)a->n_heads * a->group * a->bench->spec->head_dim;
    const int32_t n_blocks = CONTEXT / PLAN_BLOCK_TOKENS;
    for (int32_t i = 0; i < n_seqs; i++) {
        seqs[i] = (struct attention_seq){.n_queries = n_queries,
                                         .kv_tokens = kv_tokens,
                                         .first_block = i * n_blocks,
                                         .n_kv_heads = a->n_heads,
                                         .q_offset = (int64_t)i * n_queries * ld,
                                         .ld = ld};
    }
    return a->bench->options.backend->attention_plan_set(a->bench->stream, a->plan, seqs, n_seqs);
}

static status_t open_attend(struct attend *a)
{
    const struct measure_bench *b = a->bench;
    const struct backend *backend = b->options.backend;
    const int32_t n_blocks = ATTENTION_SEQS * (CONTEXT / PLAN_BLOCK_TOKENS);
    const size_t row = (size_t)a->n_heads * (size_t)a->group * (size_t)b->spec->head_dim *
                       dtype_bytes(backend->activation);
    const struct attention_shape shape = {.head_dim = b->spec->head_dim,
                                          .group = a->group,
                                          .block_tokens = PLAN_BLOCK_TOKENS,
                                          .kv_dtype = b->options.kv_dtype,
                                          .scale = (float)(1.0 / sqrt(b->spec->head_dim)),
                                          .max_seqs = ATTENTION_SEQS,
                                          .max_rows = QUERIES,
                                          .max_kv_heads = a->n_heads,
                                          .max_tokens = CONTEXT};
    a->call_bytes = (int64_t)n_blocks * a->n_heads * PLAN_BLOCK_TOKENS * b->spec->head_dim *
                    (int64_t)dtype_bytes(b->options.kv_dtype);
    a->n_calls = (int32_t)((int64_t)b->cold_bytes / 2 / a->call_bytes) + 1;
    const size_t plane = (size_t)a->n_calls * (size_t)a->call_bytes;
    const size_t sizes[5] = {QUERIES * row, QUERIES * row, plane, plane,
                             (size_t)n_blocks * sizeof(int32_t)};
    for (size_t i = 0; i < 5; i++) {
        TRY(measure_alloc(b, sizes[i], &a->memory[i]));
    }
    int32_t blocks[ATTENTION_SEQS * (CONTEXT / PLAN_BLOCK_TOKENS)];
    for (int32_t i = 0; i < n_blocks; i++) {
        blocks[i] = i;
    }
    TRY(backend->upload(b->stream, a->memory[4], blocks, sizes[4]));
    TRY(backend->stream_sync(b->stream));
    return backend->attention_plan_new(b->stream, &shape, &a->plan);
}

/* Decoding reads keys and values of all sequences; a prompt computes. */
static status_t time_attention(struct attend *a, struct cost_attention_rate *rate)
{
    double decode_s = 1;
    double prompt_s = 1;
    TRY(open_attend(a));
    TRY(set_seqs(a, ATTENTION_SEQS, 1, CONTEXT));
    TRY(measure_seconds(a->bench, attend_once, a, &decode_s));
    TRY(set_seqs(a, 1, QUERIES, QUERIES));
    TRY(measure_seconds(a->bench, attend_once, a, &prompt_s));
    const double seen = (double)QUERIES * QUERIES / 2;
    *rate = (struct cost_attention_rate){
        .group = a->group,
        .kv_bytes_per_s = 2 * (double)a->call_bytes / decode_s,
        .flops_per_s = 4.0 * a->n_heads * a->group * a->bench->spec->head_dim * seen / prompt_s,
    };
    return status_ok();
}

/* Query heads that a KV head of the layer serves on this rank, and KV heads of a sequence: those of the fullest lane. */
static void layer_heads(const struct measure_bench *b, int32_t layer, struct attend *a)
{
    const int32_t rank = group_rank(b->group);
    const int32_t c = b->plan->layers[layer].class_index;
    const int32_t *held;
    a->group = b->plan->n_heads / b->plan->classes[c].n_kv_heads;
    a->n_heads = 1;
    for (int32_t lane = 0; lane < plan_columns(b->plan, c); lane++) {
        const int32_t n = plan_held(b->plan, c, rank, lane, &held);
        a->n_heads = n > a->n_heads ? n : a->n_heads;
    }
}

status_t measure_attention(const struct measure_bench *bench)
{
    struct cost_rates *rates = bench->rates;
    for (int32_t layer = 0; layer < bench->plan->n_layers; layer++) {
        struct attend a = {.bench = bench};
        if (bench->plan->layers[layer].class_index < 0) {
            continue;
        }
        layer_heads(bench, layer, &a);
        bool known = rates->n_attentions == COST_MAX_ATTENTIONS;
        for (int32_t i = 0; i < rates->n_attentions; i++) {
            known = known || rates->attentions[i].group == a.group;
        }
        if (known) {
            continue;
        }
        const status_t s = time_attention(&a, &rates->attentions[rates->n_attentions]);
        bench->options.backend->attention_plan_free(a.plan);
        free_all(bench, a.memory, 5);
        TRY(s);
        rates->n_attentions++;
    }
    return status_ok();
}

// ---- norms and SwiGLU ----

struct element {
    const struct measure_bench *bench;
    int32_t n_rows, n_columns; /* columns of SwiGLU */
    void *memory[4];           /* x, norm's weight and bias, delta and out, gate and up */
};

/* As in a prompt: activations do not stay in caches from one op to the next. */
enum { ELEMENT_ROWS = 512 };

static status_t norm_once(void *user, int32_t i)
{
    struct element *e = user;
    const int32_t hidden = e->bench->spec->n_hidden;
    float *const weight = e->memory[1];
    const struct add_norm_args args = {
        .x = e->memory[0],
        .delta = e->memory[2],
        .n_rows = e->n_rows,
        .n_columns = hidden,
        .kind = e->bench->spec->norm == SPEC_NORM_RMS ? NORM_RMS : NORM_LAYER,
        .weight = weight,
        .bias = e->bench->spec->norm == SPEC_NORM_RMS ? NULL : weight + hidden,
        .eps = 1e-5F,
        .out = e->memory[2],
    };
    (void)i;
    return e->bench->options.backend->add_norm(e->bench->stream, &args);
}

/* Two norms and a SwiGLU: what a layer has. */
static status_t elements_once(void *user, int32_t i)
{
    struct element *e = user;
    const struct swiglu_args args = {.gate_up = e->memory[3],
                                     .ld_in = 2 * (int64_t)e->n_columns,
                                     .n_rows = e->n_rows,
                                     .n_columns = e->n_columns,
                                     .out = e->memory[3],
                                     .ld_out = 2 * (int64_t)e->n_columns};
    TRY(norm_once(e, i));
    TRY(norm_once(e, i));
    return e->n_columns > 0 ? e->bench->options.backend->swiglu(e->bench->stream, &args)
                            : status_ok();
}

status_t measure_elementwise(const struct measure_bench *bench)
{
    const size_t hidden = (size_t)bench->spec->n_hidden;
    const size_t activation = dtype_bytes(bench->options.backend->activation);
    struct element e = {.bench = bench, .n_rows = ELEMENT_ROWS};
    for (int32_t layer = 0; layer < bench->plan->n_layers; layer++) {
        const plan_interval_t ffn = plan_ffn_columns(bench->plan, layer, group_rank(bench->group));
        e.n_columns = ffn.end - ffn.begin > e.n_columns ? ffn.end - ffn.begin : e.n_columns;
    }
    const size_t columns = 2 * (size_t)e.n_columns + 1;
    const size_t sizes[4] = {ELEMENT_ROWS * hidden * sizeof(float), 2 * hidden * sizeof(float),
                             ELEMENT_ROWS * hidden * activation,
                             ELEMENT_ROWS * columns * activation};
    double many_s = 1;
    double one_s = 1;
    status_t s = status_ok();
    for (size_t i = 0; i < 4 && status_is_ok(&s); i++) {
        s = measure_alloc(bench, sizes[i], &e.memory[i]);
    }
    s = group_agree(bench->group, s);
    if (status_is_ok(&s)) {
        s = measure_seconds(bench, elements_once, &e, &many_s);
    }
    e.n_rows = 1;
    if (status_is_ok(&s)) {
        s = measure_seconds(bench, norm_once, &e, &one_s);
    }
    free_all(bench, e.memory, 4);
    const double bytes = ELEMENT_ROWS * (2.0 * (double)hidden * (8 + 2 * (double)activation) +
                                         3.0 * e.n_columns * (double)activation);
    const double rate = bytes / fmax(many_s - 3 * one_s, many_s / 4);
    bench->rates->efficiency.op_s = one_s;
    bench->rates->efficiency.elementwise = rate / bench->rates->read_bytes_per_s;
    return s;
}

// ---- sampling ----

enum { SAMPLE_ROWS = 8 };

struct draw {
    const struct measure_bench *bench;
    void *logits;
    struct sample_row rows[SAMPLE_ROWS];
    struct sample_result results[SAMPLE_ROWS];
};

static status_t draw_once(void *user, int32_t i)
{
    struct draw *d = user;
    const struct sample_args args = {.logits = d->logits,
                                     .rows = d->rows,
                                     .results = d->results,
                                     .n_rows = SAMPLE_ROWS,
                                     .n_vocab = d->bench->spec->n_vocab};
    (void)i;
    return d->bench->options.backend->sample(d->bench->stream, &args);
}

/* Greedy. Other ranks do the same, to be as busy as a step finds them. */
status_t measure_sampling(const struct measure_bench *bench)
{
    const double bytes = (double)SAMPLE_ROWS * bench->spec->n_vocab * (double)sizeof(float);
    struct draw d = {.bench = bench};
    double seconds = 1;
    for (int32_t i = 0; i < SAMPLE_ROWS; i++) {
        d.rows[i] = (struct sample_row){
            .logits = (int64_t)i * bench->spec->n_vocab, .top_p = 1, .repetition = 1};
    }
    status_t s = group_agree(bench->group, measure_alloc(bench, (size_t)bytes, &d.logits));
    if (status_is_ok(&s)) {
        s = measure_seconds(bench, draw_once, &d, &seconds);
    }
    bench->options.backend->mem_free(bench->stream, d.logits);
    bench->rates->efficiency.sampling = 2 * bytes / seconds / bench->rates->read_bytes_per_s;
    return s;
}

// ---- a step that computes next to nothing ----

enum { STEP_CONTEXT = 32 };

struct tiny {
    struct model_spec spec;
    struct spec_layer layer;
    struct plan plan;
    struct engine *engine;
    struct step_plan step;
};

static status_t step_once(void *user, int32_t i)
{
    struct tiny *t = user;
    const int32_t token = 1;
    const int32_t block = 0;
    const float *logits = NULL;
    const struct step_seq seq = {
        .n_computed = i % PLAN_BLOCK_TOKENS, .n_tokens = 1, .n_blocks = 1, .n_logits = 1};
    step_plan_clear(&t->step);
    TRY(step_plan_add(&t->step, &seq, &token, &block));
    return engine_step(t->engine, &t->step, &logits);
}

/* One layer of heads of 32 columns, one on each rank. */
static status_t open_tiny(const struct measure_bench *bench, struct tiny *t)
{
    const int32_t n_ranks = group_size(bench->group);
    t->layer = (struct spec_layer){.n_kv_heads = n_ranks, .n_ff = PLAN_TILE * n_ranks};
    t->spec = (struct model_spec){.name = "tiny",
                                  .n_layers = 1,
                                  .n_hidden = 64 * n_ranks,
                                  .n_heads = n_ranks,
                                  .head_dim = 32,
                                  .rotary_dim = 32,
                                  .n_vocab = 64 * n_ranks,
                                  .max_positions = STEP_CONTEXT,
                                  .norm = bench->spec->norm,
                                  .norm_eps = 1e-5,
                                  .rope_theta = 1e4,
                                  .dtype = DTYPE_BF16,
                                  .layers = &t->layer};
    const struct plan_request request = {.tp = n_ranks, .pp = 1, .placement = PLAN_SHARE};
    const struct engine_options options = {
        .model_dir = "tiny",
        .load = ENGINE_LOAD_DUMMY,
        .backend = bench->options.backend,
        .device = bench->options.device,
        .dtype = bench->options.dtype,
        .kv_dtype = bench->options.kv_dtype,
        .max_num_seqs = 1,
        .max_num_batched_tokens = 1,
        .max_model_len = STEP_CONTEXT,
        .device_memory_share = 0.9,
        .cores = bench->options.cores,
        .log = {.fd = 2, .level = LOG_WARN, .rank = group_rank(bench->group), .module = "measure"},
    };
    TRY(group_agree(bench->group, plan_make(&t->spec, &request, &t->plan)));
    TRY(engine_new(bench->group, &t->spec, &t->plan, &options, &t->engine));
    return group_agree(bench->group, step_plan_init(&t->step, engine_limits(t->engine)));
}

/* What is left of the step when the ops it launches are taken off. */
status_t measure_step(const struct measure_bench *bench)
{
    struct tiny t = {.engine = NULL};
    double seconds = 0;
    status_t s = open_tiny(bench, &t);
    if (status_is_ok(&s)) {
        s = measure_seconds(bench, step_once, &t, &seconds);
    }
    if (status_is_ok(&s)) {
        const struct cost_model model = {.plan = &t.plan,
                                         .spec = &t.spec,
                                         .rates = bench->rates,
                                         .dtype = bench->options.dtype,
                                         .kv_dtype = bench->options.kv_dtype};
        const struct cost_rows rows = {.n_seqs = 1, .n_new = 1, .n_past = 8, .n_logits = 1};
        struct cost_time time;
        cost_of_step(&model, &rows, &time);
        bench->rates->efficiency.step_s = fmax(seconds - time.seconds[COST_LAUNCH], 0);
    }
    step_plan_destroy(&t.step);
    engine_free(t.engine);
    plan_destroy(&t.plan);
    return s;
}

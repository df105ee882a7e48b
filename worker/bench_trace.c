#include "worker/bench_trace.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { MAX_OPS = 96, MAX_MATRICES = 16384, MAX_PLANS = 64 };

struct traced_matrix {
    const struct matrix *matrix;
    int32_t n_out, n_in;
    double bytes;
};

struct traced_plan {
    const struct attention_plan *plan;
    struct attention_shape shape;
    double bytes, flops; /* of the step that was set */
};

struct bench_trace {
    const struct backend *inner;
    struct backend table;
    struct bench_trace_op ops[MAX_OPS];
    int32_t n_ops;
    struct traced_matrix *matrices; /* [MAX_MATRICES] */
    int32_t n_matrices;
    struct traced_plan plans[MAX_PLANS];
    int32_t n_plans;
};

/* The table's own stream: behind it is one of inner's. */
struct backend_stream {
    struct bench_trace *trace;
    struct backend_stream *stream;
};

// ---- counting ----

static struct bench_trace_op *find_op(struct bench_trace *t, const char *name)
{
    for (int32_t i = 0; i < t->n_ops; i++) {
        if (strcmp(t->ops[i].name, name) == 0) {
            return &t->ops[i];
        }
    }
    if (t->n_ops == MAX_OPS) {
        return &t->ops[MAX_OPS - 1]; // more shapes than there are models for
    }
    struct bench_trace_op *op = &t->ops[t->n_ops++];
    *op = (struct bench_trace_op){.n_calls = 0};
    snprintf(op->name, sizeof op->name, "%s", name);
    return op;
}

struct work {
    const char *name;
    uint64_t begin_ns;
    double bytes, flops;
};

static struct work begin(const char *name, double bytes, double flops)
{
    return (struct work){
        .name = name, .begin_ns = clock_now_ns(clock_system()), .bytes = bytes, .flops = flops};
}

static status_t end(struct backend_stream *s, const struct work *work, status_t result)
{
    struct bench_trace *t = s->trace;
    if (result.code == STATUS_OK && !t->inner->host_memory) {
        result = t->inner->stream_sync(s->stream);
    }
    struct bench_trace_op *op = find_op(t, work->name);
    op->ns += clock_now_ns(clock_system()) - work->begin_ns;
    op->n_calls++;
    op->bytes += work->bytes;
    op->flops += work->flops;
    return result;
}

static double activation_bytes(const struct backend_stream *s)
{
    return (double)dtype_bytes(s->trace->inner->activation);
}

// ---- execution and memory: passed on ----

static void traced_stream_free(struct backend_stream *s)
{
    if (s != NULL) {
        s->trace->inner->stream_free(s->stream);
        free(s);
    }
}

static status_t traced_stream_sync(struct backend_stream *s)
{
    return s->trace->inner->stream_sync(s->stream);
}

static status_t traced_mark_new(struct backend_stream *s, struct backend_mark **mark_out)
{
    return s->trace->inner->mark_new(s->stream, mark_out);
}

static status_t traced_mark_set(struct backend_stream *s, struct backend_mark *mark)
{
    return s->trace->inner->mark_set(s->stream, mark);
}

static status_t traced_mem_alloc(struct backend_stream *s, size_t size, void **ptr_out)
{
    return s->trace->inner->mem_alloc(s->stream, size, ptr_out);
}

static void traced_mem_free(struct backend_stream *s, void *ptr)
{
    s->trace->inner->mem_free(s->stream, ptr);
}

static status_t traced_host_alloc(struct backend_stream *s, size_t size, void **ptr_out)
{
    return s->trace->inner->host_alloc(s->stream, size, ptr_out);
}

static void traced_host_free(struct backend_stream *s, void *ptr)
{
    s->trace->inner->host_free(s->stream, ptr);
}

static status_t traced_upload(struct backend_stream *s, void *to, const void *from, size_t size)
{
    const struct work work = begin("upload", to == from ? 0 : 2.0 * (double)size, 0);
    return end(s, &work, s->trace->inner->upload(s->stream, to, from, size));
}

static status_t traced_download(struct backend_stream *s, void *to, const void *from, size_t size)
{
    const struct work work = begin("download", to == from ? 0 : 2.0 * (double)size, 0);
    return end(s, &work, s->trace->inner->download(s->stream, to, from, size));
}

static status_t traced_zero(struct backend_stream *s, void *to, size_t size)
{
    const struct work work = begin("zero", (double)size, 0);
    return end(s, &work, s->trace->inner->zero(s->stream, to, size));
}

static status_t traced_copy_strips(struct backend_stream *s, const struct strip *strips, int32_t n)
{
    double bytes = 0;
    for (int32_t i = 0; i < n; i++) {
        bytes += 2.0 * (double)strips[i].row_bytes * strips[i].n_rows;
    }
    const struct work work = begin("copy_strips", bytes, 0);
    return end(s, &work, s->trace->inner->copy_strips(s->stream, strips, n));
}

// ---- weights ----

static status_t traced_matrix_new(struct backend_stream *s, int dtype, int32_t n_out, int32_t n_in,
                                  struct matrix **matrix_out)
{
    struct bench_trace *t = s->trace;
    if (t->n_matrices == MAX_MATRICES) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "trace: more than %d matrices",
                             MAX_MATRICES);
    }
    TRY(t->inner->matrix_new(s->stream, dtype, n_out, n_in, matrix_out));
    t->matrices[t->n_matrices++] = (struct traced_matrix){
        .matrix = *matrix_out,
        .n_out = n_out,
        .n_in = n_in,
        .bytes = (double)t->inner->matrix_bytes(dtype, n_out, n_in),
    };
    return status_ok();
}

static status_t traced_matrix_write(struct backend_stream *s, const struct matrix_write_args *args)
{
    return s->trace->inner->matrix_write(s->stream, args);
}

static status_t traced_random(struct backend_stream *s, const struct random_args *args)
{
    return s->trace->inner->random(s->stream, args);
}

static status_t traced_matmul_tune(struct backend_stream *s, const struct matmul_tune_args *args,
                                   status_t *cache_out)
{
    return s->trace->inner->matmul_tune(s->stream, args, cache_out);
}

// ---- attention's plans ----

static struct traced_plan *find_plan(struct bench_trace *t, const struct attention_plan *plan)
{
    for (int32_t i = 0; i < t->n_plans; i++) {
        if (t->plans[i].plan == plan) {
            return &t->plans[i];
        }
    }
    return NULL;
}

static status_t traced_attention_plan_new(struct backend_stream *s,
                                          const struct attention_shape *shape,
                                          struct attention_plan **plan_out)
{
    struct bench_trace *t = s->trace;
    if (t->n_plans == MAX_PLANS) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "trace: more than %d attention plans",
                             MAX_PLANS);
    }
    TRY(t->inner->attention_plan_new(s->stream, shape, plan_out));
    t->plans[t->n_plans++] = (struct traced_plan){.plan = *plan_out, .shape = *shape};
    return status_ok();
}

/* Keys that query t of the sequence sees. */
static double visible(const struct attention_shape *shape, const struct attention_seq *seq,
                      int32_t t)
{
    const int32_t n = shape->partial ? seq->row_ends[t] : seq->kv_tokens - seq->n_queries + t + 1;
    return shape->window > 0 && n > shape->window ? shape->window : n;
}

static void add_seq(struct traced_plan *plan, const struct attention_seq *seq, double activation)
{
    const struct attention_shape *shape = &plan->shape;
    const double columns = (double)seq->n_kv_heads * shape->head_dim;
    double pairs = 0;
    for (int32_t t = 0; t < seq->n_queries; t++) {
        pairs += visible(shape, seq, t);
    }
    // Of keys: what the first query sees, and the queries' own after it.
    double keys = seq->n_queries > 0 ? visible(shape, seq, 0) + (double)seq->n_queries - 1 : 0;
    keys = shape->partial ? seq->kv_tokens : keys;
    plan->flops += 4 * columns * shape->group * pairs;
    plan->bytes += 2 * columns * keys * (double)dtype_bytes(shape->kv_dtype);
    plan->bytes += 2 * columns * shape->group * seq->n_queries * activation;
}

static status_t traced_attention_plan_set(struct backend_stream *s, struct attention_plan *plan,
                                          const struct attention_seq *seqs, int32_t n_seqs)
{
    struct traced_plan *traced = find_plan(s->trace, plan);
    assert(traced != NULL);
    traced->bytes = 0;
    traced->flops = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        add_seq(traced, &seqs[i], activation_bytes(s));
    }
    const struct work work = begin("attention_plan", 0, 0);
    return end(s, &work, s->trace->inner->attention_plan_set(s->stream, plan, seqs, n_seqs));
}

// ---- ops ----

static status_t traced_embedding(struct backend_stream *s, const struct embedding_args *a)
{
    const double row_bytes = (double)a->n_columns * (double)(dtype_bytes(a->dtype) + sizeof(float));
    const struct work work = begin("embedding", a->n_rows * row_bytes, 0);
    return end(s, &work, s->trace->inner->embedding(s->stream, a));
}

static const struct traced_matrix *find_matrix(const struct bench_trace *t,
                                               const struct matrix *matrix)
{
    for (int32_t i = t->n_matrices - 1; i >= 0; i--) {
        if (t->matrices[i].matrix == matrix) {
            return &t->matrices[i];
        }
    }
    return NULL;
}

static status_t traced_matmul(struct backend_stream *s, const struct matmul_args *a)
{
    char name[48];
    const struct traced_matrix *m = find_matrix(s->trace, a->weight);
    assert(m != NULL);
    snprintf(name, sizeof name, "matmul %dx%d", m->n_out, m->n_in);
    const double rows = a->n_rows;
    const double bytes = m->bytes + rows * m->n_in * activation_bytes(s) +
                         rows * m->n_out * (double)dtype_bytes(a->out_dtype);
    const struct work work = begin(name, bytes, 2 * rows * m->n_in * m->n_out);
    return end(s, &work, s->trace->inner->matmul(s->stream, a));
}

static status_t traced_add_norm(struct backend_stream *s, const struct add_norm_args *a)
{
    double each = sizeof(float); // x is read
    each += a->delta != NULL ? sizeof(float) + activation_bytes(s) : 0;
    each += a->out != NULL ? activation_bytes(s) : 0;
    const struct work work = begin("add_norm", (double)a->n_rows * a->n_columns * each, 0);
    return end(s, &work, s->trace->inner->add_norm(s->stream, a));
}

static status_t traced_rope_append(struct backend_stream *s, const struct rope_append_args *a)
{
    const double activation = activation_bytes(s), kv = (double)dtype_bytes(a->kv_dtype);
    const double of_head =
        2 * a->n_q_heads * activation + 2 * a->n_kv_heads * (activation + kv); // k and v
    const struct work work = begin("rope_append", (double)a->n_rows * a->head_dim * of_head, 0);
    return end(s, &work, s->trace->inner->rope_append(s->stream, a));
}

static status_t traced_attention(struct backend_stream *s, struct attention_plan *plan,
                                 const struct attention_args *a)
{
    const struct traced_plan *traced = find_plan(s->trace, plan);
    assert(traced != NULL);
    const struct work work = begin("attention", traced->bytes, traced->flops);
    return end(s, &work, s->trace->inner->attention(s->stream, plan, a));
}

static status_t traced_attention_merge(struct backend_stream *s,
                                       const struct attention_merge_args *a)
{
    double heads = 0;
    for (int32_t i = 0; i < a->n_sources; i++) {
        heads += a->sources[i].head_end - a->sources[i].head_begin;
    }
    const double each = heads * (a->head_dim + ATTENTION_STATS) * (double)sizeof(float) +
                        a->n_heads * a->head_dim * activation_bytes(s);
    const struct work work = begin("attention_merge", a->n_rows * each, 0);
    return end(s, &work, s->trace->inner->attention_merge(s->stream, a));
}

static status_t traced_swiglu(struct backend_stream *s, const struct swiglu_args *a)
{
    const double bytes = 3.0 * a->n_rows * a->n_columns * activation_bytes(s);
    const struct work work = begin("swiglu", bytes, 0);
    return end(s, &work, s->trace->inner->swiglu(s->stream, a));
}

static status_t traced_ordered_sum(struct backend_stream *s, const struct ordered_sum_args *a)
{
    const double bytes = (a->n_parts + 1.0) * (double)a->n * (double)dtype_bytes(a->dtype);
    const struct work work = begin("ordered_sum", bytes, 0);
    return end(s, &work, s->trace->inner->ordered_sum(s->stream, a));
}

static struct CUstream_st *traced_cuda_stream(struct backend_stream *s)
{
    return s->trace->inner->cuda_stream(s->stream);
}

static status_t traced_sample(struct backend_stream *s, const struct sample_args *a)
{
    const double bytes = (double)a->n_rows * a->n_vocab * (double)sizeof(float);
    const struct work work = begin("sample", bytes, 0);
    return end(s, &work, s->trace->inner->sample(s->stream, a));
}

// ---- the trace ----

/* An entry that backend.h gains is given a traced stream: it must be in the table below. */
_Static_assert(sizeof(struct backend) ==
                   2 * sizeof(const void *) + 2 * sizeof(int) + 40 * sizeof(void (*)(void)),
               "backend.h has other entries than bench_trace.c knows");

status_t bench_trace_new(const struct backend *inner, struct bench_trace **trace_out)
{
    struct bench_trace *t = calloc(1, sizeof *t);
    struct traced_matrix *matrices = calloc(MAX_MATRICES, sizeof *matrices);
    if (t == NULL || matrices == NULL) {
        free(t);
        free(matrices);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a trace");
    }
    t->inner = inner;
    t->matrices = matrices;
    t->table = (struct backend){
        .name = inner->name,
        .activation = inner->activation,
        .host_memory = inner->host_memory,
        .devices = inner->devices,
        .stream_new = inner->stream_new,
        .stream_free = traced_stream_free,
        .stream_sync = traced_stream_sync,
        .mark_new = traced_mark_new,
        .mark_free = inner->mark_free,
        .mark_set = traced_mark_set,
        .mark_passed = inner->mark_passed,
        .mark_wait = inner->mark_wait,
        .mem_alloc = traced_mem_alloc,
        .mem_free = traced_mem_free,
        .host_alloc = traced_host_alloc,
        .host_free = traced_host_free,
        .upload = traced_upload,
        .download = traced_download,
        .zero = traced_zero,
        .copy_strips = traced_copy_strips,
        .matrix_bytes = inner->matrix_bytes,
        .matrix_new = traced_matrix_new,
        .matrix_free = inner->matrix_free,
        .matrix_write = traced_matrix_write,
        .random = traced_random,
        .matmul_tune = inner->matmul_tune != NULL ? traced_matmul_tune : NULL,
        .attention_plan_new = traced_attention_plan_new,
        .attention_plan_free = inner->attention_plan_free,
        .attention_plan_set = traced_attention_plan_set,
        .embedding = traced_embedding,
        .matmul = traced_matmul,
        .add_norm = traced_add_norm,
        .rope_append = traced_rope_append,
        .attention = traced_attention,
        .attention_merge = traced_attention_merge,
        .swiglu = traced_swiglu,
        .ordered_sum = traced_ordered_sum,
        .sample = traced_sample,
        .cuda_stream = inner->cuda_stream != NULL ? traced_cuda_stream : NULL,
        .peers = NULL, // sums between ranks are traced by themselves, not fused with norms
    };
    *trace_out = t;
    return status_ok();
}

void bench_trace_free(struct bench_trace *t)
{
    if (t != NULL) {
        free(t->matrices);
        free(t);
    }
}

const struct backend *bench_trace_backend(const struct bench_trace *t)
{
    return &t->table;
}

struct backend_stream *bench_trace_wrap(struct bench_trace *t, struct backend_stream *stream)
{
    struct backend_stream *s = malloc(sizeof *s);
    if (s == NULL) {
        t->inner->stream_free(stream);
        return NULL;
    }
    *s = (struct backend_stream){.trace = t, .stream = stream};
    return s;
}

void bench_trace_reset(struct bench_trace *t)
{
    t->n_ops = 0;
}

const struct bench_trace_op *bench_trace_ops(const struct bench_trace *t, int32_t *n_out)
{
    *n_out = t->n_ops;
    return t->ops;
}

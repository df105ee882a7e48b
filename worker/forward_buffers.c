#include <stdlib.h>
#include <string.h>

#include "worker/forward.h"

/* The largest of what the layers need of a row, in floats. */
struct widths {
    int64_t queries, keys, gate_up;
    bool split;
};

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static struct widths find_widths(const struct forward_parts *parts)
{
    const struct plan *plan = parts->plan;
    const int32_t rank = parts->comm->rank;
    const int64_t head_dim = parts->spec->head_dim;
    struct widths widths = {1, 1, 1, false};
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        const plan_interval_t q = plan_q_heads(plan, layer, rank);
        const plan_interval_t ffn = plan_ffn_columns(plan, layer, rank);
        widths.queries = larger(widths.queries, (q.end - q.begin) * head_dim);
        widths.gate_up = larger(widths.gate_up, 2 * (int64_t)(ffn.end - ffn.begin));
    }
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const struct kv_class *kv_class = &parts->pool->classes[c];
        widths.split = widths.split || kv_class->split;
        for (int32_t i = 0; i < kv_class->n_runs; i++) {
            const plan_run_t run = kv_class->runs[i];
            widths.keys = larger(widths.keys, (run.head_end - run.head_begin) * head_dim);
        }
    }
    return widths;
}

static status_t alloc_floats(const struct forward *f, int64_t rows, int64_t columns, float **out)
{
    if (rows * columns == 0) {
        return status_ok();
    }
    void *memory;
    TRY(f->parts.backend->mem_alloc((size_t)(rows * columns) * sizeof(float), &memory));
    *out = memory;
    return status_ok();
}

/* Every buffer a row of the step needs. */
static status_t alloc_rows(struct forward *f, int64_t max_rows)
{
    const struct widths widths = find_widths(&f->parts);
    const int64_t n_hidden = f->parts.spec->n_hidden;
    TRY(alloc_floats(f, max_rows, n_hidden, &f->x));
    TRY(alloc_floats(f, max_rows, n_hidden, &f->normed));
    TRY(alloc_floats(f, max_rows, n_hidden, &f->partial));
    TRY(alloc_floats(f, max_rows, widths.queries, &f->q));
    TRY(alloc_floats(f, max_rows, widths.queries, &f->attended));
    TRY(alloc_floats(f, max_rows, widths.keys, &f->k));
    TRY(alloc_floats(f, max_rows, widths.keys, &f->v));
    TRY(alloc_floats(f, max_rows, widths.split ? 2 * widths.queries : 0, &f->by_head));
    return alloc_floats(f, max_rows, widths.gate_up, &f->gate_up);
}

/* Every buffer a sequence of the step needs. */
static status_t alloc_seqs(struct forward *f, int64_t max_seqs)
{
    const struct comm *comm = f->parts.comm;
    const int64_t n_vocab = f->parts.spec->n_vocab;
    const plan_interval_t rows = plan_vocab_rows(f->parts.plan, comm->rank);
    const bool alone = comm->size == 1;
    TRY(alloc_floats(f, max_seqs, comm->rank == 0 ? n_vocab : 0, &f->logits));
    TRY(alloc_floats(f, max_seqs, alone ? 0 : rows.end - rows.begin, &f->slice));
    TRY(alloc_floats(f, max_seqs, !alone && comm->rank == 0 ? n_vocab : 0, &f->gathered));
    f->counts = calloc((size_t)comm->size, sizeof *f->counts);
    f->displs = calloc((size_t)comm->size, sizeof *f->displs);
    f->seqs = calloc((size_t)max_seqs, sizeof *f->seqs);
    if (f->counts == NULL || f->displs == NULL || f->seqs == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %lld sequences",
                             (long long)max_seqs);
    }
    return status_ok();
}

static status_t init(struct forward *f, const struct forward_limits *limits)
{
    const struct model_spec *spec = f->parts.spec;
    const struct rope_scaling scaling = {
        .factor = spec->rope_scaling.factor,
        .low = spec->rope_scaling.low_freq_factor,
        .high = spec->rope_scaling.high_freq_factor,
        .original_positions = spec->rope_scaling.original_positions,
    };
    TRY(rope_table_init_scaled(&f->rope, limits->max_model_len, spec->rotary_dim, spec->rope_theta,
                               &scaling));
    TRY(exchange_init(&f->exchange, f->parts.backend, f->parts.plan, f->parts.comm,
                      limits->max_rows));
    TRY(alloc_rows(f, limits->max_rows));
    return alloc_seqs(f, limits->max_seqs);
}

status_t forward_init(struct forward *forward, const struct forward_parts *parts,
                      const struct forward_limits *limits)
{
    struct forward made = {.parts = *parts};
    const status_t s = init(&made, limits);
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
    if (f->parts.backend == NULL) {
        return;
    }
    float *const buffers[] = {f->x, f->normed,  f->partial, f->q,      f->attended, f->k,
                              f->v, f->by_head, f->gate_up, f->logits, f->slice,    f->gathered};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        f->parts.backend->mem_free(buffers[i]);
    }
    free(f->counts);
    free(f->displs);
    free(f->seqs);
    exchange_destroy(&f->exchange);
    rope_table_destroy(&f->rope);
    memset(f, 0, sizeof *f);
}

/*
 * measure_matmul.c - seconds of the products a rank computes, by shape and number of rows
 *
 * A shape's matrices are as many as do not fit in caches together, and are used in turn. Every rank goes through as many shapes
 * as rank 0 has, so that all are at work beside each other; the plan gives the ranks shapes that differ by a head or a tile.
 */
#include <stdlib.h>

#include "worker/measure_parts.h"

/* Rows that are measured: those a step has, one sequence to many, and a part of a prompt. */
static const int32_t row_counts[] = {1, 2, 4, 8, 16, 32, 64, 512};

enum {
    N_ROW_COUNTS = sizeof row_counts / sizeof row_counts[0],
    MAX_HEAD_ROWS = 64,
    MAX_COPIES = 64
};

struct shape {
    int32_t n_out, n_in;
    int out_dtype;
    int32_t max_rows;
};

struct shapes {
    struct shape list[COST_MAX_SHAPES];
    int32_t n;
};

/* What does not fit in the list is predicted from the shape that is nearest. */
static void add(struct shapes *shapes, struct shape shape)
{
    if (shape.n_out <= 0 || shape.n_in <= 0) {
        return;
    }
    for (int32_t i = 0; i < shapes->n; i++) {
        if (shapes->list[i].n_out == shape.n_out && shapes->list[i].n_in == shape.n_in) {
            return;
        }
    }
    if (shapes->n < COST_MAX_SHAPES) {
        shapes->list[shapes->n++] = shape;
    }
}

static int32_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

static void add_attention(const struct measure_bench *b, int32_t layer, struct shape shape,
                          struct shapes *shapes)
{
    const int32_t rank = group_rank(b->group);
    const int32_t class_index = b->plan->layers[layer].class_index;
    const int32_t q = length(plan_q_heads(b->plan, layer, rank)) * b->plan->head_dim;
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n = plan_kv_runs(b->plan, class_index, rank, runs);
    const bool fused = plan_fuses_kv(b->plan, class_index, rank);
    int32_t beside = 0;
    for (int32_t i = 0; i < n; i++) {
        shape.n_in = b->spec->n_hidden;
        shape.n_out = 2 * (runs[i].head_end - runs[i].head_begin) * b->plan->head_dim;
        beside += fused ? shape.n_out : 0;
        if (!fused) {
            add(shapes, shape);
        }
    }
    shape.n_out = q + (fused ? beside : 0);
    add(shapes, shape);
    shape.n_out = b->spec->n_hidden;
    shape.n_in = q;
    add(shapes, shape);
}

static void collect(const struct measure_bench *b, struct shapes *shapes)
{
    const int32_t rank = group_rank(b->group);
    const int32_t hidden = b->spec->n_hidden;
    const struct shape layer_shape = {.n_in = hidden,
                                      .out_dtype = b->options.backend->activation,
                                      .max_rows = row_counts[N_ROW_COUNTS - 1]};
    struct shape shape = layer_shape;
    shape.n_out = length(plan_vocab_rows(b->plan, rank));
    shape.out_dtype = DTYPE_F32;
    shape.max_rows = MAX_HEAD_ROWS;
    add(shapes, shape);
    for (int32_t layer = 0; layer < b->plan->n_layers; layer++) {
        const int32_t columns = length(plan_ffn_columns(b->plan, layer, rank));
        shape = layer_shape;
        if (b->plan->layers[layer].class_index >= 0) {
            add_attention(b, layer, shape, shapes);
        }
        shape.n_out = 2 * columns;
        add(shapes, shape);
        shape.n_out = length(plan_attention_rows(b->plan, layer, rank));
        add(shapes, shape);
        shape.n_out = length(plan_ffn_rows(b->plan, layer, rank));
        add(shapes, shape);
        shape.n_out = hidden;
        shape.n_in = columns;
        add(shapes, shape);
    }
}

struct work {
    const struct measure_bench *bench;
    struct shape shape;
    struct matrix *matrices[MAX_COPIES];
    int32_t n_matrices;
    float *values; /* one row, host */
    void *x, *out;
    int32_t n_rows;
};

static void close_work(struct work *w)
{
    const struct backend *backend = w->bench->options.backend;
    for (int32_t i = 0; i < w->n_matrices; i++) {
        backend->matrix_free(w->matrices[i]);
    }
    backend->mem_free(w->bench->stream, w->x);
    backend->mem_free(w->bench->stream, w->out);
    free(w->values);
}

/* Small values that are not round: neither zeros nor numbers too small for the fast path. */
static status_t fill(const struct work *w, struct matrix *matrix)
{
    for (int32_t row = 0; row < w->shape.n_out; row++) {
        const struct matrix_write_args args = {.matrix = matrix,
                                               .row_begin = row,
                                               .n_rows = 1,
                                               .src = w->values,
                                               .src_dtype = DTYPE_F32,
                                               .ld_src = w->shape.n_in};
        TRY(w->bench->options.backend->matrix_write(w->bench->stream, &args));
    }
    return status_ok();
}

static status_t open_work(struct work *w)
{
    const struct backend *backend = w->bench->options.backend;
    const struct shape *s = &w->shape;
    const size_t rows = (size_t)s->max_rows;
    TRY(measure_alloc(w->bench, rows * (size_t)s->n_in * dtype_bytes(backend->activation), &w->x));
    TRY(measure_alloc(w->bench, rows * (size_t)s->n_out * dtype_bytes(s->out_dtype), &w->out));
    w->values = calloc((size_t)s->n_in, sizeof *w->values);
    if (w->values == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a row of %d", s->n_in);
    }
    for (int32_t i = 0; i < s->n_in; i++) {
        w->values[i] = 0.013F * (float)(i % 37 - 18);
    }
    const int dtype = w->bench->options.dtype;
    const size_t bytes = (size_t)s->n_out * (size_t)s->n_in * dtype_bytes(dtype);
    const size_t wanted = w->bench->cold_bytes / bytes + 1;
    const int32_t n = wanted < MAX_COPIES ? (int32_t)wanted : MAX_COPIES;
    for (int32_t i = 0; i < n; i++) {
        TRY(backend->matrix_new(w->bench->stream, dtype, s->n_out, s->n_in, &w->matrices[i]));
        w->n_matrices++;
        TRY(fill(w, w->matrices[i]));
    }
    return status_ok();
}

static status_t multiply_once(void *user, int32_t i)
{
    struct work *w = user;
    const struct matmul_args args = {
        .weight = w->matrices[i % w->n_matrices],
        .x = w->x,
        .ld_x = w->shape.n_in,
        .out = w->out,
        .ld_out = w->shape.n_out,
        .n_rows = w->n_rows,
        .out_dtype = w->shape.out_dtype,
    };
    return w->bench->options.backend->matmul(w->bench->stream, &args);
}

/* Where a backend has several ways to multiply it looks for the best one, as an engine does. */
static status_t tune(const struct work *w)
{
    const struct backend *backend = w->bench->options.backend;
    struct matmul_use uses[MAX_COPIES];
    status_t cache = status_ok();
    for (int32_t i = 0; i < w->n_matrices; i++) {
        uses[i] = (struct matmul_use){w->matrices[i], w->shape.out_dtype};
    }
    const struct matmul_tune_args args = {
        .uses = uses, .n_uses = w->n_matrices, .max_rows = w->shape.max_rows};
    return backend->matmul_tune != NULL ? backend->matmul_tune(w->bench->stream, &args, &cache)
                                        : status_ok();
}

static status_t time_shape(struct work *w, struct cost_matmul_rate *rate)
{
    struct cost_rates *rates = w->bench->rates;
    const double size = (double)w->shape.n_out * w->shape.n_in;
    TRY(group_agree(w->bench->group, open_work(w)));
    TRY(group_agree(w->bench->group, tune(w)));
    *rate = (struct cost_matmul_rate){.n_out = w->shape.n_out, .n_in = w->shape.n_in};
    for (int32_t i = 0; i < N_ROW_COUNTS && row_counts[i] <= w->shape.max_rows; i++) {
        double seconds = 1;
        w->n_rows = row_counts[i];
        TRY(measure_seconds(w->bench, multiply_once, w, &seconds));
        rate->rows[rate->n_points] = row_counts[i];
        rate->seconds[rate->n_points++] = seconds;
        const double flops = 2 * row_counts[i] * size / seconds;
        const double read = size * (double)dtype_bytes(w->bench->options.dtype) / seconds;
        rates->flops_per_s = flops > rates->flops_per_s ? flops : rates->flops_per_s;
        rates->read_bytes_per_s = read > rates->read_bytes_per_s ? read : rates->read_bytes_per_s;
    }
    return status_ok();
}

status_t measure_matmuls(const struct measure_bench *bench)
{
    struct shapes shapes = {.n = 0};
    collect(bench, &shapes);
    int32_t n = shapes.n;
    struct comm *comm = group_comm(bench->group);
    if (comm->size > 1) {
        TRY(comm->ops->broadcast(comm, &n, sizeof n, 0));
    }
    for (int32_t i = 0; i < n; i++) {
        // A rank with fewer shapes measures its last one again.
        const int32_t mine = i < shapes.n ? i : shapes.n - 1;
        struct work work = {.bench = bench, .shape = shapes.list[mine]};
        const status_t s = time_shape(&work, &bench->rates->matmuls[mine]);
        close_work(&work);
        TRY(s);
    }
    bench->rates->n_matmuls = shapes.n;
    bench->rates->int8_flops_per_s = bench->rates->flops_per_s;
    return status_ok();
}

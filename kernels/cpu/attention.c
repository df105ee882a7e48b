/*
 * attention.c - causal attention over the paged cache, prefill and decode alike
 *
 * Shapes:   q, out [n_queries, n_kv_heads, group, D_h] (ld) a sequence; K and V planes [unit][block_tokens][D_h], of int8
 *           with scales [unit][block_tokens].
 * Mapping:  a task is up to 32 query rows of one KV head of one sequence, so that a KV row is read once for all heads
 *           of its group and for neighbouring queries; tasks go to threads as those come free.
 * Numerics: attention_rows.h; a row's bits do not depend on the rows beside it, the chunks or the threads.
 * Partial:  the same loops; what would be divided is left as it is, with the maximum and the sum behind it.
 * Cost:     decode reads each K and V element once, for all heads of its group; prefill does 4 D_h flops a visible (query, key, head).
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

struct attention_plan {
    struct attention_shape shape;
    int32_t n_seqs;
    struct attention_seq *seqs; /* [max_seqs] */
    int64_t *tasks;    /* [max_seqs + 1]: those of sequence i are [tasks[i], tasks[i + 1]) */
    int32_t *row_ends; /* [max_rows] of all sequences, where the shape is partial */
};

/* One call of the op. */
struct run {
    const struct attention_plan *plan;
    const struct attention_args *args;
    const struct backend_stream *stream;
};

// ---- plans ----

static status_t check_shape(const struct attention_shape *s)
{
    if (s->head_dim < 1 || s->head_dim > CPU_MAX_HEAD_DIM || s->group < 1 || s->block_tokens < 1 ||
        s->window < 0 || s->max_seqs < 0 || !cpu_has_kv_dtype(s->kv_dtype) ||
        (s->partial && (s->window > 0 || s->max_rows < 0))) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "attention: head dim %d (at most %d), group %d, blocks of %d, window "
                             "%d, %d sequences, kv dtype %d, partial %d",
                             s->head_dim, CPU_MAX_HEAD_DIM, s->group, s->block_tokens, s->window,
                             s->max_seqs, s->kv_dtype, s->partial);
    }
    return status_ok();
}

status_t cpu_attention_plan_new(struct backend_stream *stream, const struct attention_shape *shape,
                                struct attention_plan **plan_out)
{
    (void)stream;
    TRY(check_shape(shape));
    struct attention_plan *plan = calloc(1, sizeof *plan);
    const size_t n = (size_t)shape->max_seqs;
    const size_t n_ends = shape->partial ? (size_t)shape->max_rows : 0;
    if (plan != NULL) {
        plan->shape = *shape;
        plan->seqs = calloc(n > 0 ? n : 1, sizeof *plan->seqs);
        plan->tasks = calloc(n + 1, sizeof *plan->tasks);
        plan->row_ends = calloc(n_ends + 1, sizeof *plan->row_ends);
    }
    if (plan == NULL || plan->seqs == NULL || plan->tasks == NULL || plan->row_ends == NULL) {
        cpu_attention_plan_free(plan);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to plan %d sequences",
                             shape->max_seqs);
    }
    *plan_out = plan;
    return status_ok();
}

void cpu_attention_plan_free(struct attention_plan *plan)
{
    if (plan != NULL) {
        free(plan->seqs);
        free(plan->tasks);
        free(plan->row_ends);
        free(plan);
    }
}

static int64_t tiles_of_head(const struct attention_plan *plan, const struct attention_seq *seq)
{
    const int64_t n_rows = (int64_t)seq->n_queries * plan->shape.group;
    return (n_rows + CPU_MAX_TASK_ROWS - 1) / CPU_MAX_TASK_ROWS;
}

static status_t check_seq(const struct attention_plan *plan, const struct attention_seq *seq,
                          int32_t index)
{
    const int64_t width = (int64_t)seq->n_kv_heads * plan->shape.group * plan->shape.head_dim;
    const bool partial = plan->shape.partial != 0;
    if (seq->n_queries < 0 || seq->kv_tokens < (partial ? 0 : seq->n_queries) ||
        seq->n_kv_heads < 0 || (seq->n_queries > 1 && seq->ld < width) ||
        partial != (seq->row_ends != NULL)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "attention: sequence %d: %d queries, %d tokens, %d heads, stride %lld",
                             index, seq->n_queries, seq->kv_tokens, seq->n_kv_heads,
                             (long long)seq->ld);
    }
    return status_ok();
}

/* The plan's own copy of what the rows of its index-th sequence see, the first_row-th of all and on. */
static status_t keep_row_ends(struct attention_plan *plan, int32_t index, int64_t first_row)
{
    struct attention_seq *seq = &plan->seqs[index];
    int32_t *const ends = plan->row_ends + first_row;
    if (first_row + seq->n_queries > plan->shape.max_rows) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "attention: more than %d rows",
                             plan->shape.max_rows);
    }
    for (int32_t i = 0; i < seq->n_queries; i++) {
        ends[i] = seq->row_ends[i];
        if (ends[i] < (i > 0 ? ends[i - 1] : 0) || ends[i] > seq->kv_tokens) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "attention: sequence %d, row %d sees %d tokens of %d", index, i,
                                 ends[i], seq->kv_tokens);
        }
    }
    seq->row_ends = ends;
    return status_ok();
}

status_t cpu_attention_plan_set(struct backend_stream *stream, struct attention_plan *plan,
                                const struct attention_seq *seqs, int32_t n_seqs)
{
    (void)stream;
    if (n_seqs < 0 || n_seqs > plan->shape.max_seqs) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "attention: %d sequences, the plan is for %d",
                             n_seqs, plan->shape.max_seqs);
    }
    int64_t n_tasks = 0;
    int64_t n_rows = 0;
    for (int32_t i = 0; i < n_seqs; i++) {
        TRY(check_seq(plan, &seqs[i], i));
        plan->seqs[i] = seqs[i];
        if (plan->shape.partial) {
            TRY(keep_row_ends(plan, i, n_rows));
            n_rows += seqs[i].n_queries;
        }
        plan->tasks[i] = n_tasks;
        n_tasks += seqs[i].n_kv_heads * tiles_of_head(plan, &seqs[i]);
    }
    plan->tasks[n_seqs] = n_tasks;
    plan->n_seqs = n_seqs;
    return status_ok();
}

// ---- runs ----

/* The sequence of a task: the last one whose tasks begin at or before it and that has any. */
static int32_t find_seq(const struct attention_plan *plan, int64_t task)
{
    int32_t low = 0;
    int32_t high = plan->n_seqs - 1;
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (plan->tasks[middle] <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static void run_task(void *context, int64_t task, int thread)
{
    const struct run *run = context;
    const struct attention_plan *plan = run->plan;
    const int32_t index = find_seq(plan, task);
    const struct attention_seq *seq = &plan->seqs[index];
    const int64_t n_tiles = tiles_of_head(plan, seq);
    const int64_t in_seq = task - plan->tasks[index];
    // The last rows first: they see the most keys, and long tasks must not come last.
    const int64_t tile = n_tiles - 1 - in_seq % n_tiles;
    const int64_t n_rows = (int64_t)seq->n_queries * plan->shape.group;
    const int64_t begin = tile * CPU_MAX_TASK_ROWS;
    const int64_t end = begin + CPU_MAX_TASK_ROWS;
    struct cpu_scratch *const scratch = &run->stream->scratch[thread];
    const struct cpu_attention_task work = {
        .shape = &plan->shape,
        .args = run->args,
        .seq = seq,
        .head = (int32_t)(in_seq / n_tiles),
        .row_begin = begin,
        .row_end = end < n_rows ? end : n_rows,
        .k_tile = scratch->k_tile,
        .v_tile = scratch->v_tile,
    };
    run->stream->isa->attention(&work);
}

status_t cpu_attention(struct backend_stream *stream, struct attention_plan *plan,
                       const struct attention_args *a)
{
    struct run run = {.plan = plan, .args = a, .stream = stream};
    cpu_team_run(stream->team, plan->tasks[plan->n_seqs], run_task, &run);
    return status_ok();
}

/*
 * attention.c - causal attention over the paged cache, prefill and decode alike
 *
 * Shapes:   q, out ragged [n_queries, n_kv_heads, group, D_h] a sequence; K and V planes [unit][block_tokens][D_h].
 * Mapping:  a task is up to 32 query rows of one KV head of one sequence, so that a KV row is read once for all heads
 *           of its group and for neighbouring queries; tasks go to threads as those come free.
 * Numerics: attention_rows.h; a row's bits do not depend on the rows beside it, the chunks or the threads.
 * Cost:     decode reads each K and V element once; prefill does 4 D_h flops a visible (query, key, head).
 */
#include "kernels/cpu/cpu.h"

struct plan {
    const struct attention_args *args;
    const struct backend_stream *stream;
};

static int64_t tiles_of_head(const struct attention_args *a, const struct attention_seq *seq)
{
    return ((int64_t)seq->n_queries * a->group + CPU_MAX_TASK_ROWS - 1) / CPU_MAX_TASK_ROWS;
}

static int64_t tasks_of_seq(const struct attention_args *a, const struct attention_seq *seq)
{
    return seq->n_kv_heads * tiles_of_head(a, seq);
}

/*
 * Moves the thread's cursor to the sequence of a task. A thread's tasks mostly ascend, so that finding their sequences
 * is one walk over the list, not one a task.
 */
static void seek(const struct attention_args *a, int64_t task, struct cpu_scratch *scratch)
{
    if (scratch->cursor_task > task) {
        scratch->cursor_task = 0;
        scratch->cursor_seq = 0;
    }
    int64_t n = tasks_of_seq(a, &a->seqs[scratch->cursor_seq]);
    while (task - scratch->cursor_task >= n) {
        scratch->cursor_task += n;
        scratch->cursor_seq++;
        n = tasks_of_seq(a, &a->seqs[scratch->cursor_seq]);
    }
}

static void run_task(void *context, int64_t task, int thread)
{
    const struct plan *plan = context;
    struct cpu_scratch *const scratch = &plan->stream->scratch[thread];
    seek(plan->args, task, scratch);

    const struct attention_seq *seq = &plan->args->seqs[scratch->cursor_seq];
    const int64_t n_tiles = tiles_of_head(plan->args, seq);
    const int64_t in_seq = task - scratch->cursor_task;
    // The last rows first: they see the most keys, and long tasks must not come last.
    const int64_t tile = n_tiles - 1 - in_seq % n_tiles;
    const int64_t n_rows = (int64_t)seq->n_queries * plan->args->group;
    const int64_t begin = tile * CPU_MAX_TASK_ROWS;
    const int64_t end = begin + CPU_MAX_TASK_ROWS;
    const struct cpu_attention_task work = {
        .args = plan->args,
        .seq = seq,
        .head = (int32_t)(in_seq / n_tiles),
        .row_begin = begin,
        .row_end = end < n_rows ? end : n_rows,
        .k_tile = scratch->k_tile,
        .v_tile = scratch->v_tile,
    };
    plan->stream->isa->attention(&work);
}

static status_t check(const struct attention_args *a)
{
    if (a->head_dim < 1 || a->head_dim > CPU_MAX_HEAD_DIM || a->group < 1 || a->block_tokens < 1 ||
        a->window < 0 || a->n_seqs < 0 || (a->kv_dtype != DTYPE_F32 && a->kv_dtype != DTYPE_BF16)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "attention: head dim %d (at most %d), group %d, blocks of %d, window %d, kv dtype %d",
            a->head_dim, CPU_MAX_HEAD_DIM, a->group, a->block_tokens, a->window, a->kv_dtype);
    }
    for (int32_t i = 0; i < a->n_seqs; i++) {
        const struct attention_seq *seq = &a->seqs[i];
        if (seq->n_queries < 0 || seq->kv_tokens < seq->n_queries || seq->n_kv_heads < 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "attention: sequence %d: %d queries, %d tokens, %d heads", i,
                                 seq->n_queries, seq->kv_tokens, seq->n_kv_heads);
        }
    }
    return status_ok();
}

status_t cpu_attention(struct backend_stream *stream, const struct attention_args *a)
{
    TRY(check(a));
    int64_t n_tasks = 0;
    for (int32_t i = 0; i < a->n_seqs; i++) {
        n_tasks += tasks_of_seq(a, &a->seqs[i]);
    }
    for (int i = 0; i < stream->n_threads; i++) {
        stream->scratch[i].cursor_task = 0;
        stream->scratch[i].cursor_seq = 0;
    }
    struct plan plan = {.args = a, .stream = stream};
    cpu_team_run(stream->n_threads, n_tasks, run_task, &plan);
    return status_ok();
}

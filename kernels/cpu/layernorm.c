/*
 * layernorm.c - y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b
 *
 * Shapes:   x, y [M, D], w, b [D]; any M, D.
 * Mapping:  tasks of whole rows.
 * Numerics: mean first, then the squares of what is left; both sums in fp32 over 2 * VEC_LANES chains and one tree
 *           (row_ops.h), fixed by D alone.
 * Cost:     memory bound, 2 M D floats; a row is gone through four times, in the first level cache.
 * Source:   Ba, Kiros & Hinton 2016, arXiv:1607.06450.
 */
#include "kernels/cpu/cpu.h"

struct plan {
    const struct layernorm_args *args;
    const struct cpu_isa *isa;
    int64_t rows_per_task;
};

static void run_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct plan *plan = context;
    const struct layernorm_args *a = plan->args;
    const int64_t begin = task * plan->rows_per_task;
    const int64_t end =
        begin + plan->rows_per_task < a->n_rows ? begin + plan->rows_per_task : a->n_rows;
    for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * a->n_columns;
        plan->isa->layernorm(a->x + at, a->weight, a->bias, a->eps, a->n_columns, a->out + at);
    }
}

status_t cpu_layernorm(struct backend_stream *stream, const struct layernorm_args *a)
{
    if (a->n_rows < 0 || a->n_columns < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "layernorm: %d rows of %d columns", a->n_rows,
                             a->n_columns);
    }
    struct plan plan = {.args = a, .isa = stream->isa};
    plan.rows_per_task = cpu_items_per_task(a->n_rows, a->n_columns / 4);
    const int64_t n_tasks = (a->n_rows + plan.rows_per_task - 1) / plan.rows_per_task;
    cpu_team_run(stream->n_threads, n_tasks, run_task, &plan);
    return status_ok();
}

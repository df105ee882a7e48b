/*
 * swiglu.c - out = silu(gate) * up
 *
 * Shapes:   gate_up [M, 2 F] (ld_in): gate, then up; out [M, F] (ld_out); any M, F.
 * Mapping:  tasks of a stretch of columns of one row.
 * Numerics: silu(g) = g / (1 + e^-g), fp32, the exponential of vec_exp.h.
 * Cost:     memory bound for many rows; about a nanosecond for 8 columns otherwise.
 * Source:   Shazeer 2020, arXiv:2002.05202.
 */
#include "kernels/cpu/cpu.h"

enum { COLUMNS = 4096 }; /* of a task */

struct plan {
    const struct swiglu_args *args;
    const struct cpu_isa *isa;
    int64_t tasks_per_row;
};

static void run_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct plan *plan = context;
    const struct swiglu_args *a = plan->args;
    const int64_t row = task / plan->tasks_per_row;
    const int64_t begin = task % plan->tasks_per_row * COLUMNS;
    const int64_t n = a->n_columns - begin < COLUMNS ? a->n_columns - begin : COLUMNS;
    const float *const gate = (const float *)a->gate_up + row * a->ld_in + begin;
    float *const out = (float *)a->out + row * a->ld_out + begin;
    plan->isa->swiglu(gate, gate + a->n_columns, n, out);
}

status_t cpu_swiglu(struct backend_stream *stream, const struct swiglu_args *a)
{
    if (a->n_rows < 0 || a->n_columns < 0 || a->ld_in < 2 * (int64_t)a->n_columns ||
        a->ld_out < a->n_columns) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "swiglu: %d rows of %d columns, strides %lld in and %lld out",
                             a->n_rows, a->n_columns, (long long)a->ld_in, (long long)a->ld_out);
    }
    struct plan plan = {.args = a, .isa = stream->isa};
    plan.tasks_per_row = (a->n_columns + COLUMNS - 1) / COLUMNS;
    const int64_t elements = (int64_t)a->n_rows * a->n_columns;
    cpu_team_run(elements > COLUMNS ? stream->team : NULL, a->n_rows * plan.tasks_per_row, run_task,
                 &plan);
    return status_ok();
}

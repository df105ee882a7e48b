/*
 * rope.c - rotary position embedding, half split, in place
 *
 * Shapes:   x [M, H, D_h] (ld), cos and sin [max_positions, R/2] with R = rotary_dim <= D_h; the pair of column i is
 *           column i + R/2; columns from R on stay as they are.
 * Mapping:  tasks of whole rows.
 * Numerics: each product rounded, then the sum, as the reference implementations do.
 * Cost:     memory bound, 2 M H R floats.
 * Source:   Su et al. 2021, arXiv:2104.09864.
 */
#include "kernels/cpu/cpu.h"

struct plan {
    const struct rope_args *args;
    const struct cpu_isa *isa;
    int64_t rows_per_task;
};

static void run_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct plan *plan = context;
    const struct rope_args *a = plan->args;
    const int32_t half = a->rotary_dim / 2;
    const int64_t begin = task * plan->rows_per_task;
    const int64_t end =
        begin + plan->rows_per_task < a->n_rows ? begin + plan->rows_per_task : a->n_rows;
    for (int64_t row = begin; row < end; row++) {
        const int64_t angle = (int64_t)a->positions[row] * half;
        for (int32_t head = 0; head < a->n_heads; head++) {
            float *const x = a->x + row * a->ld + (int64_t)head * a->head_dim;
            plan->isa->rotate(x, x + half, a->cos + angle, a->sin + angle, half);
        }
    }
}

static status_t check(const struct rope_args *a)
{
    if (a->n_rows < 0 || a->n_heads < 0 || a->rotary_dim < 0 || a->rotary_dim % 2 != 0 ||
        a->rotary_dim > a->head_dim || a->ld < (int64_t)a->n_heads * a->head_dim) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope: %d rows of %d heads of %d, rotary dim %d, stride %lld",
                             a->n_rows, a->n_heads, a->head_dim, a->rotary_dim, (long long)a->ld);
    }
    for (int32_t i = 0; i < a->n_rows; i++) {
        if (a->positions[i] < 0 || a->positions[i] >= a->max_positions) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "rope: position %d of row %d, the table has %d", a->positions[i],
                                 i, a->max_positions);
        }
    }
    return status_ok();
}

status_t cpu_rope(struct backend_stream *stream, const struct rope_args *a)
{
    TRY(check(a));
    struct plan plan = {.args = a, .isa = stream->isa};
    plan.rows_per_task = cpu_items_per_task(a->n_rows, (int64_t)a->n_heads * a->rotary_dim / 8);
    const int64_t n_tasks = (a->n_rows + plan.rows_per_task - 1) / plan.rows_per_task;
    cpu_team_run(stream->n_threads, n_tasks, run_task, &plan);
    return status_ok();
}

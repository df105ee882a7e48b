/*
 * random.c - nearly normal numbers: weights for a model that has none
 *
 * Shapes:   out [n_rows, n_columns], a rectangle of a tensor.
 * Mapping:  a task is a few rows; see random_rows.h for a row.
 * Numerics: the same bits on every instruction set, whatever rectangle an element is asked for in.
 * Cost:     a block of Philox for four numbers, about 1.5 ns each.
 */
#include "kernels/cpu/cpu.h"

/* Of the sum of four bytes: sqrt(4 (256^2 - 1) / 12). */
#define DEVIATION_OF_SUM 147.80054127099805

struct plan {
    const struct random_args *args;
    const struct cpu_isa *isa;
};

static void run_row(void *context, int64_t i)
{
    const struct plan *plan = context;
    const struct random_args *a = plan->args;
    const struct cpu_random_row row = {
        .seed = a->seed,
        .tensor = a->tensor,
        .row = (uint32_t)(a->row_begin + i),
        .unit = (float)(a->deviation / DEVIATION_OF_SUM),
    };
    plan->isa->random_row(&row, a->column_begin, a->column_begin + a->n_columns,
                          a->out + i * a->n_columns);
}

status_t cpu_random(struct backend_stream *stream, const struct random_args *a)
{
    if (a->n_rows < 0 || a->n_columns < 0 || a->row_begin < 0 || a->column_begin < 0 ||
        a->row_begin > INT32_MAX - a->n_rows || a->column_begin > INT32_MAX - a->n_columns) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "random: rows [%d, +%d), columns [%d, +%d)",
                             a->row_begin, a->n_rows, a->column_begin, a->n_columns);
    }
    struct plan plan = {.args = a, .isa = stream->isa};
    cpu_team_rows(stream, a->n_rows, (int64_t)a->n_columns, run_row, &plan);
    return status_ok();
}

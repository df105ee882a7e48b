/*
 * add_norm.c - x += delta; out = norm(x)
 *
 * Shapes:   x, delta [.., D], out [M, D], weight, bias [D]; any M, D; see kernels/backend.h for the rows.
 * Mapping:  tasks of whole rows: a row is added to and normed while it is in the first-level cache.
 * Numerics: sums in fp32 over 2 * VEC_LANES chains and one tree (row_ops.h), fixed by D alone. LayerNorm takes the mean
 *           first, then the squares of what is left.
 * Cost:     memory bound, at most 4 M D floats.
 * Source:   Zhang & Sennrich 2019, arXiv:1910.07467; Ba, Kiros & Hinton 2016, arXiv:1607.06450.
 */
#include "kernels/cpu/cpu.h"

struct plan {
    const struct add_norm_args *args;
    const struct cpu_isa *isa;
};

static void run_row(void *context, int64_t i)
{
    const struct plan *plan = context;
    const struct add_norm_args *a = plan->args;
    const int64_t at = (a->rows != NULL ? a->rows[i] : i) * a->n_columns;
    float *const x = a->x + at;
    if (a->delta != NULL) {
        plan->isa->add(x, (const float *)a->delta + at, a->n_columns);
    }
    if (a->out == NULL) {
        return;
    }
    float *const out = (float *)a->out + i * a->n_columns;
    if (a->kind == NORM_LAYER) {
        plan->isa->layernorm(x, a->weight, a->bias, a->eps, a->n_columns, out);
    } else {
        plan->isa->rmsnorm(x, a->weight, a->eps, a->n_columns, out);
    }
}

status_t cpu_add_norm(struct backend_stream *stream, const struct add_norm_args *a)
{
    const bool is_norm = a->kind == NORM_RMS || (a->kind == NORM_LAYER && a->bias != NULL);
    if (a->n_rows < 0 || a->n_columns < 1 || (a->out != NULL && !is_norm)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "add_norm: %d rows of %d columns, norm %d, bias %p", a->n_rows,
                             a->n_columns, a->kind, (const void *)a->bias);
    }
    struct plan plan = {.args = a, .isa = stream->isa};
    cpu_team_rows(stream, a->n_rows, a->n_columns / 4, run_row, &plan);
    return status_ok();
}

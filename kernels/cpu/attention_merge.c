/*
 * attention_merge.c - rows of attention from the partial rows of several sources
 *
 * Shapes:   sources [M, heads of the source, D_h + ATTENTION_STATS] (ld), out [M, H, D_h] (ld).
 * Mapping:  tasks of whole rows.
 * Numerics: float32, in the order of the sources; a source counts e^(its base - the largest base), so that of one source alone
 *           attention's own bits come out.
 * Cost:     memory bound: every partial row is read once.
 */
#include <math.h>

#include "kernels/cpu/cpu.h"

struct merge {
    const struct attention_merge_args *args;
};

static const float *partial_row(const struct attention_merge_args *a, int32_t source, int64_t row,
                                int32_t head)
{
    const struct attention_source *from = &a->sources[source];
    if (head < from->head_begin || head >= from->head_end) {
        return NULL;
    }
    return from->rows + row * from->ld +
           (int64_t)(head - from->head_begin) * (a->head_dim + ATTENTION_STATS);
}

static void merge_head(const struct attention_merge_args *a, int64_t row, int32_t head)
{
    const int32_t dim = a->head_dim;
    float *const out = (float *)a->out + row * a->ld + (int64_t)head * dim;
    float largest = -INFINITY;
    for (int32_t s = 0; s < a->n_sources; s++) {
        const float *part = partial_row(a, s, row, head);
        largest = part != NULL && part[dim] > largest ? part[dim] : largest;
    }
    for (int32_t d = 0; d < dim; d++) {
        out[d] = 0.0f;
    }
    float sum = 0.0f;
    for (int32_t s = 0; s < a->n_sources; s++) {
        const float *part = partial_row(a, s, row, head);
        if (part == NULL || part[dim] == -INFINITY) {
            continue;
        }
        const float weight = expf(part[dim] - largest); // e^0 exactly
        sum += weight * part[dim + 1];
        for (int32_t d = 0; d < dim; d++) {
            out[d] += weight * part[d];
        }
    }
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (int32_t d = 0; d < dim; d++) {
        out[d] *= inverse;
    }
}

static void run_row(void *context, int64_t row)
{
    const struct attention_merge_args *a = ((const struct merge *)context)->args;
    for (int32_t head = 0; head < a->n_heads; head++) {
        merge_head(a, row, head);
    }
}

status_t cpu_attention_merge(struct backend_stream *stream, const struct attention_merge_args *a)
{
    if (a->n_sources < 0 || a->n_sources > ATTENTION_MAX_SOURCES || a->n_rows < 0 ||
        a->n_heads < 0 || a->head_dim < 1 || a->ld < (int64_t)a->n_heads * a->head_dim) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "attention_merge: %d sources (at most %d), %d rows of %d heads of %d, stride %lld",
            a->n_sources, ATTENTION_MAX_SOURCES, a->n_rows, a->n_heads, a->head_dim,
            (long long)a->ld);
    }
    struct merge merge = {.args = a};
    const int64_t work = (int64_t)a->n_sources * a->n_heads * a->head_dim;
    cpu_team_rows(stream, a->n_rows, work, run_row, &merge);
    return status_ok();
}

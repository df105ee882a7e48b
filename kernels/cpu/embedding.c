/*
 * embedding.c - rows of the embedding table by token id
 *
 * Shapes:   table [row_end - row_begin, D] in any dtype, ids [M], out [M, D] float32.
 * Numerics: exact: float32 holds every bfloat16 and float16.
 * Cost:     memory bound, M D elements.
 */
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

static void look_up(const struct embedding_args *a, int32_t i)
{
    float *const out = a->out + (int64_t)i * a->n_columns;
    int32_t id = a->ids[i];
    if (id < 0 && id >= -a->n_drawn) {
        id = a->drawn[-1 - id];
    }
    if (id < a->row_begin || id >= a->row_end) {
        memset(out, 0, (size_t)a->n_columns * sizeof *out);
        return;
    }
    const size_t row = (size_t)(id - a->row_begin) * (size_t)a->n_columns;
    f32_from_any((const char *)a->table + row * dtype_bytes(a->dtype), a->dtype, a->n_columns, out);
}

status_t cpu_embedding(struct backend_stream *stream, const struct embedding_args *a)
{
    (void)stream; // a few rows are copied sooner than another thread wakes
    if (a->n_rows < 0 || a->n_columns < 1 || a->n_drawn < 0 || a->row_end < a->row_begin ||
        (a->dtype != DTYPE_F32 && a->dtype != DTYPE_F16 && a->dtype != DTYPE_BF16)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "embedding: %d rows of %d columns, table rows [%d, %d)", a->n_rows,
                             a->n_columns, a->row_begin, a->row_end);
    }
    for (int32_t i = 0; i < a->n_rows; i++) {
        look_up(a, i);
    }
    return status_ok();
}

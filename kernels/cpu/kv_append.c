/*
 * kv_append.c - new keys and values into their blocks
 *
 * Shapes:   k, v [M, H_kv, D_h] (ld) -> planes [unit][block_tokens][D_h] in kv_dtype; see kernels/backend.h.
 * Numerics: to bfloat16 with round to nearest even; exact in float32.
 * Cost:     memory bound, 2 M H_kv D_h elements.
 */
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

static void store(const float *src, int32_t n, int kv_dtype, void *plane, int64_t at)
{
    if (kv_dtype == DTYPE_F32) {
        memcpy((float *)plane + at, src, (size_t)n * sizeof *src);
        return;
    }
    uint16_t *const dst = (uint16_t *)plane + at;
    for (int32_t i = 0; i < n; i++) {
        dst[i] = bf16_from_f32(src[i]);
    }
}

static status_t check(const struct kv_append_args *a)
{
    if (a->n_rows < 0 || a->n_heads < 0 || a->head_dim < 1 || a->block_tokens < 1 ||
        a->ld < (int64_t)a->n_heads * a->head_dim ||
        (a->kv_dtype != DTYPE_F32 && a->kv_dtype != DTYPE_BF16)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "kv_append: %d rows of %d heads of %d, blocks of %d, stride %lld, dtype %d", a->n_rows,
            a->n_heads, a->head_dim, a->block_tokens, (long long)a->ld, a->kv_dtype);
    }
    for (int32_t i = 0; i < a->n_rows; i++) {
        if (a->units[i] < 0 || a->offsets[i] < 0 || a->offsets[i] >= a->block_tokens) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "kv_append: row %d goes to unit %lld, offset %d of %d", i,
                                 (long long)a->units[i], a->offsets[i], a->block_tokens);
        }
    }
    return status_ok();
}

status_t cpu_kv_append(struct backend_stream *stream, const struct kv_append_args *a)
{
    (void)stream; // little next to the matmul that made the rows
    TRY(check(a));
    for (int32_t i = 0; i < a->n_rows; i++) {
        for (int32_t head = 0; head < a->n_heads; head++) {
            const int64_t from = i * a->ld + (int64_t)head * a->head_dim;
            const int64_t at =
                ((a->units[i] + head) * a->block_tokens + a->offsets[i]) * a->head_dim;
            store(a->k + from, a->head_dim, a->kv_dtype, a->k_plane, at);
            store(a->v + from, a->head_dim, a->kv_dtype, a->v_plane, at);
        }
    }
    return status_ok();
}

/*
 * rope_append.c - rotary position embedding, half split, in place; then keys and values into their blocks
 *
 * Shapes:   q [M, H, D_h] (ld_q), k, v [M, H_kv, D_h] (ld_kv), cos and sin [max_positions, R/2] with R = rotary_dim <= D_h;
 *           the pair of column i is column i + R/2; columns from R on stay as they are.
 *           Planes [unit][block_tokens][D_h] in kv_dtype, of int8 with scales [unit][block_tokens]; see kernels/kv_format.h.
 * Mapping:  tasks of whole rows.
 * Numerics: each product rounded, then the sum, as the reference implementations do; to bfloat16 with round to nearest
 *           even; to int8 after the turn, a row and its scale at a time.
 * Cost:     memory bound, M (2 H R + 2 H_kv D_h) elements.
 * Source:   Su et al. 2021, arXiv:2104.09864.
 */
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

struct plan {
    const struct rope_append_args *args;
    const struct cpu_isa *isa;
};

static void turn(const struct plan *plan, float *x, int32_t n_heads, int64_t row)
{
    const struct rope_append_args *a = plan->args;
    const int32_t half = a->rotary_dim / 2;
    const int64_t angle = (int64_t)a->positions[row] * half;
    for (int32_t head = 0; head < n_heads; head++) {
        float *const pairs = x + (int64_t)head * a->head_dim;
        plan->isa->rotate(pairs, pairs + half, a->cos + angle, a->sin + angle, half);
    }
}

/* A row, the index-th of the plane. */
static void store(const struct plan *plan, const float *src, void *plane, void *scales,
                  int64_t index)
{
    const int32_t n = plan->args->head_dim;
    if (plan->args->kv_dtype == DTYPE_F32) {
        memcpy((float *)plane + index * n, src, (size_t)n * sizeof *src);
        return;
    }
    if (plan->args->kv_dtype == DTYPE_I8) {
        ((uint16_t *)scales)[index] = plan->isa->quantize(src, n, (int8_t *)plane + index * n);
        return;
    }
    uint16_t *const dst = (uint16_t *)plane + index * n;
    for (int32_t i = 0; i < n; i++) {
        dst[i] = bf16_from_f32(src[i]);
    }
}

static void run_row(void *context, int64_t row)
{
    const struct plan *plan = context;
    const struct rope_append_args *a = plan->args;
    turn(plan, (float *)a->q + row * a->ld_q, a->n_q_heads, row);
    if (a->n_kv_heads == 0 || a->units[row] < 0) {
        return;
    }
    float *const k = (float *)a->k + row * a->ld_kv;
    const float *const v = (const float *)a->v + row * a->ld_kv;
    turn(plan, k, a->n_kv_heads, row);
    for (int32_t head = 0; head < a->n_kv_heads; head++) {
        const int64_t from = (int64_t)head * a->head_dim;
        const int64_t unit = a->units[row] + head * a->head_units;
        const int64_t index = unit * a->block_tokens + a->offsets[row];
        store(plan, k + from, a->k_plane, a->k_scales, index);
        store(plan, v + from, a->v_plane, a->v_scales, index);
    }
}

static status_t check_shape(const struct rope_append_args *a)
{
    if (a->n_rows < 0 || a->n_q_heads < 0 || a->n_kv_heads < 0 || a->head_dim < 1 ||
        a->rotary_dim < 0 || a->rotary_dim % 2 != 0 || a->rotary_dim > a->head_dim ||
        a->ld_q < (int64_t)a->n_q_heads * a->head_dim ||
        a->ld_kv < (int64_t)a->n_kv_heads * a->head_dim) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope_append: %d rows of %d and %d heads of %d, rotary dim %d, "
                             "strides %lld and %lld",
                             a->n_rows, a->n_q_heads, a->n_kv_heads, a->head_dim, a->rotary_dim,
                             (long long)a->ld_q, (long long)a->ld_kv);
    }
    if (a->n_kv_heads > 0 &&
        (a->block_tokens < 1 || a->head_units < 1 || !cpu_has_kv_dtype(a->kv_dtype))) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "rope_append: blocks of %d, heads %lld units apart, dtype %d",
                             a->block_tokens, (long long)a->head_units, a->kv_dtype);
    }
    return status_ok();
}

static status_t check_rows(const struct rope_append_args *a)
{
    for (int32_t i = 0; i < a->n_rows; i++) {
        if (a->positions[i] < 0 || a->positions[i] >= a->max_positions) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "rope_append: position %d of row %d, the table has %d",
                                 a->positions[i], i, a->max_positions);
        }
        if (a->n_kv_heads > 0 &&
            (a->units[i] < -1 || a->offsets[i] < 0 || a->offsets[i] >= a->block_tokens)) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "rope_append: row %d goes to unit %lld, offset %d of %d", i,
                                 (long long)a->units[i], a->offsets[i], a->block_tokens);
        }
    }
    return status_ok();
}

status_t cpu_rope_append(struct backend_stream *stream, const struct rope_append_args *a)
{
    TRY(check_shape(a));
    TRY(check_rows(a));
    struct plan plan = {.args = a, .isa = stream->isa};
    const int64_t turned = (int64_t)(a->n_q_heads + a->n_kv_heads) * a->rotary_dim / 8;
    const int64_t stored = (int64_t)a->n_kv_heads * a->head_dim / 2;
    cpu_team_rows(stream, a->n_rows, turned + stored, run_row, &plan);
    return status_ok();
}

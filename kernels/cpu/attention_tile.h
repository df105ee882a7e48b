/*
 * attention_tile.h - a few keys and values of the cache, as float32
 *
 * What:      a template; include after a vec_*.h. Rows of float32 are used where they lie; of other dtypes, the tile is widened
 *            into the task's scratch, which stays in the first-level cache.
 * Numerics:  exact: a row of int8 becomes the integers it is stored as, its scale beside it (kernels/kv_format.h).
 */
#pragma once

#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/unroll.h"

/* A tile of keys: token 0 stands at position first. */
struct kv_tile {
    const float *k, *v; /* [n_tokens, head_dim] */
    int64_t first;
    int32_t n_tokens;
    bool has_scales;                     /* of int8 */
    float score_scale[CPU_TILE_TOKENS];  /* softmax's, times the key's own */
    float weight_scale[CPU_TILE_TOKENS]; /* the value's own, where it has one */
};

/* Of a loop that does little: more of them save the counting. */
#define WIDEN_LANES ((int64_t)8 * VEC_LANES)

static void widen_bf16(const uint16_t *src, int64_t n, float *dst)
{
    int64_t i = 0;
    for (; i + WIDEN_LANES <= n; i += WIDEN_LANES) {
        UNROLL
        for (int64_t j = 0; j < WIDEN_LANES; j += VEC_LANES) {
            vf_store(dst + i + j, vf_load_bf16(src + i + j));
        }
    }
    for (; i < n; i++) {
        const uint32_t bits = (uint32_t)src[i] << 16;
        memcpy(dst + i, &bits, sizeof bits);
    }
}

static void widen_i8(const int8_t *src, int64_t n, float *dst)
{
    int64_t i = 0;
    for (; i + WIDEN_LANES <= n; i += WIDEN_LANES) {
        UNROLL
        for (int64_t j = 0; j < WIDEN_LANES; j += VEC_LANES) {
            vf_store(dst + i + j, vf_load_i8(src + i + j));
        }
    }
    for (; i < n; i++) {
        dst[i] = (float)src[i];
    }
}

/* Values and scales of a tile of int8 whose first row is the row-th of the planes. */
static void load_i8(const struct cpu_attention_task *task, struct kv_tile *tile, int64_t row)
{
    const struct attention_args *args = task->args;
    const int64_t dim = task->shape->head_dim;
    const int64_t n = tile->n_tokens * dim;
    widen_i8((const int8_t *)args->k_plane + row * dim, n, task->k_tile);
    widen_i8((const int8_t *)args->v_plane + row * dim, n, task->v_tile);
    const uint16_t *const keys = (const uint16_t *)args->k_scales + row;
    const uint16_t *const values = (const uint16_t *)args->v_scales + row;
    for (int32_t t = 0; t < tile->n_tokens; t++) {
        tile->score_scale[t] *= f32_from_bf16(keys[t]);
        tile->weight_scale[t] = f32_from_bf16(values[t]);
    }
    tile->has_scales = true;
}

/* The tile of n tokens that begins at `position`; widened into the task's scratch unless it is float32. */
static struct kv_tile load_tile(const struct cpu_attention_task *task, int64_t position, int32_t n)
{
    const struct attention_shape *shape = task->shape;
    const struct attention_args *args = task->args;
    const int32_t *blocks = args->blocks + task->seq->first_block;
    const int64_t block = blocks[position / shape->block_tokens];
    const int64_t unit = task->seq->unit_base + block * task->seq->n_kv_heads + task->head;
    const int64_t token = unit * shape->block_tokens + position % shape->block_tokens;
    const int64_t at = token * shape->head_dim;
    struct kv_tile tile = {.first = position, .n_tokens = n};
    for (int32_t t = 0; t < n; t++) {
        tile.score_scale[t] = shape->scale;
    }
    if (shape->kv_dtype == DTYPE_F32) {
        tile.k = (const float *)args->k_plane + at;
        tile.v = (const float *)args->v_plane + at;
        return tile;
    }
    tile.k = task->k_tile;
    tile.v = task->v_tile;
    if (shape->kv_dtype == DTYPE_I8) {
        load_i8(task, &tile, token);
        return tile;
    }
    const int64_t n_elements = (int64_t)n * shape->head_dim;
    widen_bf16((const uint16_t *)args->k_plane + at, n_elements, task->k_tile);
    widen_bf16((const uint16_t *)args->v_plane + at, n_elements, task->v_tile);
    return tile;
}

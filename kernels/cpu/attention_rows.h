/*
 * attention_rows.h - softmax(q k^T scale) v for a few query rows of one KV head
 *
 * What:      a template; include after a vec_*.h and vec_exp.h. Keys are visited in tiles of at most 16, which lie
 *            in one block and start at a multiple of 16 within it, in ascending order; a running maximum and sum
 *            let each tile be folded in as it comes (online softmax).
 *
 *              tile t of keys     scores [rows, 16]     p = e^(s - max)      out = out * corr + p v
 *              -inf outside what a row may see: such keys add exactly 0 to its sum and are left out of p v
 *
 *            Keys and values of int8 are used as the integers they are; a key's scale goes to its score and a value's to its
 *            weight, once for each row of the task.
 *
 * Invariant: tiles are cut by position alone and each row's sums have one order (a dot over head_dim lane by lane, then
 *            vf_sum; p v over ascending keys), so that a row's bits are the same whatever rows share its task:
 *            whole prompts, chunks and single tokens agree.
 * Cost:      a tile of K and V is read (and widened from bfloat16 or int8) once for all rows of the task.
 * Source:    Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135.
 */
#pragma once

#include <math.h>
#include <string.h>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/unroll.h"

/* What the steps of one task share. */
struct attention_rows {
    const struct cpu_attention_task *task;
    int32_t head_dim;
    int32_t n_rows;
    const float *q[CPU_MAX_TASK_ROWS];
    float *out[CPU_MAX_TASK_ROWS];
    float max[CPU_MAX_TASK_ROWS];  /* of the scores so far */
    float sum[CPU_MAX_TASK_ROWS];  /* of e^(score - max) so far */
    float corr[CPU_MAX_TASK_ROWS]; /* what the current tile scales out by */
    float p[CPU_MAX_TASK_ROWS]
           [CPU_TILE_TOKENS]; /* scores, then e^(score - max), of the current tile */
};

// ---- scores ----

/* rows and tokens are constants in every caller. */
ALWAYS_INLINE void dot_block(struct attention_rows *a, int32_t row, const struct kv_tile *tile,
                             int32_t token, int rows, int tokens)
{
    const int32_t dim = a->head_dim;
    const float *const k = tile->k + (int64_t)token * dim;
    vf acc[VEC_DOT_ROWS][VEC_DOT_TOKENS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int t = 0; t < tokens; t++) {
            acc[r][t] = vf_zero();
        }
    }
    int32_t d = 0;
    for (; d + VEC_LANES <= dim; d += VEC_LANES) {
        vf key[VEC_DOT_TOKENS];
        UNROLL
        for (int t = 0; t < tokens; t++) {
            key[t] = vf_load(k + (ptrdiff_t)t * dim + d);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            const vf q = vf_load(a->q[row + r] + d);
            UNROLL
            for (int t = 0; t < tokens; t++) {
                acc[r][t] = vf_fma(q, key[t], acc[r][t]);
            }
        }
    }
    const float *const scale = tile->score_scale + token;
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int t = 0; t < tokens; t++) {
            if (d < dim) {
                const vf q = vf_load_n(a->q[row + r] + d, dim - d);
                acc[r][t] = vf_fma(q, vf_load_n(k + (ptrdiff_t)t * dim + d, dim - d), acc[r][t]);
            }
            a->p[row + r][token + t] = vf_sum(acc[r][t]) * scale[t];
        }
    }
}

static void dot_rows(struct attention_rows *a, int32_t row, const struct kv_tile *tile, int32_t lo,
                     int32_t hi)
{
    int32_t t = lo;
    for (; t + VEC_DOT_TOKENS <= hi; t += VEC_DOT_TOKENS) {
        dot_block(a, row, tile, t, VEC_DOT_ROWS, VEC_DOT_TOKENS);
    }
    for (; t < hi; t++) {
        dot_block(a, row, tile, t, VEC_DOT_ROWS, 1);
    }
}

static void dot_row(struct attention_rows *a, int32_t row, const struct kv_tile *tile, int32_t lo,
                    int32_t hi)
{
    int32_t t = lo;
    for (; t + VEC_DOT_TOKENS <= hi; t += VEC_DOT_TOKENS) {
        dot_block(a, row, tile, t, 1, VEC_DOT_TOKENS);
    }
    for (; t < hi; t++) {
        dot_block(a, row, tile, t, 1, 1);
    }
}

// ---- softmax ----

/* Folds the scores of one row into its maximum and sum, and turns them into weights. */
static void softmax_row(struct attention_rows *a, int32_t row)
{
    float *const p = a->p[row];
    vf largest = vf_load(p);
    for (int i = VEC_LANES; i < CPU_TILE_TOKENS; i += VEC_LANES) {
        largest = vf_max(vf_load(p + i), largest);
    }
    const float tile_max = vf_largest(largest);
    const float old = a->max[row];
    const float now = tile_max > old ? tile_max : old;

    vf sum = vf_zero();
    for (int i = 0; i < CPU_TILE_TOKENS; i += VEC_LANES) {
        const vf e = vf_exp(vf_sub(vf_load(p + i), vf_set1(now)));
        vf_store(p + i, e);
        sum = vf_add(sum, e);
    }
    float corr = 1.0f; // e^0 exactly
    if (now > old) {
        float lane[VEC_LANES];
        vf_store(lane, vf_exp(vf_set1(old - now)));
        corr = lane[0];
    }
    a->max[row] = now;
    a->corr[row] = corr;
    a->sum[row] = a->sum[row] * corr + vf_sum(sum);
}

/* Weights of values as they are into weights of the integers they are stored as; the sum has been taken. */
static void scale_weights(struct attention_rows *a, int32_t row, const struct kv_tile *tile)
{
    float *const p = a->p[row];
    for (int i = 0; i < CPU_TILE_TOKENS; i += VEC_LANES) {
        vf_store(p + i, vf_mul(vf_load(p + i), vf_load(tile->weight_scale + i)));
    }
}

// ---- p v ----

enum { PV_ROWS = 4, PV_VECS = 2 };

/* Keys [lo, hi) of a tile, columns from `column`. */
struct pv_range {
    int32_t lo, hi;
    int32_t column;
};

/* out = out * corr + sum over the keys of p v; rows and vecs are constants in every caller. */
ALWAYS_INLINE void pv_block(const struct attention_rows *a, int32_t row, const struct kv_tile *tile,
                            struct pv_range at, int rows, int vecs)
{
    vf acc[PV_ROWS][PV_VECS];
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < vecs; i++) {
            const vf out = vf_load(a->out[row + r] + at.column + (ptrdiff_t)i * VEC_LANES);
            acc[r][i] = vf_mul(out, vf_set1(a->corr[row + r]));
        }
    }
    const float *v = tile->v + (int64_t)at.lo * a->head_dim + at.column;
    for (int32_t t = at.lo; t < at.hi; t++, v += a->head_dim) {
        vf value[PV_VECS];
        UNROLL
        for (int i = 0; i < vecs; i++) {
            value[i] = vf_load(v + (ptrdiff_t)i * VEC_LANES);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            const vf p = vf_set1(a->p[row + r][t]);
            UNROLL
            for (int i = 0; i < vecs; i++) {
                acc[r][i] = vf_fma(p, value[i], acc[r][i]);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int i = 0; i < vecs; i++) {
            vf_store(a->out[row + r] + at.column + (ptrdiff_t)i * VEC_LANES, acc[r][i]);
        }
    }
}

/* The last columns, fewer than a vector, of one row: the same operations. */
static void pv_rest(const struct attention_rows *a, int32_t row, const struct kv_tile *tile,
                    struct pv_range at)
{
    const int n = a->head_dim - at.column;
    float *const out = a->out[row] + at.column;
    vf acc = vf_mul(vf_load_n(out, n), vf_set1(a->corr[row]));
    for (int32_t t = at.lo; t < at.hi; t++) {
        const vf value = vf_load_n(tile->v + (int64_t)t * a->head_dim + at.column, n);
        acc = vf_fma(vf_set1(a->p[row][t]), value, acc);
    }
    vf_store_n(out, acc, n);
}

static void pv_rows(const struct attention_rows *a, int32_t row, const struct kv_tile *tile,
                    struct pv_range at)
{
    for (; at.column + PV_VECS * VEC_LANES <= a->head_dim; at.column += PV_VECS * VEC_LANES) {
        pv_block(a, row, tile, at, PV_ROWS, PV_VECS);
    }
    for (; at.column + VEC_LANES <= a->head_dim; at.column += VEC_LANES) {
        pv_block(a, row, tile, at, PV_ROWS, 1);
    }
    for (int r = 0; r < PV_ROWS && at.column < a->head_dim; r++) {
        pv_rest(a, row + r, tile, at);
    }
}

static void pv_row(const struct attention_rows *a, int32_t row, const struct kv_tile *tile,
                   struct pv_range at)
{
    for (; at.column + PV_VECS * VEC_LANES <= a->head_dim; at.column += PV_VECS * VEC_LANES) {
        pv_block(a, row, tile, at, 1, PV_VECS);
    }
    for (; at.column + VEC_LANES <= a->head_dim; at.column += VEC_LANES) {
        pv_block(a, row, tile, at, 1, 1);
    }
    if (at.column < a->head_dim) {
        pv_rest(a, row, tile, at);
    }
}

// ---- a tile, a task ----

/* Rows [begin, end) see exactly the keys [lo, hi) of the tile. */
static void fold_tile(struct attention_rows *a, const int32_t rows[2], const struct kv_tile *tile,
                      int32_t lo, int32_t hi)
{
    for (int32_t row = rows[0]; row < rows[1]; row++) {
        for (int t = 0; t < CPU_TILE_TOKENS; t++) {
            a->p[row][t] = -INFINITY;
        }
    }
    int32_t row = rows[0];
    for (; row + VEC_DOT_ROWS <= rows[1]; row += VEC_DOT_ROWS) {
        dot_rows(a, row, tile, lo, hi);
    }
    for (; row < rows[1]; row++) {
        dot_row(a, row, tile, lo, hi);
    }
    for (row = rows[0]; row < rows[1]; row++) {
        softmax_row(a, row);
        if (tile->has_scales) {
            scale_weights(a, row, tile);
        }
    }
    const struct pv_range at = {.lo = lo, .hi = hi, .column = 0};
    for (row = rows[0]; row + PV_ROWS <= rows[1]; row += PV_ROWS) {
        pv_rows(a, row, tile, at);
    }
    for (; row < rows[1]; row++) {
        pv_row(a, row, tile, at);
    }
}

/* The positions a query sees: (position - window, position]. */
static int64_t first_seen(const struct cpu_attention_task *task, int64_t position)
{
    const int64_t window = task->shape->window;
    return window > 0 && position + 1 > window ? position + 1 - window : 0;
}

/* Of a part of the cache: among the tokens that are there, the last one it sees; -1: none. */
static int64_t query_position(const struct cpu_attention_task *task, int64_t query)
{
    if (task->seq->row_ends != NULL) {
        return (int64_t)task->seq->row_ends[query] - 1;
    }
    return (int64_t)task->seq->kv_tokens - task->seq->n_queries + query;
}

/* One tile for all rows of the task, each query with what it may see of it. */
static void visit_tile(struct attention_rows *a, const struct kv_tile *tile)
{
    const struct cpu_attention_task *task = a->task;
    const int64_t group = task->shape->group;
    const int64_t first_query = task->row_begin / group;
    const int64_t last_query = (task->row_end - 1) / group;
    const int64_t tile_end = tile->first + tile->n_tokens;
    if (tile_end - 1 <= query_position(task, first_query) &&
        tile->first >= first_seen(task, query_position(task, last_query))) {
        const int32_t all[2] = {0, a->n_rows};
        fold_tile(a, all, tile, 0, tile->n_tokens);
        return;
    }
    for (int64_t query = first_query; query <= last_query; query++) {
        const int64_t position = query_position(task, query);
        const int64_t begin = first_seen(task, position);
        const int64_t lo = begin > tile->first ? begin - tile->first : 0;
        const int64_t hi = position + 1 < tile_end ? position + 1 - tile->first : tile->n_tokens;
        const int64_t row_lo = query * group - task->row_begin;
        const int64_t row_hi = row_lo + group;
        const int32_t rows[2] = {(int32_t)(row_lo > 0 ? row_lo : 0),
                                 (int32_t)(row_hi < a->n_rows ? row_hi : a->n_rows)};
        if (lo < hi) {
            fold_tile(a, rows, tile, (int32_t)lo, (int32_t)hi);
        }
    }
}

static void attention_begin(struct attention_rows *a, const struct cpu_attention_task *task)
{
    const int64_t head_dim = task->shape->head_dim;
    const int64_t group = task->shape->group;
    a->task = task;
    a->head_dim = (int32_t)head_dim;
    a->n_rows = (int32_t)(task->row_end - task->row_begin);
    for (int32_t i = 0; i < a->n_rows; i++) {
        const int64_t query = (task->row_begin + i) / group;
        const int64_t head = task->head * group + (task->row_begin + i) % group;
        const int64_t at = task->seq->q_offset + query * task->seq->ld + head * head_dim;
        const int64_t part_at =
            task->seq->out_offset + query * task->seq->ld_out + head * (head_dim + ATTENTION_STATS);
        a->q[i] = (const float *)task->args->q + at;
        a->out[i] = (float *)task->args->out + (task->shape->partial ? part_at : at);
        a->max[i] = -INFINITY;
        a->sum[i] = 0.0f;
        memset(a->out[i], 0, (size_t)head_dim * sizeof(float));
    }
}

static void finish_row(const struct attention_rows *a, int32_t row)
{
    float *const out = a->out[row];
    if (a->task->shape->partial) {
        const float stats[ATTENTION_STATS] = {a->max[row], a->sum[row]};
        memcpy(out + a->head_dim, stats, sizeof stats);
        return;
    }
    const float inverse = 1.0f / a->sum[row];
    for (int32_t d = 0; d < a->head_dim; d++) {
        out[d] *= inverse;
    }
}

static void attention_rows(const struct cpu_attention_task *task)
{
    struct attention_rows a;
    attention_begin(&a, task);

    const int64_t group = task->shape->group;
    const int32_t block_tokens = task->shape->block_tokens;
    const int64_t end = query_position(task, (task->row_end - 1) / group) + 1;
    int64_t position = first_seen(task, query_position(task, task->row_begin / group));
    position -= position % block_tokens % CPU_TILE_TOKENS; // back to the start of its tile
    while (position < end) {
        const int64_t in_block = block_tokens - position % block_tokens;
        int64_t n = in_block < CPU_TILE_TOKENS ? in_block : CPU_TILE_TOKENS;
        n = n < end - position ? n : end - position;
        const struct kv_tile tile = load_tile(task, position, (int32_t)n);
        visit_tile(&a, &tile);
        position += n;
    }
    for (int32_t row = 0; row < a.n_rows; row++) {
        finish_row(&a, row);
    }
}

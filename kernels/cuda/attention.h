/*
 * attention.h - what attention.c hands to the kernels
 *
 * What:      the arguments of both kernels, and their launchers. A kernel's grid is fixed; how much there is to do, it
 *            reads from the plan in device memory, so that a launch recorded in a graph stays right for any step.
 * Layout:    the plan in device memory, 16-byte aligned parts one behind the other:
 *
 *              [ header | attention_seq n_seqs | cuda_attention_unit n_units | row_ends n_rows, of a partial shape ]
 *
 *            The sequences' row_ends point there.
 *            partial [rows, head_dim] and stats [rows, 2] (maximum in powers of two, sum) hold what units of a split found.
 * Ownership: all pointers are device memory of the plan, except q, out, planes and blocks.
 */
#pragma once

#include "kernels/cuda/attention_split.h"
#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_attention_header {
    struct cuda_attention_work work;
    int64_t units_at; /* bytes from the header */
    int64_t unused;
};

struct cuda_attention_view {
    const struct cuda_attention_header *plan;
    const void *q;
    void *out;
    const void *k_plane, *v_plane;
    const void *k_scales, *v_scales; /* of int8 */
    const int32_t *blocks;
    float *partial;
    float *stats;
    uint32_t *counters; /* all 0 between launches */
    float scale_log2;   /* scale / ln 2 */
    int32_t group, window, block_tokens;
    int32_t leaves_parts; /* out has partial rows; base is in powers of two */
};

/* A kernel for one dtype of the cache, head dimension and number of rows. */
struct cuda_attention_kernel {
    int kv_dtype;
    int32_t kind, head_dim, rows; /* rows of a unit */
    int32_t n_threads;
    size_t shared_bytes;
    const void *entry; /* for the runtime's questions about it */
    void (*launch)(const struct cuda_attention_view *view, int32_t grid, cudaStream_t stream);
};

/* The kernel, or NULL: there is none for that dtype or head dimension. */
const struct cuda_attention_kernel *cuda_attention_decode_kernel(int kv_dtype, int32_t head_dim,
                                                                 int32_t rows);
const struct cuda_attention_kernel *cuda_attention_prefill_kernel(int kv_dtype, int32_t head_dim);

#ifdef __cplusplus
}
#endif

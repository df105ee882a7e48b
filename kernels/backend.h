/*
 * backend.h - the table of operations a device offers
 *
 * What:      everything `forward` needs from a device, and nothing about models, ranks or requests.
 *            Activations are float32 on the CPU backend; weights and KV keep their stored dtype.
 * Layout:    activations are row major, [rows, columns] with a leading dimension `ld` in elements.
 *            Weights are [n_out, n_in] in files and opaque (struct matrix) once packed: y = x W^T.
 *            K and V are separate planes, one pair a layer: [unit][block_tokens][head_dim]. A unit is one
 *            KV head of one block. Block b of a sequence whose lane holds n heads here is the n units
 *            unit_base + b*n .. + n-1, in ascending order of the heads.
 * Ownership: args structs and what they point to are borrowed for the duration of the op.
 * Thread:    one stream is used by one thread; different streams by different threads.
 * Errors:    INVALID_ARGUMENT for shapes the op cannot take (our bug), RESOURCE_EXHAUSTED for memory.
 * Invariant: batch invariance: the bits of an output row depend on that row's inputs alone, not on how many
 *            rows are computed with it or in how many calls. Each op has one accumulation order.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

struct backend_stream; /* an order of execution: the CPU's is a thread team, CUDA's a stream */
struct matrix;         /* packed weights on the device */

/* out[i, :] = table[ids[i] - row_begin, :], or zeros where ids[i] is not in [row_begin, row_end). */
struct embedding_args {
    const void *table; /* [row_end - row_begin, n_columns], dtype */
    int dtype;
    int32_t row_begin, row_end;
    int32_t n_columns;
    const int32_t *ids; /* [n_rows] */
    int32_t n_rows;
    float *out; /* [n_rows, n_columns] */
};

/* out[m, n] = sum_k x[m, k] * w[n, k]; fp32 accumulation in an order fixed by n_in alone. */
struct matmul_args {
    const struct matrix *weight;
    const float *x; /* [n_rows, n_in], ld_x */
    int64_t ld_x;
    int32_t n_rows;
    float *out; /* [n_rows, n_out], ld_out */
    int64_t ld_out;
};

/* out = x / sqrt(mean(x^2) + eps) * weight, row by row; out may be x. */
struct rmsnorm_args {
    const float *x, *weight; /* [n_rows, n_columns], [n_columns] */
    float eps;
    int32_t n_rows, n_columns;
    float *out;
};

/* out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias, row by row; out may be x. */
struct layernorm_args {
    const float *x, *weight, *bias; /* [n_rows, n_columns], [n_columns] twice */
    float eps;
    int32_t n_rows, n_columns;
    float *out;
};

/* In place on x [n_rows, n_heads, head_dim] (ld): pairs (i, i + rotary_dim/2) turned by the row's position. */
struct rope_args {
    float *x;
    int64_t ld;
    int32_t n_rows, n_heads, head_dim, rotary_dim;
    const int32_t *positions; /* [n_rows] */
    const float *cos, *sin;   /* [max_positions, rotary_dim/2] */
    int32_t max_positions;
};

/* Stores rows of k and v ([n_rows, n_heads, head_dim], ld) into the planes. */
struct kv_append_args {
    const float *k, *v;
    int64_t ld;
    int32_t n_rows, n_heads, head_dim, block_tokens;
    const int64_t *units; /* [n_rows]: unit of the row's first head; head j goes to units[i] + j */
    const int32_t *offsets; /* [n_rows]: token within the block */
    void *k_plane, *v_plane;
    int kv_dtype; /* DTYPE_F32 or DTYPE_BF16 */
};

struct attention_seq {
    int32_t n_queries;     /* tokens computed now; they are the last ones of kv_tokens */
    int32_t kv_tokens;     /* tokens in the cache, these included */
    const int32_t *blocks; /* [ceil(kv_tokens / block_tokens)] */
    int64_t unit_base;
    int32_t n_kv_heads; /* heads of this sequence held here; 0: nothing to do */
    int64_t
        q_offset; /* element of its first row in q and out; a row is n_kv_heads*group*head_dim */
};

/*
 * Causal softmax(q k^T scale) v over the paged cache, prefill and decode alike. Query t of a sequence stands
 * at position kv_tokens - n_queries + t and sees positions (position - window, position] (window 0: all before).
 */
struct attention_args {
    const float *q; /* ragged, see attention_seq.q_offset; row = [n_kv_heads, group, head_dim] */
    float *out;     /* same layout */
    const void *k_plane, *v_plane;
    int kv_dtype;
    int32_t head_dim, group, block_tokens, window;
    float scale;
    const struct attention_seq *seqs;
    int32_t n_seqs;
};

/* out[i, j] = silu(gate[i, j]) * up[i, j]; out may be gate. */
struct swiglu_args {
    const float *gate, *up;
    int64_t ld_in;
    int32_t n_rows, n_columns;
    float *out;
    int64_t ld_out;
};

/* x[i] += y[i], n elements. */
struct add_args {
    float *x;
    const float *y;
    int64_t n;
};

/* Rows [row_begin, row_begin + n_rows) of a matrix, from src in host memory at any alignment. */
struct matrix_write_args {
    struct matrix *matrix;
    int32_t row_begin, n_rows;
    const void *src; /* [n_rows, n_in], ld_src elements */
    int src_dtype;
    int64_t ld_src;
};

/*
 * out[i, j] = deviation * z, z a function of (seed, tensor, row_begin + i, column_begin + j) alone: nearly normal (the
 * sum of four uniform bytes), mean 0, deviation 1, never beyond 3.5.
 */
struct random_args {
    uint64_t seed;
    uint64_t tensor; /* which sequence of the seed */
    int32_t row_begin, n_rows, column_begin, n_columns;
    double deviation;
    float *out; /* [n_rows, n_columns], host memory */
};

#define SAMPLE_MAX_TOP 20

/*
 * One token from one row of logits. Order as vLLM documents it: banned ids to -inf, temperature, min_p, top_k, top_p.
 * temperature 0 takes the largest logit (lowest id on ties). The draw is Philox keyed by (seed, sample, position).
 */
struct sample_row {
    const float *logits; /* [n_vocab] */
    float temperature;   /* >= 0 */
    int32_t top_k;       /* 0: off */
    float top_p;         /* (0, 1] */
    float min_p;         /* [0, 1) */
    uint64_t seed;
    uint32_t sample;   /* which of n */
    uint32_t position; /* index of the token being drawn in its sequence */
    const int32_t *banned;
    int32_t n_banned;
    int32_t n_top; /* alternatives wanted, at most SAMPLE_MAX_TOP */
};

struct sample_result {
    int32_t id;
    float logprob; /* natural log of softmax of the raw logits, before temperature and filters */
    int32_t rank;  /* 1 = the most likely */
    int32_t top_ids[SAMPLE_MAX_TOP]; /* [n_top], most likely first, lower id first on ties */
    float top_logprobs[SAMPLE_MAX_TOP];
    int nan; /* 1: the row had a NaN or no finite logit; id is -1 */
};

struct sample_args {
    const struct sample_row *rows;
    struct sample_result *results;
    int32_t n_rows;
    int32_t n_vocab;
};

struct backend {
    const char *name; /* "cpu", "cuda": logs, metrics, --device */

    /* -- execution ------------------------------------------------------------------------------ */
    status_t (*stream_new)(int n_threads, struct backend_stream **stream_out);
    void (*stream_free)(struct backend_stream *stream);     /* accepts NULL */
    status_t (*stream_sync)(struct backend_stream *stream); /* blocks; reports earlier faults */

    /* -- memory: blocking; at least 64-byte aligned; not initialised ---------------------------- */
    status_t (*mem_alloc)(size_t size, void **ptr_out);
    void (*mem_free)(void *ptr); /* accepts NULL */

    /* -- weights: init time --------------------------------------------------------------------- */
    /* Bytes matrix_new allocates for a matrix; what the plan counts. */
    size_t (*matrix_bytes)(int dtype, int32_t n_out, int32_t n_in);
    status_t (*matrix_new)(int dtype, int32_t n_out, int32_t n_in, struct matrix **matrix_out);
    void (*matrix_free)(struct matrix *matrix); /* accepts NULL */
    /* Packs rows, converting with round to nearest even. Every row must be written before the first matmul. Blocks. */
    status_t (*matrix_write)(struct backend_stream *stream, const struct matrix_write_args *args);
    status_t (*random)(struct backend_stream *stream, const struct random_args *args); /* blocks */

    /* -- ops: asynchronous on the stream where the device is; never allocate -------------------- */
    status_t (*embedding)(struct backend_stream *stream, const struct embedding_args *args);
    status_t (*matmul)(struct backend_stream *stream, const struct matmul_args *args);
    status_t (*rmsnorm)(struct backend_stream *stream, const struct rmsnorm_args *args);
    status_t (*layernorm)(struct backend_stream *stream, const struct layernorm_args *args);
    status_t (*rope)(struct backend_stream *stream, const struct rope_args *args);
    status_t (*kv_append)(struct backend_stream *stream, const struct kv_append_args *args);
    status_t (*attention)(struct backend_stream *stream, const struct attention_args *args);
    status_t (*swiglu)(struct backend_stream *stream, const struct swiglu_args *args);
    status_t (*add)(struct backend_stream *stream, const struct add_args *args);
    status_t (*sample)(struct backend_stream *stream, const struct sample_args *args);
};

/* The CPU's table: always there. Chooses AVX-512, AVX2 or scalar code when a stream is made. Static. */
const struct backend *backend_cpu(void);

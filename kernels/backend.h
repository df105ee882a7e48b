/*
 * backend.h - the table of operations a device offers
 *
 * What:      everything `forward` needs from a device, and nothing about models, ranks or requests.
 * Layout:    the residual stream is float32 everywhere. Activations (what goes into and comes out of a matmul) are of the
 *            backend's own dtype, `activation`: float32 on the CPU, bfloat16 on CUDA; pointers to them are void.
 *            Both are row major, [rows, columns], with a leading dimension `ld` in elements.
 *            Weights are [n_out, n_in] in files and opaque (struct matrix) once packed: y = x W^T. A matrix has a format
 *            (enum matrix_format of base/dtype.h); int8 ones have a scale for each output.
 *            K and V are separate planes, one pair a layer: [unit][block_tokens][head_dim]. A unit is one KV head of one
 *            block. Block b of a sequence whose lane holds n heads here is the n units unit_base + b*n .. + n-1,
 *            in ascending order of the heads.
 * Memory:    pointers in args are device memory (mem_alloc) unless the comment says host. On the CPU both are the same.
 *            Host memory handed to an asynchronous op must stay as it is until the stream has been synchronised.
 * Ownership: args structs are borrowed for the call; what they point to, until the op has run.
 * Thread:    one stream is used by one thread; different streams by different threads.
 * Errors:    INVALID_ARGUMENT for shapes the op cannot take (our bug), RESOURCE_EXHAUSTED for memory, INTERNAL for a
 *            device fault, naming the op.
 * Invariant: batch invariance: the bits of an output row depend on that row's inputs alone, not on how many rows are
 *            computed with it or in how many calls. Each op has one accumulation order. (CUDA's large matmuls keep it
 *            only where the algorithm is pinned.)
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"
#include "kernels/attention_args.h"

struct backend_stream; /* an order of execution: the CPU's is a thread team, CUDA's a stream */
struct backend_peers;  /* what devices of several ranks do together: peers.h */
struct CUstream_st;    /* cudaStream_t is a pointer to it */
struct backend_graph;  /* a recorded sequence of ops */
struct backend_mark;   /* a place in a stream's order */
struct matrix;         /* packed weights on the device */

struct stream_options {
    int device;           /* index in backend->devices */
    int n_threads;        /* CPU */
    const int32_t *cores; /* CPU: where each stays, the caller first; NULL: anywhere */
    /* 1: the bits of a matmul's row do not depend on how many rows there are, at some cost. The CPU's never do. */
    int32_t batch_invariant;
};

struct device_info {
    char name[64]; /* "NVIDIA A100-SXM4-80GB" */
    char id[40]; /* of this piece of hardware and no other, 32 hexadecimal digits; "" on the CPU */
    uint64_t memory_bytes;
    uint64_t free_bytes;  /* 0: not known, as this process has no stream there yet */
    int32_t n_processors; /* multiprocessors; cores */
    int32_t capability;   /* compute capability * 10: 80, 90; 0 on the CPU */
};

/*
 * out[i, :] = table[ids[i] - row_begin, :], or zeros where ids[i] is not in [row_begin, row_end). An id below 0 stands for
 * drawn[-1 - ids[i]]: what a sample op left there. Without such an element the row is zeros.
 */
struct embedding_args {
    const void *table; /* [row_end - row_begin, n_columns], dtype */
    int dtype;
    int32_t row_begin, row_end;
    int32_t n_columns;
    const int32_t *ids; /* [n_rows] */
    int32_t n_rows;
    float *out;           /* [n_rows, n_columns] */
    const int32_t *drawn; /* [n_drawn]; NULL where n_drawn is 0 */
    int32_t n_drawn;
};

/*
 * out[m, n] = sum_k x[m, k] * w[n, k]; fp32 accumulation in an order fixed by n_in alone.
 * MATRIX_I8:   out = scale[n] * sum_k x[m, k] * value[n, k], the sum as above.
 * MATRIX_W8A8: each row of x is rounded to int8 values with a scale of its own, as weights are (int8_rows.h); sums of their products
 *              are exact: out = float32(sum_k) * scale[n] * scale[m], rounded after each.
 */
struct matmul_args {
    const struct matrix *weight;
    void *scratch; /* MATRIX_W8A8: int8_rows_bytes(n_rows, n_in), on 16 bytes; else not used */
    const void *x; /* [n_rows, n_in], activation, ld_x */
    int64_t ld_x;
    void *out; /* [n_rows, n_out], out_dtype, ld_out */
    int64_t ld_out;
    int32_t n_rows;
    int out_dtype; /* the activation dtype, or DTYPE_F32 */
};

/* A matrix, and of which dtype its products are. */
struct matmul_use {
    const struct matrix *weight;
    int out_dtype;
};

struct matmul_tune_args {
    /* All layers': those of a shape are measured in turn, so that weights come from memory as in a step. */
    const struct matmul_use *uses;
    int32_t n_uses;
    int32_t max_rows;
    const char *cache_dir; /* NULL: measure anew, keep nothing */
};

enum norm_kind {
    NORM_RMS,   /* y / sqrt(mean(y^2) + eps) * weight */
    NORM_LAYER, /* (y - mean(y)) / sqrt(mean((y - mean(y))^2) + eps) * weight + bias */
};

/*
 * x[r] += delta[r], then out[i] = norm(x[r]), for r = rows[i], or r = i where rows is NULL. Each r comes up once.
 * Either half may be left out: delta NULL, out NULL.
 */
struct add_norm_args {
    float *x;          /* [.., n_columns] */
    const void *delta; /* [.., n_columns], activation */
    const int32_t *rows;
    int32_t n_rows, n_columns;
    int kind;                   /* enum norm_kind */
    const float *weight, *bias; /* [n_columns]; bias NULL for NORM_RMS */
    float eps;
    void *out; /* [n_rows, n_columns], activation */
};

/*
 * Turns queries and keys by the row's position, in place: pairs (i, i + rotary_dim/2) of each head, columns from rotary_dim
 * on stay. Then stores keys and values into the planes. n_q_heads or n_kv_heads may be 0: that half is left out.
 */
struct rope_append_args {
    void *q; /* [n_rows, n_q_heads, head_dim], ld_q */
    int64_t ld_q;
    void *k;       /* [n_rows, n_kv_heads, head_dim], ld_kv */
    const void *v; /* the same */
    int64_t ld_kv;
    int32_t n_rows, n_q_heads, n_kv_heads, head_dim, rotary_dim, block_tokens;
    const int32_t *positions; /* [n_rows] */
    const float *cos, *sin;   /* [max_positions, rotary_dim/2] */
    int32_t max_positions;
    const int64_t
        *units;         /* [n_rows]: unit of the row's first head; -1: its k and v are left alone */
    int64_t head_units; /* from one head's unit to the next one's */
    const int32_t *offsets; /* [n_rows]: token within the block */
    void *k_plane, *v_plane;
    int kv_dtype; /* DTYPE_F32, DTYPE_BF16 or DTYPE_I8, as the backend has them: see kv_format.h */
    void *k_scales, *v_scales; /* of DTYPE_I8 */
};

/* out[i, j] = silu(gate_up[i, j]) * gate_up[i, n_columns + j]; out may be gate_up with the same ld. */
struct swiglu_args {
    const void *gate_up; /* [n_rows, 2 n_columns], activation */
    int64_t ld_in;
    int32_t n_rows, n_columns;
    void *out; /* [n_rows, n_columns], activation */
    int64_t ld_out;
};

/*
 * out[i] = parts[i] + parts[stride + i] + parts[2 * stride + i] + ..., from the left, in float32, rounded once. out may be one of
 * the parts; else they do not overlap. Where mark is not NULL the device counts *count up and writes the count (upper half) and
 * the label (lower half) there, also where n is 0: all that came before has been done.
 */
struct ordered_sum_args {
    const void *parts; /* n_parts of n elements, stride elements apart */
    int64_t stride, n;
    int32_t n_parts;
    int dtype;       /* DTYPE_F32 or DTYPE_BF16 */
    void *out;       /* [n] */
    uint64_t *mark;  /* host_alloc; NULL: none */
    uint32_t *count; /* device; of the marks made with it */
    uint32_t label;
};

/* n_rows rows of row_bytes from one stride to another; from and to of different strips do not overlap. */
struct strip {
    const void *from;
    void *to;
    int64_t from_stride_bytes, to_stride_bytes, row_bytes;
    int32_t n_rows;
};

/* Rows [row_begin, row_begin + n_rows) of a matrix, from src in host memory at any alignment. */
struct matrix_write_args {
    struct matrix *matrix;
    int32_t row_begin, n_rows;
    const void *src; /* [n_rows, n_in], ld_src elements */
    int src_dtype;
    int64_t ld_src;
    /* [n_rows], int8 alone: the largest magnitude of each row, where the rows are slices of longer ones; NULL: of what is here. */
    const float *largest;
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

/* What a request changes of one id's logit. */
struct sample_token {
    int32_t id;
    int32_t n_generated; /* times it was generated: presence and frequency penalties */
    int32_t in_prompt;   /* 1: also counts for the repetition penalty */
    float bias;          /* logit bias; -inf takes the id out */
};

/*
 * One token from one row of logits, in the order vLLM documents: logit bias; repetition, frequency and presence penalty;
 * temperature; min_p; top_k; top_p. Temperature 0 takes the largest logit (lowest id on ties). The draw is Philox keyed by (seed,
 * sample, position). For beam search, which adds log probabilities up, bias and penalties change these in the logits' place.
 */
struct sample_row {
    int64_t
        logits; /* element of sample_args.logits at which the row begins; -1: nothing is drawn, a row that only
                     * fills up a recording */
    uint64_t seed;
    uint32_t sample;   /* which of n */
    uint32_t position; /* index of the token being drawn in its sequence */
    float temperature; /* >= 0 */
    int32_t top_k;     /* 0: off */
    float top_p;       /* (0, 1] */
    float min_p;       /* [0, 1]; 1 keeps what is as likely as the likeliest */
    float
        repetition; /* > 0; 1: off. Divides a positive logit, multiplies a negative one, of ids seen */
    float presence;                /* subtracted once from a generated id */
    float frequency;               /* subtracted for each time it was generated */
    int32_t first_token, n_tokens; /* of sample_args.tokens; an id twice: with equal values */
    int32_t only_listed;           /* 1: ids that are not among these tokens are out */
    int32_t n_top;                 /* alternatives wanted, at most SAMPLE_MAX_TOP */
    int32_t of_logprobs;           /* 1: log probabilities are changed; alternatives are of that */
    int32_t forced; /* 1: nothing is drawn; the result is forced_id, with its logprob and rank */
    int32_t forced_id;

    /* Of sample_args.drawn, where there is one. */
    int32_t slot; /* where the id goes; -1: nowhere */
    int32_t
        pending_slot; /* its own slot, or -1. The id that lies there counts as generated once more than the tokens
                           * say, whether or not they list it: it was drawn when they could not be known yet */
};

struct sample_result {
    int32_t id;
    float logprob; /* natural log of softmax of the raw logits, before temperature and filters */
    int32_t rank;  /* 1 = the most likely */
    int32_t nan;   /* 1: the row had a NaN or no finite logit; id is -1 */
    int32_t top_ids[SAMPLE_MAX_TOP]; /* [n_top], most likely first, lower id first on ties */
    float top_logprobs[SAMPLE_MAX_TOP];
};

struct sample_args {
    float *logits;                     /* rows of [n_vocab]; the op may write to them */
    const struct sample_row *rows;     /* [n_rows] */
    const struct sample_token *tokens; /* [n_tokens] */
    int32_t n_tokens;
    struct sample_result *results; /* [n_rows] */
    int32_t n_rows;
    int32_t n_vocab;
    int32_t *drawn; /* [n_drawn]: the last id of each slot; NULL where n_drawn is 0 */
    int32_t n_drawn;
};

struct backend {
    const char *name; /* "cpu", "cuda": logs, metrics, --device */
    int activation;   /* enum dtype */
    bool host_memory; /* device memory is host memory */

    /* UNAVAILABLE with the reason when there is no device or driver. n_out: of devices_out. */
    status_t (*devices)(struct device_info *devices_out, int max_devices, int *n_out);

    /* -- execution ------------------------------------------------------------------------------ */
    status_t (*stream_new)(const struct stream_options *options,
                           struct backend_stream **stream_out);
    void (*stream_free)(struct backend_stream *stream);     /* accepts NULL */
    status_t (*stream_sync)(struct backend_stream *stream); /* blocks; reports earlier faults */

    /* Ops between begin and end are recorded, not run; pointers and sizes are recorded as they are. All three are NULL
     * where the backend has no graphs. After a failed op, graph_end is still called and fails. */
    status_t (*graph_begin)(struct backend_stream *stream);
    status_t (*graph_end)(struct backend_stream *stream, struct backend_graph **graph_out);
    status_t (*graph_run)(struct backend_stream *stream, struct backend_graph *graph);
    void (*graph_free)(struct backend_graph *graph); /* accepts NULL */

    /* A mark is set behind all ops so far, as often as one likes. Waiting for it does not wait for what came after it; one that was
     * never set is passed. mark_wait reports faults of the ops before it. */
    status_t (*mark_new)(struct backend_stream *stream, struct backend_mark **mark_out);
    void (*mark_free)(struct backend_mark *mark); /* accepts NULL */
    status_t (*mark_set)(struct backend_stream *stream, struct backend_mark *mark);
    bool (*mark_passed)(
        const struct backend_mark *mark); /* also after a fault, which mark_wait then reports */
    status_t (*mark_wait)(struct backend_mark *mark);

    /* -- memory: at least 64-byte aligned, not initialised; blocking ---------------------------- */
    status_t (*mem_alloc)(struct backend_stream *stream, size_t size, void **ptr_out);
    void (*mem_free)(struct backend_stream *stream, void *ptr); /* accepts NULL */
    /* Host memory the device copies from and to at full speed. */
    status_t (*host_alloc)(struct backend_stream *stream, size_t size, void **ptr_out);
    void (*host_free)(struct backend_stream *stream, void *ptr); /* accepts NULL */

    /* In stream order. to and from may be the same: then nothing is done. */
    status_t (*upload)(struct backend_stream *stream, void *to, const void *from_host, size_t size);
    status_t (*download)(struct backend_stream *stream, void *to_host, const void *from,
                         size_t size);
    status_t (*zero)(struct backend_stream *stream, void *to, size_t size);
    /* strips are host, and may change on return; what they copy from and to is device memory, or host memory of host_alloc. */
    status_t (*copy_strips)(struct backend_stream *stream, const struct strip *strips, int32_t n);

    /* -- weights: init time --------------------------------------------------------------------- */
    /* Bytes matrix_new allocates for a matrix; what the plan counts, but for padding of odd shapes. format: enum
     * matrix_format. */
    size_t (*matrix_bytes)(int format, int32_t n_out, int32_t n_in);
    status_t (*matrix_new)(struct backend_stream *stream, int format, int32_t n_out, int32_t n_in,
                           struct matrix **matrix_out);
    void (*matrix_free)(struct matrix *matrix); /* accepts NULL */
    /* Packs rows, converting with round to nearest even: to int8 as int8_rows.h says. Every row must be written before the
     * first matmul. Blocks. */
    status_t (*matrix_write)(struct backend_stream *stream, const struct matrix_write_args *args);
    status_t (*random)(struct backend_stream *stream, const struct random_args *args); /* blocks */

    /* Before the first step: measures which way to multiply is the fastest for each shape and number of rows up to
     * max_rows. Blocks for seconds; takes and returns memory for the widest x and out. A cache that cannot be read or
     * written is no failure: *cache_out says what became of it. NULL where there is one way. */
    status_t (*matmul_tune)(struct backend_stream *stream, const struct matmul_tune_args *args,
                            status_t *cache_out);

    /* -- attention's plans ---------------------------------------------------------------------- */
    status_t (*attention_plan_new)(struct backend_stream *stream,
                                   const struct attention_shape *shape,
                                   struct attention_plan **plan_out);
    void (*attention_plan_free)(struct attention_plan *plan); /* accepts NULL */
    /* Once a step: what there is to attend to. seqs are host. */
    status_t (*attention_plan_set)(struct backend_stream *stream, struct attention_plan *plan,
                                   const struct attention_seq *seqs, int32_t n_seqs);

    /* -- ops: asynchronous on the stream where the device is; never allocate -------------------- */
    status_t (*embedding)(struct backend_stream *stream, const struct embedding_args *args);
    status_t (*matmul)(struct backend_stream *stream, const struct matmul_args *args);
    status_t (*add_norm)(struct backend_stream *stream, const struct add_norm_args *args);
    status_t (*rope_append)(struct backend_stream *stream, const struct rope_append_args *args);
    status_t (*attention)(struct backend_stream *stream, struct attention_plan *plan,
                          const struct attention_args *args);
    status_t (*attention_merge)(struct backend_stream *stream,
                                const struct attention_merge_args *args);
    status_t (*swiglu)(struct backend_stream *stream, const struct swiglu_args *args);
    status_t (*ordered_sum)(struct backend_stream *stream, const struct ordered_sum_args *args);
    /* Where device memory is not the host's, rows and tokens are not looked at before: sample_check does it on the host. */
    status_t (*sample)(struct backend_stream *stream, const struct sample_args *args);

    /* -- several ranks -------------------------------------------------------------------------- */
    /* What vendor libraries take for the stream; NULL where there is no such thing. */
    struct CUstream_st *(*cuda_stream)(struct backend_stream *stream);
    const struct backend_peers *peers; /* NULL: not offered */
};

/* The CPU's table: always there. Chooses AVX-512, AVX2 or scalar code when a stream is made. Static. */
const struct backend *backend_cpu(void);

/*
 * The table of "cpu" or "cuda". CUDA's is in a shared library of its own (backend_plugin.h), opened at the first call.
 * UNAVAILABLE with the reason when that library, those it needs, the driver or a device is missing. Static.
 */
MUST_USE status_t backend_load(const char *name, const struct backend **backend_out);

/*
 * attention_args.h - what the ops of attention are given
 *
 * What:      attention over the paged cache, whole or over a part of each sequence's blocks, and the merging of such parts.
 *            A part of a row is what its keys alone give: softmax's numerators times the values, and what they were divided
 *            by; parts of a row over any cut of its keys add up to the whole, within the rounding of float32.
 * Layout:    a partial row is float32 [head_dim + ATTENTION_STATS]:
 *
 *              [ sum over its keys of e^(score - base) v | base | sum of e^(score - base) | 0 | 0 ]
 *
 *            base is the largest of its scores, in a unit of the backend's own: its own attention_merge reads it. A row that
 *            saw no key has zeros and a base of -inf.
 * Source:    Milakov & Gimelshein 2018, arXiv:1805.02867 (merging of maxima and sums); Dao et al. 2023 (flash decoding).
 */
#pragma once

#include <stdint.h>

struct attention_plan; /* how one step's attention is cut into work, for layers of one shape */

/* Floats behind the columns of a partial row, which so stays on 16 bytes. */
#define ATTENTION_STATS 4

/* Sources of one merge: they travel in a kernel's parameters. */
#define ATTENTION_MAX_SOURCES 64

/* What all layers that share a plan have in common. */
struct attention_shape {
    int32_t head_dim, group; /* group: query heads a KV head serves here */
    int32_t block_tokens;
    int32_t window; /* keys a query sees, itself included; 0: all before */
    int kv_dtype;
    float scale;
    int32_t max_seqs, max_rows; /* of a step */
    int32_t max_kv_heads;       /* of a sequence */
    int32_t max_tokens;         /* of a sequence */
    /* 1: a row's bits do not depend on the other sequences of the step, at some cost for few long ones. The CPU's never do. */
    int32_t batch_invariant;
    int32_t partial; /* 1: out has partial rows, and sequences say what each row sees; no window */
};

struct attention_seq {
    int32_t n_queries; /* tokens computed now; they are the last ones of kv_tokens */
    int32_t kv_tokens; /* tokens in the cache, these included */
    int32_t
        first_block; /* its ceil(kv_tokens / block_tokens) blocks begin here in attention_args.blocks */
    int32_t n_kv_heads; /* heads of this sequence held here; 0: nothing to do */
    int64_t unit_base;
    int64_t q_offset; /* element of its first row in q and out */
    int64_t ld; /* elements from one row to the next; a row is [n_kv_heads, group, head_dim] */

    /* Partial alone: the cache has some of the sequence's blocks, in order, and kv_tokens tokens in them, perhaps none. */
    const int32_t *row_ends; /* [n_queries], host: tokens of the cache each row sees, ascending */
    int64_t out_offset;      /* float of its first row in out, whose rows are [n_kv_heads, group, */
    int64_t ld_out;          /* head_dim + ATTENTION_STATS] and ld_out floats apart */
};

/*
 * Causal softmax(q k^T scale) v over the paged cache, prefill and decode alike. Query t of a sequence stands
 * at position kv_tokens - n_queries + t and sees positions (position - window, position] (window 0: all before).
 */
struct attention_args {
    const void *q; /* activation; see attention_seq */
    void *out;     /* the same layout; partial: float32 */
    const void *k_plane, *v_plane;
    const void *k_scales, *v_scales; /* of DTYPE_I8: kv_format.h */
    const int32_t *blocks;
};

/* Partial rows of some of the heads. */
struct attention_source {
    const float *rows; /* [n_rows, head_end - head_begin, head_dim + ATTENTION_STATS] */
    int64_t ld;        /* floats from one row to the next */
    int32_t head_begin, head_end;
};

/* out[row, head] = what the sources that have the head add up to, in their order. A head no source has seen a key for is 0. */
struct attention_merge_args {
    const struct attention_source *sources; /* host, [n_sources], at most ATTENTION_MAX_SOURCES */
    int32_t n_sources;
    int32_t n_rows, n_heads, head_dim;
    void *out;  /* activation, [n_rows, n_heads, head_dim] */
    int64_t ld; /* elements from one row to the next */
};

/*
 * attention_split.h - how one step's attention is cut into work for the device
 *
 * What:      from the sequences of a step the units that blocks of threads work on: some query rows of one KV head of one
 *            sequence, over all keys they see or a part of them. Pure: no device is needed.
 * Layout:    a row is a pair (query token, query head of the group): row = token * group + head. Keys are counted in tiles of
 *            CUDA_ATTENTION_TILE from the first visible one, rounded down to a page of CUDA_ATTENTION_PAGE.
 *
 *              decode    sequences of at most decode rows (16 or 32): one unit a head holds them all
 *              prefill   the others, CUDA_ATTENTION_PREFILL_ROWS rows a unit
 *
 *            Units of a kind come longest first. Those of one split lie anywhere; each knows its place in it.
 * Units:     costs are eighths of a tile.
 * Ownership: the caller's arrays are borrowed for the call.
 * Thread:    any, one at a time for each splitter.
 * Errors:    INVALID_ARGUMENT where a step exceeds the limits given at the start.
 * Invariant: each (row, visible key) is in exactly one unit; no array is ever larger than the splitter's maxima.
 */
#pragma once

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_ATTENTION_TILE = 64, CUDA_ATTENTION_PAGE = 16, CUDA_ATTENTION_PREFILL_ROWS = 128 };

enum cuda_attention_kind { CUDA_ATTENTION_DECODE, CUDA_ATTENTION_PREFILL, CUDA_ATTENTION_KINDS };

struct cuda_attention_unit {
    int32_t seq, head;
    int32_t row, n_rows;        /* of the sequence's packed rows */
    int32_t key_begin, key_end; /* key_begin is a multiple of CUDA_ATTENTION_PAGE */
    int32_t split, n_splits;    /* n_splits 1: the unit writes the output itself */
    int32_t partial; /* first row of the split's partial results: n_splits times n_rows of them */
    int32_t counter; /* of units of the split that are done */
};

/* What a kind's blocks of threads are like on the device. */
struct cuda_attention_kind_options {
    int32_t rows;            /* a unit has at most; 0: no sequence is of this kind */
    int32_t grid;            /* blocks that run at once */
    int32_t overhead;        /* of a unit: eighths of the time of a tile */
    int32_t merge;           /* of a part of a split: the same */
    int32_t max_split_units; /* units of all splits together; at least grid */
};

struct cuda_attention_split_options {
    struct attention_shape shape;
    struct cuda_attention_kind_options kinds[CUDA_ATTENTION_KINDS];
};

struct cuda_attention_split;

/* What a step may come to. */
struct cuda_attention_split_maxima {
    int32_t n_units, n_partial_rows, n_counters;
};

/* Units of kind k are units[first_unit[k]] .. + n_units[k] - 1. */
struct cuda_attention_work {
    int32_t first_unit[CUDA_ATTENTION_KINDS], n_units[CUDA_ATTENTION_KINDS];
};

status_t cuda_attention_split_new(const struct cuda_attention_split_options *options,
                                  struct cuda_attention_split **split_out);
void cuda_attention_split_free(struct cuda_attention_split *split); /* accepts NULL */

struct cuda_attention_split_maxima
cuda_attention_split_maxima(const struct cuda_attention_split *split);

/* Fills units, which has room for the maximum, and work_out. Never allocates. */
status_t cuda_attention_split_run(struct cuda_attention_split *split,
                                  const struct attention_seq *seqs, int32_t n_seqs,
                                  struct cuda_attention_unit *units,
                                  struct cuda_attention_work *work_out);

#ifdef __cplusplus
}
#endif

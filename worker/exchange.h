/*
 * exchange.h - queries to the ranks that hold their keys, attention outputs back
 *
 * What:      under share a KV head that lies on several ranks is held by one of them for each lane; that rank computes
 *            attention for all query heads of its group. Query heads belong to ranks by another cut, so before
 *            attention each rank sends, for every lane, the query heads whose KV head another rank holds, and after it
 *            gets their outputs back.
 *            Under token every rank that shares the head has some of a sequence's keys: queries of all rows go to all of
 *            them, and what comes back from each is a part (kernels/attention_args.h). exchange_outputs merges the parts, in
 *            the order of the ranks, so that equal steps give equal bits.
 * Layout:    activations of the backend's dtype, in device memory.
 *            query side: [rows, own query heads, head_dim], one row stride for all layers and lanes.
 *            KV side, ragged: lane after lane, a lane's rows are [rows of the lane, held KV heads, group, head_dim].
 *            A message to a peer: lane after lane, [rows of the lane, the heads in question, head_dim].
 *            Under token all rows are one lane, a rank's held KV heads are those it has any block of, and outputs are
 *            partial rows of head_dim + ATTENTION_STATS float32.
 * Ownership: owns its buffers; plan and comm are borrowed.
 * Thread:    owner:the rank's main thread.
 * Collective: exchange_queries and exchange_outputs: yes.
 * Errors:    UNAVAILABLE from the collective.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/comm.h"
#include "parallel/plan.h"

/* Borrowed. */
struct exchange_parts {
    const struct backend *backend;
    struct backend_stream *stream;
    const struct plan *plan;
    struct comm *comm; /* of the rank's stage */
    int32_t rank;      /* of all stages */
    int32_t max_rows;
    int64_t ld; /* elements between rows of the query side */
};

struct exchange {
    struct exchange_parts parts;
    char *q, *out;    /* KV side, ragged; NULL when no layer of the plan exchanges */
    char *sent, *got; /* messages */
    int64_t *counts
        [4]; /* [ranks] each, bytes: send counts and displacements, receive counts and displacements */
    struct strip *strips;             /* [(ranks + 1) * lanes] */
    struct attention_source *sources; /* [ranks] */
};

MUST_USE status_t exchange_init(struct exchange *exchange, const struct exchange_parts *parts);
void exchange_destroy(struct exchange *x); /* accepts a zeroed one */

/* The most bytes that a rank sends or receives at once in any layer of its stage, for max_rows rows. */
int64_t exchange_max_bytes(const struct plan *plan, int32_t rank, int32_t max_rows, int dtype);

/* What moves: one layer of one step. */
struct exchange_step {
    int32_t layer;
    const int32_t *lane_rows; /* [n_lanes + 1]; under token [2] */
    void *query_side;         /* [rows, own query heads, head_dim] */
};

/* query_side -> exchange->q. */
MUST_USE status_t exchange_queries(struct exchange *exchange, const struct exchange_step *step);

/* exchange->out -> query_side. */
MUST_USE status_t exchange_outputs(struct exchange *exchange, const struct exchange_step *step);

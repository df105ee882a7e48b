/*
 * exchange.h - queries to the ranks that hold their keys, attention outputs back
 *
 * What:      under share a KV head that lies on several ranks is held by one of them for each lane; that rank computes
 *            attention for all query heads of its group. Query heads belong to ranks by another cut, so before
 *            attention each rank sends, for every lane, the query heads whose KV head another rank holds, and after it
 *            gets their outputs back.
 * Layout:    query side: [rows, own query heads, head_dim], one row stride for all lanes.
 *            KV side, ragged: lane after lane, a lane's rows are [rows of the lane, held KV heads, group, head_dim].
 *            A message to a peer: lane after lane, [rows of the lane, the heads in question, head_dim].
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

struct exchange {
    const struct backend *backend;
    const struct plan *plan;
    struct comm *comm;
    float *q, *out;    /* KV side, ragged; NULL when no layer of the plan exchanges */
    float *sent, *got; /* messages */
    int64_t *counts
        [4]; /* [ranks] each: send counts and displacements, receive counts and displacements */
};

MUST_USE status_t exchange_init(struct exchange *exchange, const struct backend *backend,
                                const struct plan *plan, struct comm *comm, int32_t max_rows);
void exchange_destroy(struct exchange *exchange); /* accepts a zeroed one */

/* What moves: one layer of one step. */
struct exchange_step {
    int32_t layer;
    const int32_t *lane_rows; /* [n_lanes + 1] */
    float *query_side;        /* [rows, own query heads, head_dim] */
};

/* query_side -> exchange->q. */
MUST_USE status_t exchange_queries(struct exchange *exchange, const struct exchange_step *step);

/* exchange->out -> query_side. */
MUST_USE status_t exchange_outputs(struct exchange *exchange, const struct exchange_step *step);

/*
 * comm_peer.h - short sums by kernels of our own, the rest by another comm
 *
 * What:      fills the table of comm.h over a peer set (kernels/peers.h): all_reduce of up to max_bytes, and
 *            all_reduce_add_norm, in one hop between ranks of one host, in rank order always. Longer sums and all other ops go to
 *            `rest`.
 * Ownership: the comm owns rest once it is made; it borrows host, backend, stream and words. End with comm->ops->free.
 * Thread:    owner:the rank's main thread.
 * Collective: comm_peer_new and free: over host. free waits for the others for a short while only; without them the memory
 *            they may still read stays mapped to the end of the process.
 * Errors:    UNAVAILABLE where a rank cannot see another's memory: all ranks get it, and rest is untouched.
 */
#pragma once

#include "kernels/backend.h"
#include "kernels/peers.h"
#include "parallel/comm.h"

struct comm_peer_parts {
    struct comm *host;
    struct comm *rest;
    const struct backend *backend;
    struct backend_stream *stream;
    struct peers_words *words;
    int64_t max_bytes;
};

/* Bytes of a sum up to which one hop is faster than two, for so many ranks; 0: always slower. */
int64_t comm_peer_max_bytes(int32_t n_ranks);

MUST_USE status_t comm_peer_new(const struct comm_peer_parts *parts, struct comm **comm_out);

/*
 * peers.h - what devices of several ranks do together, without a library between them
 *
 * What:      a peer set is a piece of device memory of each rank, mapped into the processes of all the others. Ranks tell
 *            each other by flags in it that their part of a sum is there, and each reads all parts itself: one hop, one
 *            launch. For short messages, between ranks of one host; several ranks may share a device.
 * Layout:    of a rank's memory:
 *              flags [n_ranks]       flag r: how many sums rank r has begun; written by rank r
 *              sums [2, max_bytes]   a rank's part of a sum that sum_add_norm takes
 *              copies [2, max_bytes] the same for sum, which copies it here
 * Ownership: the set owns the memory; it borrows the words on the host, which must outlive it.
 * Thread:    the stream's.
 * Collective: sum and sum_add_norm: all ranks, the same order, the same sizes. They work in a recording: how many sums there
 *            were is counted on the device.
 * Invariant: parts are added in float32, in the order of the ranks, and rounded once to their dtype: every rank gets the
 *            same bits. sum_add_norm gives those of sum followed by add_norm.
 *            Of sums that follow each other, sum_add_norm must not be given the same buffer twice: see all_reduce.cu.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"

enum { PEERS_MAX_RANKS = 8 };

struct peers;

/* Host memory that the device and the host both look at, from host_alloc. */
struct peers_words {
    uint64_t
        mark; /* the last op that said so: a count in the upper half, its label in the lower one */
    uint32_t
        abort; /* not 0: sums that wait for a rank give up; what they were to write is undefined */
};

/* Goes from process to process as it is. */
struct peers_handle {
    unsigned char bytes[64];
};

struct peers_options {
    int32_t rank, n_ranks;
    int64_t max_bytes; /* of a rank's part */
    struct peers_words *words;
};

/* buf[i] = sum over ranks of buf[i]; at most max_bytes. */
struct peers_sum_args {
    void *buf;
    int64_t n; /* elements */
    int dtype; /* DTYPE_F32 or DTYPE_BF16 */
    uint32_t label;
};

/* add_norm whose delta is the sum over ranks of what lies in the set's buffer `which`, in the activation dtype. */
struct peers_norm_args {
    struct add_norm_args norm; /* delta is not looked at */
    int32_t which;             /* 0 or 1 */
    uint32_t label;
};

struct backend_peers {
    /* -- a set: blocking -------------------------------------------------------------------------- */
    /* Makes this rank's memory, and its name for the other processes. */
    status_t (*make)(struct backend_stream *stream, const struct peers_options *options,
                     struct peers **peers_out, struct peers_handle *handle_out);
    /* Maps the others': handles [n_ranks]. UNAVAILABLE where the devices cannot see each other's memory. */
    status_t (*join)(struct peers *peers, const struct peers_handle *handles);
    /* Gives back the others' memory, then (free) its own: in between all ranks must have done the first. */
    void (*leave)(struct peers *peers);
    void (*free)(struct peers *peers); /* accepts NULL */

    /* Where the parts of sum_add_norm are put: which 0 or 1, max_bytes. */
    void *(*buffer)(const struct peers *peers, int32_t which);

    /* -- ops: asynchronous on the stream of the set ----------------------------------------------- */
    status_t (*sum)(struct peers *peers, const struct peers_sum_args *args);
    status_t (*sum_add_norm)(struct peers *peers, const struct peers_norm_args *args);
};

/*
 * comm.h - the table of collectives
 *
 * What:      what ranks of a group say to each other inside a step. mpi: between host memories. shm: likewise, for ranks of
 *            one host. staged: between devices by way of host memory and one of these, for ranks that share a device and for
 *            machines without NCCL.
 * Memory:    all_reduce, gather_v, all_to_all_v and broadcast_device take memory of the comm's device and are ordered as an op
 *            on the stream they were made with; broadcast, send and recv take host memory and block.
 * Units:     n of all_reduce is elements; everything else is bytes.
 * Thread:    owner:the rank's main thread.
 * Collective: yes, unless said otherwise: all ranks, same order, same counts where they must match.
 * Errors:    UNAVAILABLE naming the collective and the rank; after one the group is finished.
 * Invariant: sums are taken in float32, in absolute rank order, element by element, and rounded once: every rank gets the
 *            same bits, and the same bits every time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

struct comm;

struct comm_ops {
    const char *name; /* "mpi" */

    /* buf[i] = sum over ranks of buf[i], in rank order, in place. n may be 0. */
    status_t (*all_reduce)(struct comm *comm, void *buf, int64_t n, int dtype);

    /* At root recv is the concatenation of every rank's send: rank r's counts[r] bytes at displs[r]. recv, counts and
     * displs are read at root only (n_send: this rank's count). */
    status_t (*gather_v)(struct comm *comm, const void *send, int64_t n_send, void *recv,
                         const int64_t *counts, const int64_t *displs, int32_t root);

    /* Counts per peer; send and recv must not overlap. */
    status_t (*all_to_all_v)(struct comm *comm, const void *send, const int64_t *send_counts,
                             const int64_t *send_displs, void *recv, const int64_t *recv_counts,
                             const int64_t *recv_displs);

    /* Device memory, ordered as an op on the stream: root's n_bytes on every rank. */
    status_t (*broadcast_device)(struct comm *comm, void *buf, int64_t n_bytes, int32_t root);

    status_t (*broadcast)(struct comm *comm, void *data, size_t size_bytes, int32_t root);

    /* Point to point, blocking, not collective. */
    status_t (*send)(struct comm *comm, const void *data, size_t size_bytes, int32_t to,
                     int32_t tag);
    status_t (*recv)(struct comm *comm, void *data, size_t size_bytes, int32_t from, int32_t tag);

    void (*free)(struct comm *comm);
};

struct comm {
    const struct comm_ops *ops;
    int32_t rank, size;
};

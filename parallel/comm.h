/*
 * comm.h - the table of collectives
 *
 * What:      what ranks of a group say to each other inside a step. Backends: mpi (host memory); nccl and
 *            staged come with the CUDA backend.
 * Units:     counts and displacements are elements of float for the reductions and all_to_all_v, bytes elsewhere.
 * Thread:    owner:the rank's main thread.
 * Collective: yes, unless said otherwise: all ranks, same order, same counts where they must match.
 * Errors:    UNAVAILABLE naming the collective and the rank; after one the group is finished.
 * Invariant: sums are taken in absolute rank order, element by element: every rank gets the same bits, and the same
 *            bits every time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct comm;

struct comm_ops {
    const char *name; /* "mpi" */

    /* buf[i] = sum over ranks of buf[i], in rank order, in place. n may be 0. */
    status_t (*all_reduce)(struct comm *comm, float *buf, int64_t n);

    /* recv is the concatenation of every rank's send: rank r's counts[r] elements at displs[r]. */
    status_t (*all_gather_v)(struct comm *comm, const float *send, float *recv,
                             const int64_t *counts, const int64_t *displs);

    /* The same towards one rank; recv, counts and displs are read at root only (n_send: this rank's count). */
    status_t (*gather_v)(struct comm *comm, const float *send, int64_t n_send, float *recv,
                         const int64_t *counts, const int64_t *displs, int32_t root);

    /* Element counts per peer; send and recv must not overlap. */
    status_t (*all_to_all_v)(struct comm *comm, const float *send, const int64_t *send_counts,
                             const int64_t *send_displs, float *recv, const int64_t *recv_counts,
                             const int64_t *recv_displs);

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

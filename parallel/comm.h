/*
 * comm.h - the table of collectives
 *
 * What:      what ranks of a group say to each other inside a step. mpi: between host memories. shm: likewise, for ranks of
 *            one host. staged: between devices by way of host memory and one of these, for ranks that share a device and for
 *            machines without NCCL. nccl: between devices. peer: short sums by kernels of our own, the rest by one of these.
 * Memory:    all_reduce, gather_v, all_to_all_v and broadcast_device take memory of the comm's device and are ordered as an op
 *            on the stream they were made with; broadcast, send, recv and barrier are between hosts and block.
 * Units:     n of all_reduce is elements; everything else is bytes.
 * Thread:    owner:the rank's main thread. The watchdog's reads labels and the count of steps.
 * Collective: yes, unless said otherwise: all ranks, same order, same counts where they must match.
 * Errors:    UNAVAILABLE naming the collective and the rank; after one the group is finished.
 * Invariant: sums are taken in float32, in absolute rank order, element by element, and rounded once: every rank gets the
 *            same bits, and the same bits every time. (nccl keeps that only where it was made with COMM_ORDERED.)
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/status.h"

struct comm;
struct add_norm_args;

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

    /* root's n_bytes to all, in device memory. */
    status_t (*broadcast_device)(struct comm *comm, void *buf, int64_t n_bytes, int32_t root);

    /* Sums and norms in one: add_norm whose delta is the sum over ranks of partial, which is buffer(comm, 0) or (comm, 1), not
     * the one of the sum before. At most fused_bytes. UNIMPLEMENTED where fused_bytes is 0. */
    status_t (*all_reduce_add_norm)(struct comm *comm, const void *partial,
                                    const struct add_norm_args *args);
    /* fused_bytes of device memory; NULL where that is 0. Not collective. */
    void *(*buffer)(struct comm *comm, int32_t which);

    /* Once the stream has been synchronised: UNAVAILABLE with what did not end, where it was ended. Not collective. */
    status_t (*check)(struct comm *comm);

    status_t (*broadcast)(struct comm *comm, void *data, size_t size_bytes, int32_t root);

    /* Until all are here; DEADLINE_EXCEEDED where one does not come, and the group is finished. */
    status_t (*barrier)(struct comm *comm, double timeout_s);

    /* Point to point, blocking, not collective. */
    status_t (*send)(struct comm *comm, const void *data, size_t size_bytes, int32_t to,
                     int32_t tag);
    status_t (*recv)(struct comm *comm, void *data, size_t size_bytes, int32_t from, int32_t tag);

    void (*free)(struct comm *comm);
};

/* What a collective of a step is for: with the layer, what a message about one that hangs names. */
enum comm_part {
    COMM_PART_OTHER,
    COMM_PART_EMBEDDING,
    COMM_PART_ATTENTION,
    COMM_PART_QUERIES,
    COMM_PART_OUTPUTS,
    COMM_PART_FFN,
    COMM_PART_LOGITS,
    COMM_PART_TOKENS,
};

enum { COMM_LABELS = 512 };

/* How sums are taken. FAST: as the library likes it, where there is one. */
enum comm_order { COMM_ORDERED, COMM_FAST };

struct comm {
    const struct comm_ops *ops;
    struct comm *host; /* does comm_host_* below for it; NULL: it does them itself */
    int32_t rank, size;
    bool recordable;     /* its ops on device memory may stand in a recording */
    int64_t fused_bytes; /* of all_reduce_add_norm at most; 0: there is none */

    /* Written by the owner, read by the watchdog. */
    atomic_int n_steps;   /* under way */
    atomic_uint n_labels; /* ever */
    _Atomic uint32_t
        labels[COMM_LABELS]; /* the last ones, in the order of the collectives: a ring */
};

static inline uint32_t comm_label_of(int32_t layer, enum comm_part part)
{
    return (uint32_t)(layer + 1) << 8 | (uint32_t)part;
}

/* Before a collective: what it is for. layer -1: none. Costs two stores. */
static inline void comm_label(struct comm *comm, int32_t layer, enum comm_part part)
{
    const uint32_t n = atomic_load_explicit(&comm->n_labels, memory_order_relaxed);
    atomic_store_explicit(&comm->labels[n % COMM_LABELS], comm_label_of(layer, part),
                          memory_order_relaxed);
    atomic_store_explicit(&comm->n_labels, n + 1, memory_order_release);
}

/* The label of the collective that is being made. */
static inline uint32_t comm_label_now(const struct comm *comm)
{
    const uint32_t n = atomic_load_explicit(&comm->n_labels, memory_order_relaxed);
    return n == 0
               ? comm_label_of(-1, COMM_PART_OTHER)
               : atomic_load_explicit(&comm->labels[(n - 1) % COMM_LABELS], memory_order_relaxed);
}

/* Gives `to` the label of `from`, which hands a collective on to it. */
static inline void comm_label_pass(const struct comm *from, struct comm *to)
{
    const uint32_t label = comm_label_now(from);
    comm_label(to, (int32_t)(label >> 8) - 1, (enum comm_part)(label & 0xffu));
}

/* From the first collective of a step to the synchronisation that ends it: while a step is under way collectives must
 * end, or the watchdog ends them. */
static inline void comm_step_begin(struct comm *comm)
{
    atomic_fetch_add(&comm->n_steps, 1);
}

static inline void comm_step_end(struct comm *comm)
{
    atomic_fetch_sub(&comm->n_steps, 1);
}

/* "layer 3: sum after attention". */
void comm_label_text(uint32_t label, char *buf, size_t size);

/* The label that came after this one the last time; 0 where none did. */
uint32_t comm_label_after(const struct comm *comm, uint32_t label);

/* The first failing rank's status, on all ranks of a comm between hosts. */
MUST_USE status_t comm_agree(struct comm *host, status_t mine);

/* What tables have in the place of ops they lack. */
status_t comm_no_all_reduce_add_norm(struct comm *comm, const void *partial,
                                     const struct add_norm_args *args);
void *comm_no_buffer(struct comm *comm, int32_t which);
status_t comm_always_fine(struct comm *comm);

/* Makes of zeroed memory a comm over one between hosts, of the same ranks. */
void comm_init(struct comm *comm, const struct comm_ops *ops, struct comm *host);

/* What tables have that leave what is in host memory to comm->host. */
status_t comm_host_broadcast(struct comm *comm, void *data, size_t size_bytes, int32_t root);
status_t comm_host_barrier(struct comm *comm, double timeout_s);
status_t comm_host_send(struct comm *comm, const void *data, size_t size_bytes, int32_t to,
                        int32_t tag);
status_t comm_host_recv(struct comm *comm, void *data, size_t size_bytes, int32_t from,
                        int32_t tag);

/*
 * comm_nccl.h - the collectives between devices, over NCCL
 *
 * What:      fills the table of comm.h with NCCL on the backend's stream. The library is opened at run time: programs have no
 *            link to it, and run without. Where it was built without NCCL's header, comm_nccl_none.c takes its place.
 * Sums:      NCCL adds in an order of its own. COMM_ORDERED therefore only moves bytes with it, and adds with ordered_sum:
 *              short   all ranks' numbers to all, everybody adds everything             1 exchange
 *              long    piece r of everybody's to rank r, which adds it; the sums to all   2 exchanges, 2/T of the bytes
 * Ownership: the comm borrows host, backend, stream and words, which must outlive it; end with comm->ops->free.
 * Thread:    owner:the rank's main thread. comm_nccl_look and comm_nccl_end: any.
 * Collective: comm_nccl_new: over host, whose ranks are those of the comm.
 * Errors:    UNAVAILABLE where the library is missing, cannot start, or reports an error of its own.
 */
#pragma once

#include "kernels/backend.h"
#include "kernels/peers.h"
#include "parallel/comm.h"

struct comm_nccl_parts {
    struct comm
        *host; /* between the hosts of the same ranks: any of a group's, see group_comm_new */
    const struct backend *backend;
    struct backend_stream *stream;
    struct peers_words *words; /* where the device says which collectives are done */
    int order;                 /* enum comm_order */
    double timeout_s;          /* of making it, and of calls */
};

/* In a mark: the collective is done, not begun. */
#define COMM_NCCL_DONE ((uint32_t)1 << 31)

/* OK where the library is there and of a version that this code knows; not collective. version_out: 22809. */
MUST_USE status_t comm_nccl_find(int *version_out);

MUST_USE status_t comm_nccl_new(const struct comm_nccl_parts *parts, struct comm **comm_out);

/* What NCCL itself has noticed to be wrong. */
MUST_USE status_t comm_nccl_look(struct comm *comm);

/* Ends what is under way, for good: kernels on the device return, later calls fail. */
void comm_nccl_end(struct comm *comm);

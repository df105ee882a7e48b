/*
 * comm_device.h - the collectives a group of ranks uses on its devices, chosen by what there is
 *
 * What:      COMM_AUTO takes NCCL where every rank has a device of its own and the library is there, and goes by way of the
 *            hosts elsewhere. On top of either, ranks of one host whose devices see each other's memory make short sums by
 *            kernels of their own. A watchdog ends what hangs. One line of the log says what was chosen, and why.
 * Ownership: the comm owns all it is made of; host, backend, stream and log are borrowed and must outlive it. End with
 *            comm->ops->free, on all ranks.
 * Thread:    owner:the rank's main thread.
 * Collective: comm_device_new: over host, whose ranks are those of the comm; every rank returns the same status.
 * Errors:    FAILED_PRECONDITION with the reason where COMM_NCCL was asked for and cannot be had.
 */
#pragma once

#include "base/log.h"
#include "kernels/backend.h"
#include "parallel/comm.h"

enum comm_choice { COMM_AUTO, COMM_NCCL, COMM_STAGED };

enum comm_peers { COMM_PEERS_AUTO, COMM_PEERS_OFF };

struct comm_device_parts {
    struct comm *host;
    const struct backend *backend; /* whose memory is not the host's */
    struct backend_stream *stream;
    int device;        /* index in backend->devices */
    int choice;        /* enum comm_choice */
    int peers;         /* enum comm_peers: whether short sums are made by kernels of our own */
    int order;         /* enum comm_order */
    int64_t max_bytes; /* that a rank sends or receives in one gather_v or all_to_all_v */
    double timeout_s;  /* of a collective, and of making communicators */
    log_t log;
};

MUST_USE status_t comm_device_new(const struct comm_device_parts *parts, struct comm **comm_out);

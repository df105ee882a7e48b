/*
 * comm_staged.h - the collectives on device memory, by way of host memory and another comm
 *
 * What:      fills the table of comm.h for a backend whose memory MPI cannot see. Each call brings the device's bytes to
 *            pinned host memory, lets the host comm move them, and takes the result back: slow, and right for any
 *            number of ranks on one device.
 * Ownership: the comm borrows host, backend and stream, which must outlive it; end with comm->ops->free.
 * Thread:    owner:the rank's main thread.
 * Collective: comm_staged_new is not.
 * Errors:    RESOURCE_EXHAUSTED; INVALID_ARGUMENT for a message of more than max_bytes.
 */
#pragma once

#include "kernels/backend.h"
#include "parallel/comm.h"

struct comm_staged_parts {
    struct comm *host; /* over host memory: comm_mpi */
    const struct backend *backend;
    struct backend_stream *stream;
    int64_t max_bytes; /* that a rank sends or receives in one gather_v or all_to_all_v */
};

MUST_USE status_t comm_staged_new(const struct comm_staged_parts *parts, struct comm **comm_out);

/*
 * comm_mpi.h - the collectives over MPI, on host memory
 *
 * What:      fills the table of comm.h. Private to parallel: the one header that shows mpi.h.
 * Ownership: the comm borrows the MPI communicator, which must outlive it, or adopts it; end with comm->ops->free.
 * Thread:    owner:the rank's main thread.
 * Collective: comm_mpi_new is not.
 * Errors:    RESOURCE_EXHAUSTED.
 */
#pragma once

#include <mpi.h>

#include "parallel/comm.h"

/*
 * Scratch of a reduction, allocated once: a longer sum is made in pieces of what fits. 4 MiB, touched only
 * as far as sums need it.
 */
#define COMM_MPI_SCRATCH_FLOATS (1 << 20)

/* The communicator's errors must be returned (MPI_ERRORS_RETURN). */
MUST_USE status_t comm_mpi_new(MPI_Comm mpi, struct comm **comm_out);
/* The same; mpi is freed with it, or at once where it fails. */
MUST_USE status_t comm_mpi_adopt(MPI_Comm mpi, struct comm **comm_out);

/* What an MPI call said, as UNAVAILABLE naming the call and the rank; OK for MPI_SUCCESS. */
MUST_USE status_t comm_mpi_status(int rc, const char *what, int32_t rank);

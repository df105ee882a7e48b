/*
 * comm_shm.h - the collectives between ranks of one host, over memory they share
 *
 * What:      fills the table of comm.h: reductions and exchanges through a window that all ranks map, broadcast, send and recv
 *            by the MPI collectives it is made from. Private to parallel.
 * Ownership: takes the comm `mpi` and ends it with its own end; borrows the MPI communicator, which must outlive it.
 * Thread:    owner:the rank's main thread.
 * Collective: comm_shm_new and ->free: yes.
 * Errors:    UNAVAILABLE when MPI has no shared window for the ranks; then mpi stays the caller's.
 */
#pragma once

#include <mpi.h>

#include "parallel/comm.h"

/* All ranks of `ranks` are on this host. */
MUST_USE status_t comm_shm_new(MPI_Comm ranks, struct comm *mpi, struct comm **comm_out);

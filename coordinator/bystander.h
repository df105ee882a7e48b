/*
 * bystander.h - a coordinator inside an MPI job
 *
 * What:      under `mpirun -n 1 kvasir-coordinator ... : -n 2 kvasir-worker ...` this process is a rank, and MPI_Init of
 *            the workers waits for all ranks. The coordinator has no MPI; a child, `kvasir-worker --bystander`, takes
 *            its place in the job until the pipe that is its stdin closes.
 * Ownership: the child is ours: bystander_end closes the pipe and reaps it.
 * Thread:    owner:main. begin must come before anything else is started.
 * Errors:    FAILED_PRECONDITION when the worker program does not start.
 */
#pragma once

#include <sys/types.h>

#include "base/status.h"

struct bystander {
    pid_t pid; /* 0: none */
    int pipe_fd;
};

/* Does nothing outside an MPI job. `worker` is the program; NULL: kvasir-worker beside this executable. Inside one, the
 * variables that say so are taken out of the environment. */
MUST_USE status_t bystander_begin(const char *worker, struct bystander *out);
void bystander_end(struct bystander *b); /* accepts a zeroed one */

/* Path of kvasir-worker beside this executable. */
MUST_USE status_t bystander_worker_path(char *buf, size_t buf_bytes);

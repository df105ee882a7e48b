/*
 * group.h - the MPI job: who is in it, how it starts, agrees and ends
 *
 * What:      one mpirun job is one worker group, one replica of the model, and one failure unit. Under MPMD
 *            (mpirun -n 1 kvasir-coordinator : -n 2 kvasir-worker) the group is the workers alone.
 * Thread:    owner:main. MPI is initialised with MPI_THREAD_FUNNELED.
 * Collective: yes, but for group_abort.
 * Errors:    UNAVAILABLE when MPI cannot start.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "parallel/comm.h"

struct group;

/* MPI_Init_thread; every process whose `role` text is equal forms one group. Block signals before it. */
MUST_USE status_t group_open(const char *role, struct group **group_out);

/* Frees the communicators and calls MPI_Finalize. Accepts NULL. */
void group_close(struct group *group);

int32_t group_rank(const struct group *group);
int32_t group_size(const struct group *group);

/* Ranks on this rank's host, and this rank's index among them: for dividing cores and memory. */
int32_t group_host_size(const struct group *group);
int32_t group_host_rank(const struct group *group);

/* The group's collectives (owned by the group). */
struct comm *group_comm(struct group *group);

/* The status of the lowest failing rank, on every rank, prefixed "rank N: "; OK when all are OK. */
status_t group_agree(struct group *group, status_t mine);

/*
 * The leader's (rank 0) message to all, of any size up to data->max_bytes. Followers wait for it without burning a
 * core: they test, spin for a short while, then sleep longer and longer up to max_sleep_us.
 * On followers data is cleared and filled.
 */
MUST_USE status_t group_broadcast(struct group *group, struct bytes *data, uint32_t max_sleep_us);

/* MPI_Abort: ends every rank of the job at once. Not collective; does not return. */
_Noreturn void group_abort(struct group *group, int exit_code);

/*
 * group.h - the MPI job: who is in it, how it starts, agrees and ends
 *
 * What:      one mpirun job is one worker group, one replica of the model, and one failure unit. Under MPMD
 *            (mpirun -n 1 kvasir-coordinator : -n 2 kvasir-worker) the group is the workers alone; a
 *            bystander stands in for the coordinator, which does not know MPI (group_bystander_run).
 *            Without mpirun the group is this process.
 * Thread:    owner:main. MPI is initialised with MPI_THREAD_FUNNELED.
 * Signals:   MPI starts threads of its own. Block the signals that the program waits for (SIGTERM, SIGINT,
 *            SIGHUP) before group_open, so that those threads never take one. mpirun hands SIGTERM to every
 *            rank and SIGKILL one second later. SIGPIPE is the program's to ignore.
 * Collective: yes, but for group_abort.
 * Errors:    UNAVAILABLE when MPI cannot start or a call of it fails; after one the group is finished: leave by
 *            group_abort, since group_close would wait for ranks that may wait for this one.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "parallel/comm.h"

struct group;

/*
 * MPI_Init_thread; every process whose `role` text (under 32 bytes) is equal forms one group. Once in a process:
 * MPI does not start a second time. Sets Open MPI's mpi_yield_when_idle and opal_signal unless they are set.
 */
MUST_USE status_t group_open(const char *role, struct group **group_out);

/*
 * Waits, without burning a core, until every process of the job is here, whatever its role; then ends MPI. Accepts
 * NULL.
 */
void group_close(struct group *group);

int32_t group_rank(const struct group *group);
int32_t group_size(const struct group *group);

/* Ranks on this rank's host, and this rank's index among them: for dividing cores and memory. */
int32_t group_host_size(const struct group *group);
int32_t group_host_rank(const struct group *group);

/* Ranks of this host that may run on the very cores that this one may, as the group was opened, and this rank's index among
 * them. A size of 0: another rank shares some of the cores, not all. */
int32_t group_core_size(const struct group *group);
int32_t group_core_rank(const struct group *group);

/* The group's collectives (owned by the group). */
struct comm *group_comm(struct group *group);

/* Collectives of some ranks, in the order of the list, which are ranks of the group; the caller's rank is among them, and its rank
 * in them is its place in the list. Collective over those ranks alone; free it before the group. */
MUST_USE status_t group_comm_new(struct group *group, const int32_t *ranks, int32_t n_ranks,
                                 struct comm **comm_out);

/*
 * The collectives of this rank's stage, tp consecutive ranks of the group, whose size tp divides (owned by the group, made at
 * the first call for tp). Collective.
 */
MUST_USE status_t group_stage_comm(struct group *group, int32_t tp, struct comm **comm_out);

/*
 * The status of the lowest failing rank, on every rank, prefixed "rank N: " (a group of one: unchanged); OK when
 * all are OK. Ranks may come minutes apart: they wait as in group_broadcast.
 */
status_t group_agree(struct group *group, status_t mine);

/*
 * The leader's (rank 0) message to all, of any size up to data->max_bytes. Followers wait for it without burning a
 * core: they test, spin for a short while, then sleep longer and longer up to max_sleep_us. On followers data is
 * cleared and filled.
 */
MUST_USE status_t group_broadcast(struct group *group, struct bytes *data, uint32_t max_sleep_us);

/*
 * The same, but the leader waits for the first n_now ranks alone; the others take the message when they come to it. For
 * steps, which later stages compute later. n_now is read on the leader.
 */
MUST_USE status_t group_post(struct group *group, struct bytes *data, int32_t n_now,
                             uint32_t max_sleep_us);

/* MPI_Abort: ends every rank of the job at once. Not collective; does not return. */
_Noreturn void group_abort(struct group *group, int exit_code);

/*
 * The whole life of a process that fills a place in the job for a program without MPI: joins as role "bystander",
 * sleeps until standard input ends, and leaves with group_close. Blocks all signals; not to be called beside
 * group_open.
 *
 *     mpirun ... : kvasir-coordinator     the place in the job: mpirun watches this process
 *                    |  pipe to stdin
 *                  this process           speaks MPI in its name
 *
 * The program starts it with its own environment (OMPI_COMM_WORLD_SIZE in it says that there is a job), keeps
 * the other end of the pipe open (close-on-exec) for as long as it serves, and at the end closes it and waits
 * for this process before it exits: mpirun takes a program that leaves earlier for a failed rank. When the
 * program dies the pipe ends too.
 */
MUST_USE status_t group_bystander_run(void);

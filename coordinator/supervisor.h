/*
 * supervisor.h - the mpirun processes of the worker groups
 *
 * What:      one child per group, in a process group of its own, told by the kernel when we die. The supervisor
 *            starts, signals and reaps; when to do which is the core's to say.
 *
 *              mpirun -n 2 --bind-to none ... kvasir-worker --coordinator ADDRESS --group 0 --generation 3
 *
 *            Variables of Open MPI that the user has set win over those that are set here.
 * Ownership: the supervisor owns its children: supervisor_destroy kills and reaps what is left.
 * Thread:    owner:core (the kernel ties a child's parent-death signal to the thread that forked it).
 * Errors:    NOT_FOUND when the program does not exist, with a fix.
 * Source:    measured with Open MPI 4.1: a killed rank ends the job, and mpirun exits 128 + signal.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/log.h"
#include "base/status.h"

#define SUPERVISOR_MAX_GROUPS 64

struct supervisor_options {
    const char *mpirun;          /* program */
    const char *mpirun_args;     /* separated by blanks; NULL: none */
    const char *worker;          /* program */
    const char *address;         /* of the coordinator */
    const char *join_token_file; /* NULL: none */
    const char *device;          /* auto, cpu or cuda */
    const char *log_level;
    int32_t n_ranks;  /* per group */
    int32_t n_groups; /* on this host, for dividing cores */
    int32_t n_cores;  /* 0: as many as this process may use */
    log_t log;
};

struct supervisor {
    struct supervisor_options options;
    pid_t children[SUPERVISOR_MAX_GROUPS]; /* 0: none */
};

void supervisor_init(struct supervisor *s, const struct supervisor_options *options);
void supervisor_destroy(struct supervisor *s);

MUST_USE status_t supervisor_start(struct supervisor *s, int group, uint32_t generation);
bool supervisor_is_running(const struct supervisor *s, int group);

/* To the group's mpirun; SIGTERM makes it end its ranks, SIGKILL ends it at once (ranks follow within 3 s). */
void supervisor_signal(struct supervisor *s, int group, int signal);

/* True once the group's child has ended and was reaped; *wait_status_out is waitpid's. */
bool supervisor_reap(struct supervisor *s, int group, int *wait_status_out);

/* "mpirun exited with code 65", "a rank was killed by signal 9", ... into buf; returns buf. */
const char *supervisor_describe(int wait_status, char *buf, size_t buf_bytes);

/* Whether the exit is a plain refusal (64, 65, 77, 78): starting it again cannot help. *code_out: the status code
 * that exits that way. */
bool supervisor_is_permanent(int wait_status, int *code_out);

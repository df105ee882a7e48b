/*
 * host_cores.h - how many threads a rank has, and on which cores of its host they stay
 *
 * What:      ranks that may run on the same cores divide these: rank i of n takes the i-th of n equal shares, which are cut along
 *            packages, memory and caches, so that a rank's threads are neighbours. A rank that mpirun or a batch system has
 *            bound divides nothing: its cores are its own. Each thread is pinned to a core of the share; a thread that moves
 *            leaves its caches, and a step waits for its slowest thread.
 *
 *              package 0: c0 c1 c2 c3     package 1: c4 c5 c6 c7      2 ranks of 4 threads
 *              rank 0     0  1  2  3      rank 1     0  1  2  3
 *
 *            Not pinned, with the reason: more threads than cores; cores that are only in part another rank's too; a machine
 *            whose cores cannot be read. And, unless pinning is asked for, threads that leave cores idle: another job
 *            on the host may leave the same ones idle and use the same others.
 * Units:     a core is a processor as the kernel counts them; of cores with two hardware threads one is used where that
 *            is enough.
 * Thread:    init: reads what the calling thread may run on, so before it is pinned.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/log.h"

#define HOST_MAX_CORES 1024 /* as cpu_set_t */

#define HOST_PINNING_CHOICES "auto|on|off"

enum host_pinning { HOST_PIN_AUTO, HOST_PIN_ON, HOST_PIN_OFF };

struct host_cores_request {
    int32_t n_sharers; /* ranks that may run on the same cores; 0: some cores are shared, not all */
    int32_t index;     /* of this rank among them */
    int32_t n_threads; /* of each; 0: what there are cores for, at least 1 */
    int pinning;       /* enum host_pinning */
    const char
        *machine; /* NULL: this one; else in hwloc's words, for tests: "pack:2 core:4 pu:1" */
};

struct host_cores {
    int32_t n_threads; /* of this rank */
    int32_t n_cores;   /* that its ranks share */
    bool pinned;
    int32_t cores[HOST_MAX_CORES]; /* pinned: [n_threads] */
    char why[96];                  /* not pinned: the reason */
};

void host_cores_choose(const struct host_cores_request *request, struct host_cores *cores_out);

/* What was chosen, at level info: "n=2 pinned=true cores=0,1" or "n=4 pinned=false why=..." */
void host_cores_log(const struct host_cores *cores, const log_t *log);

/* What the calling thread may run on. A thread that a pinned one starts is pinned, too, until it is given this. */
struct host_cores_mask {
    uint64_t bits[HOST_MAX_CORES / 64];
};

void host_cores_get_mask(struct host_cores_mask *mask_out);
void host_cores_set_mask(const struct host_cores_mask *mask);

/*
 * leader.h - rank 0 of a group: talks to the coordinator, schedules, and leads every step
 *
 * What:      dials the coordinator (WorkerLink.Attach), says hello, receives the assignment, has the group load its
 *            weights, reports ready, and then serves: messages in, one step after another, results out.
 * Thread:    owner:main, which computes once the group serves. Then a thread of the leader's own takes events, schedules, and
 *            says results, a step ahead of the main thread (step_runner.h); it sleeps on its mailbox while there is
 *            nothing to do. gRPC's callbacks and a signal thread only post to that mailbox, and a thread of the link sends
 *            heartbeats.
 * Collective: yes, with follower_run on the other ranks.
 * Errors:    as follower.h; *told_out: the coordinator has been told, so that it need not be printed twice.
 */
#pragma once

#include "parallel/group.h"
#include "worker/member.h"

struct leader_exit {
    bool broken; /* the group is in a collective: only group_abort ends it */
    bool told;   /* the coordinator knows */
};

/* OK when the coordinator or a signal said stop. SIGTERM, SIGINT and SIGUSR2 must be blocked in every thread. */
MUST_USE status_t leader_run(struct group *group, const struct member_options *options,
                             struct leader_exit *exit_out);

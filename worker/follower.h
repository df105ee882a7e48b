/*
 * follower.h - ranks 1..N-1 of a group: do what the leader broadcasts
 *
 * Thread:    owner:main
 * Collective: yes, with leader_run on rank 0.
 * Errors:    a status once the group has agreed on it (start-up); *broken_out is set when the failure is this rank's
 *            own in the middle of a step: the others are in a collective, and only group_abort ends them.
 */
#pragma once

#include "base/log.h"
#include "parallel/group.h"
#include "worker/worker_config.h"

MUST_USE status_t follower_run(struct group *group, const struct worker_config *config, log_t log,
                               bool *broken_out);

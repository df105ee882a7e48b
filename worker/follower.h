/*
 * follower.h - ranks 1..N-1 of a group: do what the leader broadcasts
 *
 * Thread:    owner:main
 * Collective: yes, with leader_run on rank 0.
 * Errors:    a status once the group has agreed on it (start-up); *broken_out is set when the failure is this rank's
 *            own in the middle of a step: the others are in a collective, and only group_abort ends them.
 */
#pragma once

#include "parallel/group.h"
#include "worker/member.h"

MUST_USE status_t follower_run(struct group *group, const struct member_options *options,
                               bool *broken_out);

/*
 * member.h - what every rank of a group is made of once it knows its assignment
 *
 * What:      spec and plan from the coordinator's assignment, and the engine built from them. The leader broadcasts
 *            control frames, u32 kind then payload; all ranks obey them in order.
 *
 *              CONTROL_ASSIGN  payload: the assignment as it came over WorkerLink
 *              CONTROL_STEP    payload: step_draw_pack, for a leader that does not draw itself; step_plan_pack
 *              CONTROL_STOP    no payload: leave the loop, finalise, exit
 *
 * Ownership: the member owns spec, plan, engine, step and draw.
 * Thread:    owner:the rank's main thread.
 * Collective: member_open: yes; every rank returns the same status.
 */
#pragma once

#include "base/log.h"
#include "parallel/group.h"
#include "proto/wire/link.h"
#include "worker/device.h"
#include "worker/engine.h"
#include "worker/rank_cores.h"
#include "worker/swap_cost.h"
#include "worker/worker_config.h"

enum control_kind { CONTROL_ASSIGN = 1, CONTROL_STEP = 2, CONTROL_STOP = 3 };

/* Bound of one control frame: a step of 4096 sequences with long block tables is a few MiB. */
#define CONTROL_MAX_BYTES (64u << 20)

struct member {
    struct model_spec spec;
    struct plan plan;
    struct host_cores cores; /* of the CPU's threads; the engine borrows them */
    struct engine *engine;
    struct step_plan step;      /* followers: the one obeyed */
    struct step_draw draw;      /* a follower that draws: what */
    struct swap_cost swap_cost; /* zeros: there are no slots */
};

struct member_options {
    const struct worker_config *config;
    const struct device_choice *device;
    const status_t
        *device_status; /* whether there is one: agreed on, and said when the assignment comes */
    log_t log;
    void (*progress)(void *user, uint64_t bytes_done,
                     uint64_t bytes_total); /* rank 0; may be NULL */
    void *user;
};

/* Steps that may be under way at once. */
int32_t member_max_steps(const struct plan *plan, const struct worker_config *config);

/* Fills *m in place (the engine borrows its spec and plan: a member does not move); zeroed on failure. */
MUST_USE status_t member_open(struct group *group, const struct wire_assign *assign,
                              const struct member_options *options, struct member *m);
void member_close(struct member *member); /* accepts a zeroed member */

/*
 * core_parts.h - the pieces the core is made of; for coordinator/core*.c alone
 *
 * Thread: owner:core, all of it, but for the fields said to be otherwise
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/mailbox.h"
#include "coordinator/core.h"
#include "coordinator/link.h"
#include "coordinator/pace.h"
#include "coordinator/progress.h"
#include "coordinator/request.h"
#include "coordinator/router.h"
#include "coordinator/supervisor.h"
#include "coordinator/validate.h"
#include "proto/wire/cluster.h"
#include "proto/wire/link.h"

#define CORE_MAX_GROUPS      ROUTER_MAX_GROUPS
#define CORE_HASH_BUCKETS    4096 /* a power of two */
#define CORE_MAX_WATCHERS    64
#define CORE_MAX_STOP_TOKENS (VALIDATE_MAX_STOP_TOKENS + SPEC_MAX_EOS)
#define CORE_TICK_NS         (100 * NS_PER_MS)

enum core_phase { CORE_SERVING, CORE_DRAINING, CORE_STOPPING, CORE_STOPPED };

struct core_group {
    bool exists;
    bool supervised; /* a process of ours, now or soon */
    int state;       /* enum wire_group_state */
    uint32_t generation;
    uint64_t restarts;
    bool was_ready;    /* in any generation */
    int n_failures;    /* in a row, without having been ready */
    struct link *link; /* a reference; NULL: not attached */
    char host[128], device[32];
    uint64_t heard_ns;
    uint64_t start_at_ns; /* LOST: when to start again */
    uint64_t backoff_ns;
    uint64_t term_at_ns, kill_at_ns; /* of the process: when to escalate; UINT64_MAX: not */
    status_t failure;                /* what the worker said, or how it was lost */
    uint64_t n_blocks_per_lane;
    uint32_t n_lanes;
    struct wire_load load;
    uint64_t tokens_window, window_start_ns; /* tokens since then, for the rate */
    double tokens_per_second;
    struct progress loading;
};

/* A call of Cluster's that is answered later, or more than once. */
struct core_caller {
    struct rpc_call *call; /* a reference; NULL: a free place */
    uint64_t interval_ns, next_ns;
};

struct core {
    struct core_options options; /* fixed */
    const struct coordinator_config *config;
    const struct model *model;
    struct metrics *metrics;
    struct gate *gate;
    log_t log;
    const struct clock *clock;

    /* any thread */
    struct mailbox inbox;
    atomic_bool sweep_wanted;
    atomic_bool drain_wanted, stop_wanted;
    _Atomic uint64_t ticked_ns;

    /* owner: core */
    pthread_t thread;
    bool thread_started;
    int phase; /* enum core_phase */
    status_t result;
    uint64_t now_ns; /* of the message that is handled */
    uint64_t started_ns, drain_until_ns, stop_until_ns;
    bool said_ready;
    bool hurried; /* stop was asked for twice, or without drain */

    struct router router;
    struct core_group groups[CORE_MAX_GROUPS];
    int n_groups; /* ever used */
    struct supervisor supervisor;
    bool supervises;

    struct request_sample *by_seq[CORE_HASH_BUCKETS];
    struct request *by_id[CORE_HASH_BUCKETS];
    struct request *live;  /* QUEUED and RUNNING */
    struct request *ended; /* ENDED */
    uint32_t n_running, n_live;
    uint64_t next_seq_id;
    uint64_t ended_ns, interval_ns; /* last end of a request; smoothed time between ends */
    uint64_t next_deadline_ns;      /* of those that live; RPC_NO_DEADLINE */
    struct pace pace;               /* of the ready groups */

    struct core_caller watchers[CORE_MAX_WATCHERS];
    struct core_caller drainers[CORE_MAX_WATCHERS];
    struct arena scratch; /* of the message that is handled */
    struct bytes packed;  /* scratch: a message to a client */
};

// ---- core.c ----

/* Finishes what runs for at most grace_ns, then stops. A second one may only shorten the time. */
void core_drain(struct core *core, uint64_t grace_ns);

/* Ends the whole with this status: a group that can never start. */
void core_fail(struct core *core, const status_t *status);

/* Health, gate and gauges after anything changed in which groups are ready. */
void core_update_serving(struct core *core);

// ---- core_requests.c ----

/* Both take over the reference that came with the message. */
void core_requests_admit(struct core *core, struct request *request);
void core_requests_gone(struct core *core, struct request *request);

/* Ends those whose deadlines have passed. */
void core_requests_expire(struct core *core);

/* Whether a request with this id is QUEUED or RUNNING. */
bool core_requests_are_live(struct core *core, const char *request_id);

/* Ends requests whose calls are over, where no message could say so. */
void core_requests_sweep(struct core *core);

/* Cancels calls that were answered long ago and whose clients do not read. */
void core_requests_tick(struct core *core);

/* Forgets the requests that have ended, whether their calls are over or not. */
void core_requests_close(struct core *core);
void core_requests_dispatch(struct core *core);
void core_requests_output(struct core *core, int group, const struct wire_seq_output *output);

/* Ends every request of the group (-1: of all, the waiting ones too). Returns how many. */
uint32_t core_requests_fail(struct core *core, int group, const status_t *status);

// ---- core_admission.c ----

/* Puts the request into the router's queue, or says (and counts) why not. */
MUST_USE status_t core_admission_enter(struct core *core, struct request *request);

/* Whether one that waited can still be done in time. */
MUST_USE status_t core_admission_recheck(struct core *core, struct request *request);

// ---- core_groups.c ----

void core_groups_init(struct core *core);
void core_groups_message(struct core *core, struct link *link, const uint8_t *data, size_t size);
void core_groups_gone(struct core *core, struct link *link); /* takes over the reference */
void core_groups_tick(struct core *core);
void core_groups_sweep(struct core *core);
void core_groups_lost(struct core *core, int index, int reason, const status_t *why);

/* Tells every group to end. */
void core_groups_shutdown(struct core *core);

/* Signals processes sooner than planned: somebody is waiting. */
void core_groups_hurry(struct core *core);

/* No link and no process is left. */
bool core_groups_are_gone(const struct core *core);

/* Whether any group is expected without anybody's doing. */
bool core_groups_are_expected(const struct core *core);

// ---- core_status.c ----

void core_status_call(struct core *core, const struct core_message *message);
void core_status_tell_watchers(struct core *core); /* something changed */
void core_status_tick(struct core *core);          /* time passed */
void core_status_tell_drained(struct core *core, uint32_t requests_ended);
void core_status_close(struct core *core);
void core_status_gauges(struct core *core);

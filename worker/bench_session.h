/*
 * bench_session.h - a group and an engine to measure, without a coordinator
 *
 * What:      what member.h is to a served group: device, spec, plan, engine and a step plan, from settings instead of
 *            an assignment. Every rank makes the same steps by itself.
 * Ownership: owns all of it but the group. The engine borrows spec, plan and trace: a session does not move.
 * Thread:    owner:the rank's main thread.
 * Collective: all; open returns the same status on every rank.
 */
#pragma once

#include "parallel/group.h"
#include "worker/bench_config.h"
#include "worker/bench_trace.h"
#include "worker/device.h"
#include "worker/engine.h"
#include "worker/rank_cores.h"

struct bench_session {
    struct group *group;
    const struct bench_config *config;
    log_t log;
    struct device_choice device;
    struct host_cores cores; /* of the CPU's threads */
    int dtype, kv_dtype;     /* enum dtype */
    struct model_spec spec;
    struct plan plan;
    struct bench_trace *trace; /* NULL: none */
    struct engine *engine;
    struct step_plan step;
};

struct bench_session_request {
    struct group *group;
    const struct bench_config *config;
    const char *model_dir;
    const struct backend *backend; /* NULL: by --device */
    log_t log;
    bool *broken; /* set where a rank failed in a step: others may wait for it in a collective */
};

struct bench_session_limits {
    int32_t max_num_seqs, max_rows, max_model_len;
    int32_t max_steps;       /* under way at once */
    uint64_t kv_cache_bytes; /* 0: what those sequences need */
};

/* Device, spec and plan: enough to know the limits. Zeroed on failure. */
MUST_USE status_t bench_session_init(const struct bench_session_request *request,
                                     struct bench_session *session);
MUST_USE status_t bench_session_open_engine(struct bench_session *session, const char *model_dir,
                                            const struct bench_session_limits *limits);
void bench_session_destroy(struct bench_session *session); /* accepts a zeroed one */

/* The most and the sum over all ranks, on every rank. */
MUST_USE status_t bench_session_most(struct bench_session *session, double *value);
MUST_USE status_t bench_session_sum(struct bench_session *session, double *value);

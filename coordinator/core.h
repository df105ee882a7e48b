/*
 * core.h - the thread that owns every request, every worker group and their processes
 *
 * What:      one thread takes messages from one mailbox. Because it alone changes things, there are no locks and no
 *            order of locks. Life of the whole:
 *
 *              SERVING --drain--> DRAINING --nothing lives, or time is up--> STOPPING --groups gone--> STOPPED
 *                 |                                                             ^
 *                 +-- stop, or a group that can never start --------------------+
 *
 *            Life of a worker group (generation counts the arrows into STARTING):
 *
 *              STARTING --hello--> LOADING --ready--> READY --shutdown--> DRAINING
 *                 ^   |               |                 |                    |
 *                 |   +---------------+-----------------+--------------------+
 *                 |        exit, link broken, silence   v
 *                 +---------- 0.5 s .. 10 s --------- LOST
 *
 * Ownership: borrows what the options name; it must outlive the core.
 * Thread:    post and the queries: any. Events are called on the core thread.
 * Errors:    core_result is how it ended: OK after drain or stop, else why no group can start.
 */
#pragma once

#include "base/clock.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/config_table.h"
#include "coordinator/core_message.h"
#include "coordinator/gate.h"
#include "coordinator/metrics.h"
#include "coordinator/model.h"
#include "proto/rpc/rpc.h"

struct core;

enum core_call { CORE_CALL_STATUS, CORE_CALL_WATCH, CORE_CALL_DRAIN };

struct core_options {
    const struct coordinator_config *config;
    const struct model *model;
    const char *worker;     /* the worker program; read with --launcher mpirun only */
    const char *join_token; /* NULL: none is asked for */
    struct rpc_server *server;
    struct metrics *metrics;
    struct gate *gate;
    log_t log;
    void (*on_ready)(void *user); /* a request would be served: once. May be NULL */
    void (*on_stopped)(
        void *user); /* STOPPED: core_free may be called, from another thread. May be NULL */
    void *user;
};

MUST_USE status_t core_new(const struct core_options *options, struct core **core_out);

/* Starts the thread, and the worker groups. The server must know its address by now. */
MUST_USE status_t core_start(struct core *core);

/* Stops if need be, and waits for the thread to end. Messages may still be posted; nobody reads them. */
void core_join(struct core *core);

/* Joins if need be. Nothing may be posted any more. Accepts NULL. */
void core_free(struct core *core);

/* On failure the message and what it names stay the caller's. */
MUST_USE status_t core_post(struct core *core, struct core_message *message);

/* A call is over and could not be posted: the core will look for it. */
void core_sweep(struct core *core);

/* CORE_DRAIN or CORE_STOP; never fails. */
void core_end(struct core *core, int kind);

/* Valid after on_stopped or core_join. */
status_t core_result(const struct core *core);

/* Since the core last looked at its mailbox: a core that is alive does so twice a second. */
uint64_t core_silence_ns(const struct core *core);

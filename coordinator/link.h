/*
 * link.h - the coordinator's end of WorkerLink: one stream of one worker group
 *
 * What:      rpc callbacks that hand what arrives to the core, and sending.
 * Ownership: counted references: the call's (until on_closed), each message's on its way, and the core's while
 *            the link has a group.
 * Thread:    callbacks: rpc pollers. send and end: owner:core.
 * Errors:    UNAVAILABLE when the group is gone; RESOURCE_EXHAUSTED when it does not read.
 */
#pragma once

#include <stdatomic.h>

#include "base/bytes.h"
#include "base/status.h"
#include "coordinator/core_message.h"
#include "proto/rpc/rpc.h"
#include "proto/wire/link.h"

#define LINK_NO_GROUP (-1)

struct core;

struct link {
    struct rpc_call *call; /* a reference */
    struct core *core;
    atomic_int refs;
    atomic_int closed;
    struct core_message gone;

    /* owner: core */
    int group;
    bool refused; /* its status was sent; what still arrives is dropped */
};

/* The method's context is the core. */
extern const struct rpc_handlers link_handlers;

void link_acquire(struct link *link);
void link_release(struct link *link);

/* Below this many bytes on their way a submit may be added; above it the group is behind with reading. */
#define LINK_MAX_BACKLOG_BYTES ((size_t)6 * 1024 * 1024)

bool link_is_backlogged(const struct link *link);
MUST_USE status_t link_send(struct link *link, const struct wire_coordinator_message *message);

/* Ends the stream with this status. */
void link_end(struct link *link, const status_t *status);

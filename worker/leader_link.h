/*
 * leader_link.h - the leader's end of WorkerLink: a mailbox in, messages out
 *
 * What:      one bidi call to the coordinator. What arrives, the end of the call, and SIGTERM or SIGINT become events
 *            in one mailbox, which one thread takes from. A thread of its own sends a heartbeat every second, also while
 *            weights are loaded or a long step is computed.
 * Ownership: an event belongs to its taker; free with leader_event_free.
 * Thread:    open, close: owner:main. take, send, set_load, flush: one thread at a time: main, and while the group serves the
 *            leader's. wake: any. Callbacks run on gRPC's poller.
 * Errors:    send fails with UNAVAILABLE when the coordinator is gone.
 */
#pragma once

#include "base/arena.h"
#include "base/log.h"
#include "proto/wire/link.h"

struct leader_link;

enum leader_event_kind { LEADER_EVENT_MESSAGE, LEADER_EVENT_CLOSED, LEADER_EVENT_SIGNAL };

struct leader_event {
    int kind; /* enum leader_event_kind */
    struct arena arena;
    struct wire_coordinator_message message;
    status_t status; /* CLOSED: how the call ended */
};

MUST_USE status_t leader_link_open(const char *coordinator, log_t log, struct leader_link **out);
void leader_link_close(struct leader_link *link); /* accepts NULL */

/* NULL after timeout_ns, or once after leader_link_wake. */
struct leader_event *leader_link_take(struct leader_link *link, uint64_t timeout_ns);
void leader_link_wake(struct leader_link *link);
void leader_event_free(struct leader_event *event);

MUST_USE status_t leader_link_send(struct leader_link *link,
                                   const struct wire_worker_message *message);

/* Heartbeats begin with the first call; each says the last load, and since when the step under way runs (0: none). */
void leader_link_set_load(struct leader_link *link, const struct wire_load *load,
                          uint64_t step_began_ns);

/* Half-closes and waits at most timeout_ns for the coordinator to have read everything. */
void leader_link_flush(struct leader_link *link, uint64_t timeout_ns);

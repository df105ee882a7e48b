/*
 * gate.h - the first answer to "may this request come in", given before anything is read
 *
 * What:      a count of live requests and the reason why none is taken, if there is one. Refusing costs a few
 *            atomic loads, so that overload and start-up are answered at once, on the thread that got the call.
 *            The exact bounds are the router's; this one only keeps work that is sure to be refused, and
 *            memory, out.
 * Thread:    any (atomics); mode, limits and retry time are set by the core thread.
 * Errors:    UNAVAILABLE with the reason, RESOURCE_EXHAUSTED with both numbers.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "base/status.h"

enum gate_mode {
    GATE_LOADING,    /* groups are on their way */
    GATE_NO_WORKERS, /* none is expected: somebody must start them */
    GATE_LOST,       /* all were lost, and are being started again */
    GATE_OPEN,
    GATE_DRAINING,
    GATE_N_MODES,
};

struct gate {
    atomic_int mode;  /* enum gate_mode */
    atomic_uint live; /* requests that came in and have not ended */
    atomic_uint max_live;
    atomic_uint retry_ms;   /* what a refused client is told */
    _Atomic uint64_t bytes; /* of messages that wait to be read */
    uint64_t max_bytes;
};

void gate_init(struct gate *g, uint64_t max_bytes);

/* Counts the request in on success: gate_leave must follow, once. */
MUST_USE status_t gate_enter(struct gate *g);
void gate_leave(struct gate *g);

/* The same for message bytes. */
MUST_USE status_t gate_enter_bytes(struct gate *g, uint64_t size_bytes);
void gate_leave_bytes(struct gate *g, uint64_t size_bytes);

/* Why nothing is served; "" when open. Lowercase, one line. */
const char *gate_reason(int mode);

/*
 * http.h - /metrics, /livez and /readyz for probes and Prometheus
 *
 * What:      a small server on a port of its own, never the clients'. /livez is 200 while the core looks at its
 *            mailbox; /readyz is 200 while requests are served, else 503 with the reasons as JSON.
 * Ownership: borrows core, gate and metrics; free before them.
 * Thread:    one of its own.
 * Errors:    UNAVAILABLE naming the address when it cannot be bound.
 */
#pragma once

#include "base/status.h"
#include "coordinator/core.h"
#include "coordinator/gate.h"
#include "coordinator/metrics.h"

struct http;

struct http_options {
    const char *address; /* "HOST:PORT", port 0: any */
    struct core *core;
    struct gate *gate;
    struct metrics *metrics;
};

MUST_USE status_t http_new(const struct http_options *options, struct http **http_out);
void http_free(struct http *http); /* accepts NULL */

/* The bound address, "127.0.0.1:8051". */
const char *http_address(const struct http *http);

#include "coordinator/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/gate.h"

/* A request is at most 4 MiB on the wire; strings and lists of small things need a few times that. */
#define MAX_ARENA_BYTES ((size_t)64 * 1024 * 1024)

status_t request_new(struct rpc_call *call, struct gate *gate, const uint8_t *data, size_t size,
                     struct request **request_out)
{
    struct request *request = calloc(1, sizeof *request);
    uint8_t *raw = malloc(size > 0 ? size : 1);
    if (request == NULL || raw == NULL) {
        free(request);
        free(raw);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a request of %zu bytes",
                             size);
    }
    if (size > 0) {
        memcpy(raw, data, size);
    }
    request->call = rpc_call_acquire(call);
    request->gate = gate;
    request->raw = raw;
    request->raw_bytes = size;
    request->entered = true;
    request->deadline_ns = rpc_call_deadline_ns(call);
    request->queue.at = ROUTER_NOT_QUEUED;
    atomic_init(&request->refs, 2);
    atomic_init(&request->closed, 0);
    arena_init(&request->arena, MAX_ARENA_BYTES);
    *request_out = request;
    return status_ok();
}

void request_acquire(struct request *request)
{
    atomic_fetch_add(&request->refs, 1);
}

static void leave_gate(struct request *request)
{
    if (request->entered) {
        request->entered = false;
        gate_leave(request->gate);
    }
}

void request_release(struct request *request)
{
    if (atomic_fetch_sub(&request->refs, 1) > 1) {
        return;
    }
    leave_gate(request);
    answer_destroy(&request->answer);
    token_list_destroy(&request->prompt);
    arena_destroy(&request->arena);
    free(request->raw);
    rpc_call_release(request->call);
    free(request);
}

void request_refuse(struct request *request, const status_t *status)
{
    leave_gate(request);
    if (status->code != STATUS_RESOURCE_EXHAUSTED) {
        rpc_finish(request->call, status, NULL, 0);
        return;
    }
    char text[16];
    snprintf(text, sizeof text, "%u",
             request->retry_ms > 0 ? request->retry_ms : atomic_load(&request->gate->retry_ms));
    const struct rpc_trailer retry = {.key = "retry-after-ms", .value = text};
    rpc_finish(request->call, status, &retry, 1);
}

void request_complete(struct request *request)
{
    leave_gate(request);
    const status_t ok = status_ok();
    rpc_finish(request->call, &ok, NULL, 0);
}

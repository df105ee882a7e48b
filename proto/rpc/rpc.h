/*
 * rpc.h - gRPC servers, clients and calls; the only place that sees grpc.h
 *
 * What:      messages are bytes here; proto/wire gives them meaning. One struct rpc_call is one RPC, seen from
 *            either side. Every call has at most one send under way in the library and a bounded queue of our own.
 * Ownership: a call is reference counted. A callback may use its call; to keep it longer, rpc_call_acquire.
 *            Message bytes given to on_message are borrowed until it returns.
 * Thread:    functions: any. Callbacks come from the server's (channel's) poller threads, for one call never two
 *            at once, and must not block or compute: hand work to a mailbox.
 * Errors:    statuses carry gRPC's codes. Messages sent to peers are cut to 1 KiB.
 * Source:    gRPC core surface API 1.51 (grpc/grpc.h).
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/log.h"
#include "base/status.h"

struct rpc_server;
struct rpc_channel;
struct rpc_call;
struct bytes;

#define RPC_NO_DEADLINE UINT64_MAX

struct rpc_handlers {
    /* A message arrived. The next one is read after it returned. */
    void (*on_message)(struct rpc_call *call, const uint8_t *data, size_t size);

    /* The peer will send no more (server: client half-closed; client: not used). May be NULL. */
    void (*on_half_close)(struct rpc_call *call);

    /* The send queue became empty after rpc_send had refused a message. May be NULL. */
    void (*on_writable)(struct rpc_call *call);

    /* Exactly once, last; also when no other callback came before. Server: OK after rpc_finish was delivered, CANCELLED or DEADLINE_EXCEEDED as soon as the
     * peer is gone or out of time (even while a handler has not finished). Client: the call's final status. */
    void (*on_closed)(struct rpc_call *call, const status_t *status);
};

/* ---- calls, both sides ------------------------------------------------------------------------ */

struct rpc_call *rpc_call_acquire(struct rpc_call *call);
void rpc_call_release(struct rpc_call *call);

/* One pointer of the handler's own. Set it in the first callback (or before start, on a client). */
void rpc_call_set_user(struct rpc_call *call, void *user);
void *rpc_call_user(const struct rpc_call *call);

/* Copies the message into the call's queue. RESOURCE_EXHAUSTED when it would pass the queue's bound (nothing is
 * queued; on_writable follows), INVALID_ARGUMENT when it alone would, UNAVAILABLE when the call is over. */
MUST_USE status_t rpc_send(struct rpc_call *call, const void *data, size_t size);

/* What waits in the queue, with 64 bytes on top of each message; not what the library has taken already. */
size_t rpc_queued_bytes(const struct rpc_call *call);

/* Ends the call from this side and tells the peer nothing more than that. */
void rpc_cancel(struct rpc_call *call);

/* ---- server ------------------------------------------------------------------------------------ */

enum rpc_shape { RPC_UNARY, RPC_SERVER_STREAM, RPC_CLIENT_STREAM, RPC_BIDI };

struct rpc_method {
    const char *path; /* "/kvasir.v1.Inference/Generate" */
    int shape; /* enum rpc_shape; for the first two the request is read whole before on_message */
    const struct rpc_handlers *handlers;
    void *context; /* rpc_call_context */
};

/* Zero means the default given. */
struct rpc_server_options {
    const char *address;            /* "HOST:PORT" (port 0: any) or "unix:PATH" */
    int n_pollers;                  /* 4 */
    size_t max_receive_bytes;       /* 4 MiB */
    size_t max_queued_bytes;        /* per call, 8 MiB */
    int max_streams_per_connection; /* 1024 */
    size_t max_live_calls;          /* 16384; above it calls end at once with RESOURCE_EXHAUSTED */
    log_t log;
};

/* Creates and binds; UNAVAILABLE names the address when it is in use or cannot be bound, with a fix. A stale unix
 * socket file that nobody listens on is removed. Methods may be added until rpc_server_start. */
MUST_USE status_t rpc_server_new(const struct rpc_server_options *options,
                                 struct rpc_server **server_out);

/* A request of a unary or server-streaming method is exactly one message: a missing or a second one ends the call with
 * INVALID_ARGUMENT, as an unknown method does with UNIMPLEMENTED, before on_message. */
MUST_USE status_t rpc_server_add(struct rpc_server *server, const struct rpc_method *method);

/* A method that is described but not built: every call ends with UNIMPLEMENTED and this message. */
MUST_USE status_t rpc_server_add_unimplemented(struct rpc_server *server, const char *path,
                                               int shape, const char *message);

/* grpc.health.v1.Health and grpc.reflection.v1 + v1alpha over everything that was added. */
MUST_USE status_t rpc_server_add_health(struct rpc_server *server);
MUST_USE status_t rpc_server_add_reflection(struct rpc_server *server);

/* Health of a service ("" = the process). Watchers are told. Unknown until first set. */
void rpc_server_set_health(struct rpc_server *server, const char *service, bool serving);

MUST_USE status_t rpc_server_start(struct rpc_server *server);

/* The bound address, "127.0.0.1:50051" or "unix:/path": what a client dials. */
const char *rpc_server_address(const struct rpc_server *server);

/* Refuses new calls (UNAVAILABLE), waits at most grace_ns for live ones, cancels the rest, joins the pollers. Health
 * is NOT_SERVING from the first moment, and still answered; health and reflection streams are not waited for. */
void rpc_server_drain(struct rpc_server *server, uint64_t grace_ns);

/* Drains with no grace if rpc_server_drain was not called. Accepts NULL. */
void rpc_server_free(struct rpc_server *server);

void *rpc_call_context(const struct rpc_call *call);
const char *rpc_call_path(const struct rpc_call *call);
uint64_t rpc_call_deadline_ns(const struct rpc_call *call); /* CLOCK_MONOTONIC; RPC_NO_DEADLINE */

/* First value of a request header (lower-case key) into buf; false when absent or too long for buf. Both are known
 * until on_closed has returned; a peer reads "ipv4:127.0.0.1:40312". */
bool rpc_call_metadata(const struct rpc_call *call, const char *key, char *buf, size_t buf_bytes);
void rpc_call_peer(const struct rpc_call *call, char *buf, size_t buf_bytes);

struct rpc_trailer {
    const char *key; /* "retry-after-ms" */
    const char *value;
};

/* Sends what is queued, then the status. Later sends are refused; a second finish is ignored. */
void rpc_finish(struct rpc_call *call, const status_t *status, const struct rpc_trailer *trailers,
                size_t n_trailers);

/* rpc_send + rpc_finish(OK) in one go, whatever the queue's bound: the answer of a unary call. */
void rpc_reply(struct rpc_call *call, const struct bytes *message);

/* ---- client ------------------------------------------------------------------------------------ */

struct rpc_channel_options {
    uint64_t keepalive_ns;    /* 0: 20 s */
    size_t max_receive_bytes; /* 0: 64 MiB */
    size_t max_queued_bytes;  /* 0: 64 MiB */
    log_t log;
};

MUST_USE status_t rpc_channel_new(const char *address, const struct rpc_channel_options *options,
                                  struct rpc_channel **channel_out);
void rpc_channel_free(
    struct rpc_channel *channel); /* cancels its calls, joins its poller; accepts NULL */

enum rpc_start_flags { RPC_WAIT_FOR_READY = 1 };

struct rpc_start_args {
    const char *path;
    const struct rpc_handlers *handlers;
    void *user;
    uint64_t timeout_ns; /* RPC_NO_DEADLINE: none */
    int flags;
};

/* The caller holds one reference to the call. */
MUST_USE status_t rpc_start(struct rpc_channel *channel, const struct rpc_start_args *args,
                            struct rpc_call **call_out);

/* This side will send no more. */
void rpc_half_close(struct rpc_call *call);

/* A trailer of a client call, valid in and after on_closed; false when absent. */
bool rpc_call_trailer(const struct rpc_call *call, const char *key, char *buf, size_t buf_bytes);

/* One unary call, blocking; not from a callback. The response is appended to *response_out. */
MUST_USE status_t rpc_unary(struct rpc_channel *channel, const char *path,
                            const struct bytes *request, uint64_t timeout_ns,
                            struct bytes *response_out);

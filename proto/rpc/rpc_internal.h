/*
 * rpc_internal.h - what the files of proto/rpc share
 *
 * What:      a host (one server or one channel) owns a completion queue, its pollers and its live calls.
 *
 *              poller: grpc_completion_queue_next -> op->done -> [state of the call changes, mutex held]
 *                      -> rpc_call_dispatch: callbacks, one at a time, mutex not held
 *
 *            A call lives in the library until on_closed was delivered and no operation is under way; then its
 *            grpc_call is given up. References of users keep the struct alone, so that they may outlive the host.
 * Thread:    lock order: rpc_health.mutex, host.mutex, call.mutex. No lock is held during a callback.
 * Source:    gRPC core surface API 1.51; what its documentation leaves out was measured.
 */
#pragma once

#include <grpc/grpc.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "proto/rpc/rpc.h"

#define RPC_MAX_POLLERS 64

/* Texts of statuses that travel; a peer's limit for headers (8 KiB) holds for them and the trailers together. */
#define RPC_MAX_MESSAGE_TEXT 1024

/* Each queued message counts its bytes and this, so that empty ones are bounded too. */
#define RPC_QUEUE_OVERHEAD 64

// ---- operations ----

/*
 * The tag of everything that is started in the library. The library is not instrumented, so the thread sanitizer
 * cannot see that what happened before the start happened before the completion: `fence` tells it.
 */
struct rpc_op {
    void (*done)(struct rpc_op *op, bool ok); /* poller thread, once per start */
    void *owner;
    atomic_uint fence;
};

static inline void rpc_op_init(struct rpc_op *op, void (*done)(struct rpc_op *op, bool ok),
                               void *owner)
{
    op->done = done;
    op->owner = owner;
    atomic_init(&op->fence, 0);
}

static inline void rpc_op_arm(struct rpc_op *op)
{
    atomic_store_explicit(&op->fence, 1, memory_order_release);
}

static inline void rpc_op_complete(struct rpc_op *op, bool ok)
{
    (void)atomic_load_explicit(&op->fence, memory_order_acquire);
    op->done(op, ok);
}

// ---- hosts ----

struct rpc_host {
    grpc_completion_queue *cq;
    log_t log;
    size_t max_queued_bytes;  /* of one call */
    size_t max_receive_bytes; /* of one message */
    pthread_t pollers[RPC_MAX_POLLERS];
    int n_pollers;

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* a count below went down, or a server's shutdown is complete */
    struct rpc_call *calls; /* in the library */
    size_t n_calls;
    size_t n_app_calls; /* those whose end a drain waits for */
};

/* log without a module: no log. Starts the pollers, with all signals blocked. */
MUST_USE status_t rpc_host_init(struct rpc_host *host, const log_t *log, int n_pollers);

/* No call may be left. Joins the pollers. */
void rpc_host_destroy(struct rpc_host *host);

void rpc_host_add_call(struct rpc_host *host, struct rpc_call *call, bool is_app);
void rpc_host_remove_call(struct rpc_host *host, struct rpc_call *call);
void rpc_host_cancel_calls(struct rpc_host *host);

/* Likewise, but calls that no drain waits for get a status and what is queued for them. */
void rpc_host_end_calls(struct rpc_host *host, const status_t *status);

/* Waits until *count is 0 (true) or until deadline_ns of CLOCK_MONOTONIC; UINT64_MAX waits forever. */
bool rpc_host_wait_zero(struct rpc_host *host, const size_t *count, uint64_t deadline_ns);

// ---- messages ----

/* Bytes of a received message, in one piece. */
struct rpc_view {
    const uint8_t *data;
    size_t size;
    bool owns_slice;
    grpc_slice slice;
    struct bytes inflated;
};

/* Accepts gzip and deflate; RESOURCE_EXHAUSTED when more than max_bytes come out. */
MUST_USE status_t rpc_view_init(struct rpc_view *view, const grpc_byte_buffer *buffer,
                                size_t max_bytes);
void rpc_view_destroy(struct rpc_view *view);

// ---- calls ----

struct rpc_message {
    struct rpc_message *next;
    grpc_byte_buffer *buffer;
    size_t counted_bytes;
};

struct rpc_pair {
    char *key, *value;
};

struct rpc_call {
    /* fixed before another thread sees the call */
    struct rpc_host *host;
    const struct rpc_handlers *handlers; /* NULL: refused, nobody to tell */
    void *context;
    char *path;
    int shape; /* enum rpc_shape */
    bool is_server;
    bool is_app;
    uint64_t start_ns, deadline_ns;

    atomic_uint refs;
    atomic_size_t queued_bytes;
    _Atomic(void *) user;

    /* host.mutex */
    struct rpc_call *prev, *next;

    pthread_mutex_t mutex; /* all below */
    grpc_call *call;       /* NULL before the start and after the end */
    unsigned n_ops;        /* under way in the library */

    /* sending */
    struct rpc_op send_op;
    struct rpc_message *queue_head, *queue_tail;
    grpc_status_code end_code;
    grpc_slice end_text;
    grpc_metadata *end_trailers;
    size_t n_end_trailers;

    /* receiving */
    struct rpc_op recv_op;
    grpc_byte_buffer *recv_buffer; /* the library writes it while receiving */
    grpc_byte_buffer *message;     /* complete, not yet delivered */

    /* state */
    bool initial_sent; /* initial metadata */
    bool sending;      /* send_op is under way */
    bool want_writable;
    bool over;       /* nothing can be sent any more */
    bool end_wanted; /* server: finish; client: half-close */
    bool end_started, end_sent;
    bool initial_requested; /* client */
    bool received;          /* an answer of any kind */
    bool receiving;
    bool recv_ended;
    bool request_whole;                        /* server, unary request: message is all of it */
    bool half_close_pending, writable_pending; /* events to deliver */
    bool dispatching;
    bool close_done;
    bool cancelled_here;
    bool closed; /* on_closed was or is being delivered */

    /* the end */
    struct rpc_op close_op;
    status_t failure; /* why we gave the call up, when we did */

    /* server: the library writes these */
    grpc_metadata_array metadata;
    grpc_call_details details;
    int cancelled;

    /* client: the library writes these */
    grpc_metadata_array initial_metadata, trailing_metadata;
    grpc_status_code final_code;
    grpc_slice final_text;
    struct rpc_pair *trailers; /* copied when the call ended */
    size_t n_trailers;
};

/* One reference, the library's. NULL for memory. */
struct rpc_call *rpc_call_new(struct rpc_host *host, bool is_server);

/* A copy as a string; NULL for memory. */
char *rpc_slice_text(const grpc_slice *slice);

/* Starts a batch; false (logged) when the library refuses it. Mutex held. */
bool rpc_call_batch(struct rpc_call *call, const grpc_op *ops, size_t n, struct rpc_op *op);

/* Sends what can be sent now. Mutex held. */
void rpc_call_pump(struct rpc_call *call);
void rpc_call_send_done(struct rpc_op *op, bool ok);

/* rpc_finish under the mutex. */
void rpc_call_finish_locked(struct rpc_call *call, const status_t *status,
                            const struct rpc_trailer *trailers, size_t n_trailers);

/* Queues one message whatever the bound, and ends this side. */
MUST_USE status_t rpc_call_send_last(struct rpc_call *call, const void *data, size_t size);

/* Drops what is queued. Mutex held. */
void rpc_call_drop_queue(struct rpc_call *call);

/* Reads the next message. Mutex held. */
void rpc_call_receive(struct rpc_call *call);
void rpc_call_recv_done(struct rpc_op *op, bool ok);

/* The end of the call: RECV_CLOSE_ON_SERVER, RECV_STATUS_ON_CLIENT. */
void rpc_call_close_done(struct rpc_op *op, bool ok);

/* Delivers what is pending unless another thread is at it. Called with the mutex held, releases it. */
void rpc_call_dispatch(struct rpc_call *call);

/* What rpc_call_dispatch does at the very end, for a call that was never started in the library. */
void rpc_call_abandon(struct rpc_call *call);

// ---- addresses ----

/*
 * Binds the address for a moment, because the library says no more than that it could not, and would take over a
 * socket file that is in use. Removes a stale one.
 */
MUST_USE status_t rpc_listen_check(const char *address);

// ---- services of our own ----

struct rpc_health;
struct rpc_health *rpc_health_new(void); /* NULL for memory */
void rpc_health_free(struct rpc_health *health);
void rpc_health_set(struct rpc_health *health, const char *service, bool serving);

/* Everything is NOT_SERVING from now on. */
void rpc_health_drain(struct rpc_health *health);

extern const struct rpc_handlers rpc_health_check_handlers, rpc_health_watch_handlers;
extern const struct rpc_handlers rpc_reflection_handlers;

struct rpc_health *rpc_server_health(struct rpc_server *server);

/* Calls fn with the name of each service, once. */
void rpc_server_each_service(struct rpc_server *server,
                             void (*fn)(void *self, const char *name, size_t size), void *self);

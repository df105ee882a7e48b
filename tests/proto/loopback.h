/*
 * loopback.h - a server with methods for tests, and a client that remembers what it was told
 *
 * What:      /test.Loop/Echo (unary), Count (server stream of n messages), Chat (bidi echo), Hold (bidi, never
 *            answers), Fail (unary; status and trailer), Never (server stream, never answers).
 * Thread:    a test's main thread; callbacks write under the mutex of their struct.
 */
#pragma once

#include <pthread.h>

#include "base/bytes.h"
#include "proto/rpc/rpc.h"
#include "tests/support/test.h"

/* What the server's side of the calls has seen. */
struct loop_server {
    struct rpc_server *server;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    size_t n_messages;
    size_t n_half_closed;
    size_t n_writable;
    size_t n_refused; /* sends */
    size_t n_closed;
    size_t n_closed_with[17]; /* by status code */
    struct rpc_call *held;    /* the first call of Hold or Never; one reference */
};

/* options may be NULL; its address may be NULL: any port. */
void loop_server_start(struct loop_server *loop, const struct rpc_server_options *options);
void loop_server_stop(struct loop_server *loop);

/* Waits at most 20 s until *counter is at least n. */
void loop_server_wait(struct loop_server *loop, const size_t *counter, size_t n);
size_t loop_server_count(struct loop_server *loop, const size_t *counter);
struct rpc_call *loop_server_take_held(struct loop_server *loop);

/* One call as the client sees it. */
struct loop_call {
    struct rpc_call *call;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    size_t n_messages;
    size_t n_bytes;
    size_t n_closed;
    size_t n_writable;
    size_t n_out_of_order; /* messages of Count that were not the next number */
    status_t status;
};

struct rpc_channel *loop_channel(const char *address);
void loop_call_start(struct loop_call *call, struct rpc_channel *channel, const char *path,
                     uint64_t timeout_ns);

/* Likewise, with RPC_WAIT_FOR_READY and no deadline. */
void loop_call_start_waiting(struct loop_call *call, struct rpc_channel *channel, const char *path);

void loop_call_wait_messages(struct loop_call *call, size_t n);

/* Waits for the end and returns its status. */
status_t loop_call_wait(struct loop_call *call);
void loop_call_destroy(struct loop_call *call);

/* One unary call on a channel of its own. */
status_t loop_unary(const char *address, const char *path, const char *request,
                    struct bytes *response);

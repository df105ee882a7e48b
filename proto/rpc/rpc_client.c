#include <assert.h>
#include <grpc/grpc_security.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc_internal.h"

#define DEFAULT_KEEPALIVE_NS (20 * NS_PER_S)
#define KEEPALIVE_TIMEOUT_MS 20000
#define CONNECT_TIMEOUT_MS   5000
#define MIN_BACKOFF_MS       200
#define MAX_BACKOFF_MS       2000

struct rpc_channel {
    struct rpc_host host;
    grpc_channel *channel;
};

// ---- channels ----

static grpc_arg integer_arg(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)key};
    arg.value.integer = value;
    return arg;
}

static grpc_channel *create_channel(const char *address, uint64_t keepalive_ns, size_t max_receive)
{
    const uint64_t keepalive_ms = keepalive_ns / NS_PER_MS;
    grpc_arg args[] = {
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS,
                    keepalive_ms < INT_MAX ? (int)keepalive_ms : INT_MAX),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
        integer_arg(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        integer_arg(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        integer_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, MIN_BACKOFF_MS),
        // In spite of its name this is how long one attempt to connect may take.
        integer_arg(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, CONNECT_TIMEOUT_MS),
        integer_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, MAX_BACKOFF_MS),
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                    max_receive < INT_MAX ? (int)max_receive : INT_MAX),
        // A channel's connection is its own: its failures and backoff are not shared with others.
        integer_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        integer_arg(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        // The environment of a worker must not send its link through a web proxy.
        integer_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        // Nothing compressed is accepted.
        integer_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1),
    };
    const grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    grpc_channel *channel = grpc_channel_create(address, credentials, &channel_args);
    grpc_channel_credentials_release(credentials);
    return channel;
}

status_t rpc_channel_new(const char *address, const struct rpc_channel_options *options,
                         struct rpc_channel **channel_out)
{
    struct rpc_channel *channel = calloc(1, sizeof *channel);
    if (channel == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a channel");
    }
    channel->host.max_queued_bytes =
        options->max_queued_bytes > 0 ? options->max_queued_bytes : 64u << 20;
    channel->host.max_receive_bytes =
        options->max_receive_bytes > 0 ? options->max_receive_bytes : 64u << 20;
    const status_t s = rpc_host_init(&channel->host, &options->log, 1);
    if (!status_is_ok(&s)) {
        free(channel);
        return s;
    }
    channel->channel = create_channel(
        address, options->keepalive_ns > 0 ? options->keepalive_ns : DEFAULT_KEEPALIVE_NS,
        channel->host.max_receive_bytes);
    *channel_out = channel;
    return status_ok();
}

void rpc_channel_free(struct rpc_channel *channel)
{
    if (channel == NULL) {
        return;
    }
    rpc_host_cancel_calls(&channel->host);
    (void)rpc_host_wait_zero(&channel->host, &channel->host.n_calls, UINT64_MAX);
    grpc_channel_destroy(channel->channel);
    rpc_host_destroy(&channel->host);
    free(channel);
}

// ---- calls ----

static gpr_timespec deadline_after(uint64_t timeout_ns)
{
    if (timeout_ns > INT64_MAX) {
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    }
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_nanos((int64_t)timeout_ns, GPR_TIMESPAN));
}

/* The status comes last; it and the headers are one operation, which is done when the call is. */
static bool start_batches(struct rpc_call *call, int flags)
{
    grpc_op ops[2] = {0};
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    if ((flags & RPC_WAIT_FOR_READY) != 0) {
        ops[0].flags = GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                       GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET;
    }
    ops[1].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[1].data.recv_status_on_client.trailing_metadata = &call->trailing_metadata;
    ops[1].data.recv_status_on_client.status = &call->final_code;
    ops[1].data.recv_status_on_client.status_details = &call->final_text;
    call->initial_sent = true;
    if (!rpc_call_batch(call, ops, 2, &call->close_op)) {
        return false;
    }
    rpc_call_receive(call);
    return true;
}

status_t rpc_start(struct rpc_channel *channel, const struct rpc_start_args *args,
                   struct rpc_call **call_out)
{
    struct rpc_call *call = rpc_call_new(&channel->host, false);
    if (call == NULL || (call->path = strdup(args->path)) == NULL) {
        if (call != NULL) {
            rpc_call_abandon(call);
        }
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a call");
    }
    call->handlers = args->handlers;
    call->start_ns = clock_now_ns(clock_system());
    if (args->timeout_ns < RPC_NO_DEADLINE - call->start_ns) {
        call->deadline_ns = call->start_ns + args->timeout_ns;
    }
    rpc_call_set_user(call, args->user);

    const grpc_slice path = grpc_slice_from_copied_string(args->path);
    call->call =
        grpc_channel_create_call(channel->channel, NULL, GRPC_PROPAGATE_DEFAULTS, channel->host.cq,
                                 path, NULL, deadline_after(args->timeout_ns), NULL);
    grpc_slice_unref(path);

    rpc_host_add_call(&channel->host, call, true);
    rpc_call_acquire(call); // the caller's
    pthread_mutex_lock(&call->mutex);
    const bool started = start_batches(call, args->flags);
    if (!started) {
        // Never in the library: nothing will complete, and nobody was told of the call.
        call->handlers = NULL;
        call->close_done = true;
        call->recv_ended = true;
    }
    rpc_call_dispatch(call);
    if (!started) {
        rpc_call_release(call);
        return status_errorf(STATUS_INTERNAL, "the library refused a call to %s", args->path);
    }
    *call_out = call;
    return status_ok();
}

// ---- one blocking call ----

struct unary {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct bytes *response;
    bool answered, closed;
    status_t status; /* of the call */
    status_t response_status;
};

static void unary_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct unary *unary = rpc_call_user(call);
    pthread_mutex_lock(&unary->mutex);
    if (!unary->answered) {
        unary->answered = true;
        unary->response_status = bytes_append(unary->response, data, size);
    }
    pthread_mutex_unlock(&unary->mutex);
}

static void unary_closed(struct rpc_call *call, const status_t *status)
{
    struct unary *unary = rpc_call_user(call);
    pthread_mutex_lock(&unary->mutex);
    unary->closed = true;
    unary->status = *status;
    pthread_cond_signal(&unary->cond);
    pthread_mutex_unlock(&unary->mutex);
}

static const struct rpc_handlers unary_handlers = {
    .on_message = unary_message,
    .on_closed = unary_closed,
};

static status_t unary_wait(struct unary *unary, const char *path)
{
    pthread_mutex_lock(&unary->mutex);
    while (!unary->closed) {
        pthread_cond_wait(&unary->cond, &unary->mutex);
    }
    status_t s = unary->status;
    if (status_is_ok(&s) && !unary->answered) {
        s = status_errorf(STATUS_INTERNAL, "%s ended without an answer", path);
    }
    if (status_is_ok(&s)) {
        s = unary->response_status;
    }
    pthread_mutex_unlock(&unary->mutex);
    return s;
}

status_t rpc_unary(struct rpc_channel *channel, const char *path, const struct bytes *request,
                   uint64_t timeout_ns, struct bytes *response_out)
{
    struct unary unary = {.response = response_out, .response_status = status_ok()};
    pthread_mutex_init(&unary.mutex, NULL);
    pthread_cond_init(&unary.cond, NULL);

    const struct rpc_start_args args = {
        .path = path,
        .handlers = &unary_handlers,
        .user = &unary,
        .timeout_ns = timeout_ns,
    };
    struct rpc_call *call;
    status_t s = rpc_start(channel, &args, &call);
    if (status_is_ok(&s)) {
        // When the call is over already, its status says why.
        const status_t sent = rpc_call_send_last(call, request->data, request->size);
        if (!status_is_ok(&sent)) {
            rpc_cancel(call);
        }
        s = unary_wait(&unary, path);
        rpc_call_release(call);
    }
    pthread_cond_destroy(&unary.cond);
    pthread_mutex_destroy(&unary.mutex);
    return s;
}

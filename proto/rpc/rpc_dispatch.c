/*
 * rpc_dispatch.c - one RPC: what completes in the library, and the callbacks that follow
 *
 * What:      completions of one call arrive on any poller, in any order. Each changes the call's state under its
 *            mutex; then one thread at a time delivers what is pending, in this order:
 *
 *              server   closed > message > half close > writable     (a call that is over wants no messages)
 *              client   message > writable > closed                  (a status does not overtake its messages)
 *
 *            The poller that finds another one delivering leaves it to that one and goes on with other calls.
 */
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc_internal.h"

enum event { EVENT_NONE, EVENT_MESSAGE, EVENT_HALF_CLOSE, EVENT_WRITABLE, EVENT_CLOSED };

/* A client's timer runs out a little before ours: its deadline travels rounded up, by 1 % at most. */
#define DEADLINE_SLACK_NS (20 * NS_PER_MS)

// ---- receiving ----

void rpc_call_receive(struct rpc_call *call)
{
    if (call->receiving || call->recv_ended || call->closed) {
        return;
    }
    grpc_op ops[2] = {0};
    size_t n = 0;
    if (!call->is_server && !call->initial_requested) {
        // A client's first batch: the headers come before the first message.
        ops[n].op = GRPC_OP_RECV_INITIAL_METADATA;
        ops[n].data.recv_initial_metadata.recv_initial_metadata = &call->initial_metadata;
        call->initial_requested = true;
        n++;
    }
    ops[n].op = GRPC_OP_RECV_MESSAGE;
    ops[n].data.recv_message.recv_message = &call->recv_buffer;
    n++;
    call->receiving = rpc_call_batch(call, ops, n, &call->recv_op);
    if (!call->receiving) {
        call->recv_ended = true;
        grpc_call_cancel(call->call, NULL);
    }
}

static void refuse(struct rpc_call *call, const char *what)
{
    const status_t s = status_errorf(STATUS_INVALID_ARGUMENT, "%s: %s", call->path, what);
    rpc_call_finish_locked(call, &s, NULL, 0);
}

/* One message, then the half-close: only then is a request whole. */
static void received_request_part(struct rpc_call *call, grpc_byte_buffer *buffer)
{
    if (buffer == NULL) {
        if (call->message == NULL) {
            refuse(call, "the request message is missing");
        }
        call->request_whole = true;
    } else if (call->message == NULL) {
        call->message = buffer;
        rpc_call_receive(call);
    } else {
        grpc_byte_buffer_destroy(buffer);
        call->recv_ended = true;
        refuse(call, "more than one request message");
    }
}

static bool has_whole_request(const struct rpc_call *call)
{
    return call->is_server && (call->shape == RPC_UNARY || call->shape == RPC_SERVER_STREAM);
}

void rpc_call_recv_done(struct rpc_op *op, bool ok)
{
    struct rpc_call *call = op->owner;
    pthread_mutex_lock(&call->mutex);
    call->n_ops--;
    call->receiving = false;
    call->received = true;
    grpc_byte_buffer *buffer = call->recv_buffer;
    call->recv_buffer = NULL;
    const bool failed = !ok || (buffer == NULL && grpc_call_failed_before_recv_message(call->call));
    call->recv_ended = failed || buffer == NULL;
    if (failed) {
        // The call broke off: the close operation says so.
        if (buffer != NULL) {
            grpc_byte_buffer_destroy(buffer);
        }
    } else if (has_whole_request(call)) {
        received_request_part(call, buffer);
    } else if (buffer != NULL) {
        call->message = buffer;
    } else {
        call->half_close_pending = call->is_server;
    }
    rpc_call_dispatch(call);
}

// ---- the end ----

static void copy_trailing_metadata(struct rpc_call *call)
{
    const grpc_metadata_array *from = &call->trailing_metadata;
    if (from->count == 0) {
        return;
    }
    call->trailers = calloc(from->count, sizeof *call->trailers);
    for (size_t i = 0; call->trailers != NULL && i < from->count; i++) {
        struct rpc_pair *pair = &call->trailers[call->n_trailers];
        pair->key = rpc_slice_text(&from->metadata[i].key);
        pair->value = rpc_slice_text(&from->metadata[i].value);
        if (pair->key == NULL || pair->value == NULL) {
            free(pair->key);
            free(pair->value);
            break;
        }
        call->n_trailers++;
    }
}

void rpc_call_close_done(struct rpc_op *op, bool ok)
{
    (void)ok; // this operation always tells the truth about the end
    struct rpc_call *call = op->owner;
    pthread_mutex_lock(&call->mutex);
    call->n_ops--;
    call->close_done = true;
    if (!call->is_server) {
        copy_trailing_metadata(call);
        if (call->final_code != GRPC_STATUS_OK && !call->received) {
            // An operation that is started while the connection fails may never complete: gRPC 1.51 keeps it for a
            // connection that nobody makes any more. Seen one time in ten with a server that ends under load.
            grpc_call_cancel(call->call, NULL);
        }
    }
    if (!call->is_server || call->cancelled != 0) {
        call->over = true;
        rpc_call_drop_queue(call);
    }
    rpc_call_dispatch(call);
}

static bool deadline_has_passed(const struct rpc_call *call)
{
    if (call->deadline_ns == RPC_NO_DEADLINE) {
        return false;
    }
    const uint64_t now = clock_now_ns(clock_system());
    const uint64_t slack = DEADLINE_SLACK_NS + (now - call->start_ns) / 50;
    return now + slack >= call->deadline_ns;
}

static status_t server_end(const struct rpc_call *call)
{
    if (call->cancelled == 0 && call->end_sent) {
        return status_ok();
    }
    if (!call->cancelled_here && deadline_has_passed(call)) {
        return status_errorf(STATUS_DEADLINE_EXCEEDED, "the call's deadline passed");
    }
    return status_errorf(STATUS_CANCELLED, "the call was cancelled or its connection lost");
}

static status_t client_end(const struct rpc_call *call)
{
    if (!status_is_ok(&call->failure)) {
        return call->failure;
    }
    if (call->final_code == GRPC_STATUS_OK) {
        return status_ok();
    }
    const int size = (int)GRPC_SLICE_LENGTH(call->final_text);
    return status_errorf((int)call->final_code, "%.*s", size,
                         (const char *)GRPC_SLICE_START_PTR(call->final_text));
}

/* Nothing of the library's is used after this. */
static void leave_library(struct rpc_call *call, grpc_call *library_call)
{
    rpc_call_drop_queue(call);
    if (call->message != NULL) {
        grpc_byte_buffer_destroy(call->message);
        call->message = NULL;
    }
    for (size_t i = 0; i < call->n_end_trailers; i++) {
        grpc_slice_unref(call->end_trailers[i].key);
        grpc_slice_unref(call->end_trailers[i].value);
    }
    free(call->end_trailers);
    call->n_end_trailers = 0;
    grpc_slice_unref(call->end_text);
    grpc_slice_unref(call->final_text);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->initial_metadata);
    grpc_metadata_array_destroy(&call->trailing_metadata);
    if (library_call != NULL) {
        grpc_call_unref(library_call);
    }
}

void rpc_call_abandon(struct rpc_call *call)
{
    leave_library(call, NULL);
    rpc_call_release(call);
}

// ---- callbacks ----

static enum event next_event(const struct rpc_call *call)
{
    if (call->closed) {
        return EVENT_NONE;
    }
    if (call->is_server) {
        if (call->close_done && (call->cancelled != 0 || !call->sending)) {
            return EVENT_CLOSED;
        }
        if (call->end_wanted || call->over) {
            return EVENT_NONE;
        }
    }
    if (call->message != NULL && (!has_whole_request(call) || call->request_whole)) {
        return EVENT_MESSAGE;
    }
    if (call->half_close_pending) {
        return EVENT_HALF_CLOSE;
    }
    if (call->writable_pending) {
        return EVENT_WRITABLE;
    }
    // A client's messages come before its status.
    return !call->is_server && call->close_done && call->recv_ended ? EVENT_CLOSED : EVENT_NONE;
}

/* A message that cannot be read ends the call. */
static void give_up(struct rpc_call *call, const status_t *s)
{
    if (call->is_server) {
        rpc_finish(call, s, NULL, 0);
        return;
    }
    pthread_mutex_lock(&call->mutex);
    call->failure = *s;
    pthread_mutex_unlock(&call->mutex);
    rpc_cancel(call);
}

static void deliver_message(struct rpc_call *call, grpc_byte_buffer *buffer)
{
    struct rpc_view view;
    const status_t s = rpc_view_init(&view, buffer, call->host->max_receive_bytes);
    if (status_is_ok(&s)) {
        call->handlers->on_message(call, view.data, view.size);
        rpc_view_destroy(&view);
    } else {
        give_up(call, &s);
    }
    grpc_byte_buffer_destroy(buffer);
}

static void deliver_closed(struct rpc_call *call)
{
    if (call->handlers == NULL) {
        return;
    }
    const status_t s = call->is_server ? server_end(call) : client_end(call);
    call->handlers->on_closed(call, &s);
}

/* Called and left with the mutex held; it is free while the callback runs. */
static void deliver(struct rpc_call *call, enum event event)
{
    grpc_byte_buffer *message = NULL;
    switch (event) {
    case EVENT_MESSAGE:
        message = call->message;
        call->message = NULL;
        break;
    case EVENT_HALF_CLOSE:
        call->half_close_pending = false;
        break;
    case EVENT_WRITABLE:
        call->writable_pending = false;
        break;
    default:
        call->closed = true;
        break;
    }
    pthread_mutex_unlock(&call->mutex);

    switch (event) {
    case EVENT_MESSAGE:
        deliver_message(call, message);
        break;
    case EVENT_HALF_CLOSE:
        if (call->handlers->on_half_close != NULL) {
            call->handlers->on_half_close(call);
        }
        break;
    case EVENT_WRITABLE:
        if (call->handlers->on_writable != NULL) {
            call->handlers->on_writable(call);
        }
        break;
    default:
        deliver_closed(call);
        break;
    }

    pthread_mutex_lock(&call->mutex);
    if (event == EVENT_MESSAGE && !has_whole_request(call)) {
        rpc_call_receive(call);
    }
}

void rpc_call_dispatch(struct rpc_call *call)
{
    if (call->dispatching) {
        pthread_mutex_unlock(&call->mutex);
        return;
    }
    call->dispatching = true;
    enum event event;
    while ((event = next_event(call)) != EVENT_NONE) {
        deliver(call, event);
    }
    call->dispatching = false;

    // Nobody else comes here after this: no operation is under way, and none is started once it is closed.
    const bool done = call->closed && call->n_ops == 0;
    grpc_call *library_call = call->call;
    if (done) {
        call->call = NULL;
        call->over = true;
    }
    pthread_mutex_unlock(&call->mutex);
    if (done) {
        leave_library(call, library_call);
        rpc_host_remove_call(call->host, call);
        rpc_call_release(call);
    }
}

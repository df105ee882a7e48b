/*
 * rpc_call.c - one RPC: references, the send queue, the end of this side
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/support/alloc.h>

#include "proto/rpc/rpc_internal.h"

// ---- life ----

struct rpc_call *rpc_call_new(struct rpc_host *host, bool is_server)
{
    struct rpc_call *call = calloc(1, sizeof *call);
    if (call == NULL) {
        return NULL;
    }
    call->host = host;
    call->is_server = is_server;
    call->deadline_ns = RPC_NO_DEADLINE;
    atomic_init(&call->refs, 1);
    atomic_init(&call->queued_bytes, 0);
    atomic_init(&call->user, NULL);
    pthread_mutex_init(&call->mutex, NULL);
    rpc_op_init(&call->send_op, rpc_call_send_done, call);
    rpc_op_init(&call->recv_op, rpc_call_recv_done, call);
    rpc_op_init(&call->close_op, rpc_call_close_done, call);
    call->end_text = grpc_empty_slice();
    call->final_text = grpc_empty_slice();
    call->failure = status_ok();
    grpc_metadata_array_init(&call->metadata);
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->initial_metadata);
    grpc_metadata_array_init(&call->trailing_metadata);
    return call;
}

struct rpc_call *rpc_call_acquire(struct rpc_call *call)
{
    atomic_fetch_add_explicit(&call->refs, 1, memory_order_relaxed);
    return call;
}

void rpc_call_release(struct rpc_call *call)
{
    if (atomic_fetch_sub_explicit(&call->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    assert(call->call == NULL);
    for (size_t i = 0; i < call->n_trailers; i++) {
        free(call->trailers[i].key);
        free(call->trailers[i].value);
    }
    free(call->trailers);
    free(call->path);
    pthread_mutex_destroy(&call->mutex);
    free(call);
}

void rpc_call_set_user(struct rpc_call *call, void *user)
{
    atomic_store_explicit(&call->user, user, memory_order_release);
}

void *rpc_call_user(const struct rpc_call *call)
{
    return atomic_load_explicit(&call->user, memory_order_acquire);
}

// ---- what is known about it ----

void *rpc_call_context(const struct rpc_call *call)
{
    return call->context;
}

const char *rpc_call_path(const struct rpc_call *call)
{
    return call->path;
}

uint64_t rpc_call_deadline_ns(const struct rpc_call *call)
{
    return call->deadline_ns;
}

char *rpc_slice_text(const grpc_slice *slice)
{
    const size_t size = GRPC_SLICE_LENGTH(*slice);
    char *text = malloc(size + 1);
    if (text != NULL) {
        memcpy(text, GRPC_SLICE_START_PTR(*slice), size);
        text[size] = '\0';
    }
    return text;
}

static bool copy_text(const char *text, size_t size, char *buf, size_t buf_bytes)
{
    if (size >= buf_bytes) {
        return false;
    }
    memcpy(buf, text, size);
    buf[size] = '\0';
    return true;
}

bool rpc_call_metadata(const struct rpc_call *call, const char *key, char *buf, size_t buf_bytes)
{
    // Only the lock is changed; the values belong to the library's call.
    struct rpc_call *locked = (struct rpc_call *)call;
    bool found = false;
    pthread_mutex_lock(&locked->mutex);
    const size_t n = call->call != NULL ? call->metadata.count : 0;
    for (size_t i = 0; i < n; i++) {
        const grpc_metadata *entry = &call->metadata.metadata[i];
        if (grpc_slice_str_cmp(entry->key, key) == 0) {
            found = copy_text((const char *)GRPC_SLICE_START_PTR(entry->value),
                              GRPC_SLICE_LENGTH(entry->value), buf, buf_bytes);
            break;
        }
    }
    pthread_mutex_unlock(&locked->mutex);
    return found;
}

bool rpc_call_trailer(const struct rpc_call *call, const char *key, char *buf, size_t buf_bytes)
{
    for (size_t i = 0; i < call->n_trailers; i++) {
        if (strcmp(call->trailers[i].key, key) == 0) {
            const char *value = call->trailers[i].value;
            return copy_text(value, strlen(value), buf, buf_bytes);
        }
    }
    return false;
}

void rpc_call_peer(const struct rpc_call *call, char *buf, size_t buf_bytes)
{
    struct rpc_call *locked = (struct rpc_call *)call;
    pthread_mutex_lock(&locked->mutex);
    char *peer = call->call != NULL ? grpc_call_get_peer(call->call) : NULL;
    pthread_mutex_unlock(&locked->mutex);
    (void)snprintf(buf, buf_bytes, "%s", peer != NULL ? peer : "");
    gpr_free(peer);
}

size_t rpc_queued_bytes(const struct rpc_call *call)
{
    return atomic_load_explicit(&call->queued_bytes, memory_order_relaxed);
}

// ---- sending ----

bool rpc_call_batch(struct rpc_call *call, const grpc_op *ops, size_t n, struct rpc_op *op)
{
    rpc_op_arm(op);
    const grpc_call_error error = grpc_call_start_batch(call->call, ops, n, op, NULL);
    if (error != GRPC_CALL_OK) {
        log_write(&call->host->log, LOG_ERROR, "batch refused", "path=%s err=%s",
                  call->path != NULL ? call->path : "-", grpc_call_error_to_string(error));
        return false;
    }
    call->n_ops++;
    return true;
}

static void message_free(struct rpc_message *message)
{
    grpc_byte_buffer_destroy(message->buffer);
    free(message);
}

static struct rpc_message *queue_take(struct rpc_call *call)
{
    struct rpc_message *message = call->queue_head;
    call->queue_head = message->next;
    if (call->queue_head == NULL) {
        call->queue_tail = NULL;
    }
    atomic_fetch_sub_explicit(&call->queued_bytes, message->counted_bytes, memory_order_relaxed);
    return message;
}

void rpc_call_drop_queue(struct rpc_call *call)
{
    while (call->queue_head != NULL) {
        message_free(queue_take(call));
    }
}

static status_t queue_put(struct rpc_call *call, const void *data, size_t size)
{
    struct rpc_message *message = calloc(1, sizeof *message);
    if (message == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to queue a message");
    }
    grpc_slice slice = grpc_slice_from_copied_buffer(data, size);
    message->buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    message->counted_bytes = size + RPC_QUEUE_OVERHEAD;
    if (call->queue_tail != NULL) {
        call->queue_tail->next = message;
    } else {
        call->queue_head = message;
    }
    call->queue_tail = message;
    atomic_fetch_add_explicit(&call->queued_bytes, message->counted_bytes, memory_order_relaxed);
    return status_ok();
}

/* Fills the operation that ends this side. */
static void fill_end(struct rpc_call *call, grpc_op *op)
{
    if (!call->is_server) {
        op->op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        return;
    }
    op->op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op->data.send_status_from_server.status = call->end_code;
    op->data.send_status_from_server.status_details = &call->end_text;
    op->data.send_status_from_server.trailing_metadata = call->end_trailers;
    op->data.send_status_from_server.trailing_metadata_count = call->n_end_trailers;
}

void rpc_call_pump(struct rpc_call *call)
{
    if (call->sending || call->over || call->end_started) {
        return;
    }
    struct rpc_message *message = call->queue_head != NULL ? queue_take(call) : NULL;
    const bool end = call->end_wanted && call->queue_head == NULL;
    if (message == NULL && !end) {
        return;
    }
    // One batch for all of it: a unary answer is headers, message and status in one go.
    grpc_op ops[3] = {0};
    size_t n = 0;
    if (!call->initial_sent) {
        ops[n].op = GRPC_OP_SEND_INITIAL_METADATA;
        n++;
    }
    if (message != NULL) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n].data.send_message.send_message = message->buffer;
        n++;
    }
    if (end) {
        fill_end(call, &ops[n]);
        n++;
    }
    call->initial_sent = true;
    call->end_started = end;
    call->sending = rpc_call_batch(call, ops, n, &call->send_op);
    if (message != NULL) {
        message_free(message);
    }
    if (!call->sending) {
        call->over = true;
        rpc_call_drop_queue(call);
        grpc_call_cancel(call->call, NULL);
    }
}

void rpc_call_send_done(struct rpc_op *op, bool ok)
{
    struct rpc_call *call = op->owner;
    pthread_mutex_lock(&call->mutex);
    call->n_ops--;
    call->sending = false;
    if (!ok) {
        // The peer is gone; the cancellation makes sure that the close operation says so too.
        call->over = true;
        rpc_call_drop_queue(call);
        grpc_call_cancel(call->call, NULL);
    } else if (call->end_started) {
        call->end_sent = true;
    }
    rpc_call_pump(call);
    if (call->want_writable && call->queue_head == NULL && !call->over && !call->end_wanted) {
        call->want_writable = false;
        call->writable_pending = true;
    }
    rpc_call_dispatch(call);
}

static status_t send_locked(struct rpc_call *call, const void *data, size_t size)
{
    if (call->over || call->end_wanted || call->closed) {
        return status_errorf(STATUS_UNAVAILABLE, "the call is over");
    }
    const size_t max_bytes = call->host->max_queued_bytes;
    if (size > max_bytes - RPC_QUEUE_OVERHEAD) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "message of %zu bytes can never be queued, the bound is %zu", size,
                             max_bytes - RPC_QUEUE_OVERHEAD);
    }
    const size_t queued = rpc_queued_bytes(call);
    if (size + RPC_QUEUE_OVERHEAD > max_bytes - queued) {
        call->want_writable = true;
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "send queue is full: %zu bytes queued, %zu more, the bound is %zu",
                             queued, size + RPC_QUEUE_OVERHEAD, max_bytes);
    }
    TRY(queue_put(call, data, size));
    rpc_call_pump(call);
    return status_ok();
}

status_t rpc_send(struct rpc_call *call, const void *data, size_t size)
{
    pthread_mutex_lock(&call->mutex);
    const status_t s = send_locked(call, data, size);
    pthread_mutex_unlock(&call->mutex);
    return s;
}

// ---- the end of this side ----

static grpc_metadata *copy_trailers(struct rpc_call *call, const struct rpc_trailer *trailers,
                                    size_t n, size_t *n_out)
{
    *n_out = 0;
    grpc_metadata *copy = n > 0 ? calloc(n, sizeof *copy) : NULL;
    for (size_t i = 0; copy != NULL && i < n; i++) {
        const grpc_slice key = grpc_slice_from_copied_string(trailers[i].key);
        const grpc_slice value = grpc_slice_from_copied_string(trailers[i].value);
        // The library refuses the whole batch, status included, for one bad character.
        if (grpc_header_key_is_legal(key) == 0 || grpc_header_nonbin_value_is_legal(value) == 0) {
            log_write(&call->host->log, LOG_ERROR, "illegal trailer dropped", "path=%s",
                      call->path);
            grpc_slice_unref(key);
            grpc_slice_unref(value);
            continue;
        }
        copy[*n_out].key = key;
        copy[*n_out].value = value;
        (*n_out)++;
    }
    return copy;
}

void rpc_call_finish_locked(struct rpc_call *call, const status_t *status,
                            const struct rpc_trailer *trailers, size_t n_trailers)
{
    assert(call->is_server);
    if (call->end_wanted || call->over || call->closed) {
        return;
    }
    call->end_wanted = true;
    call->end_code = (grpc_status_code)status->code;
    size_t size = strlen(status->msg);
    size = size < RPC_MAX_MESSAGE_TEXT ? size : RPC_MAX_MESSAGE_TEXT;
    call->end_text = grpc_slice_from_copied_buffer(status->msg, size);
    call->end_trailers = copy_trailers(call, trailers, n_trailers, &call->n_end_trailers);
    rpc_call_pump(call);
}

void rpc_finish(struct rpc_call *call, const status_t *status, const struct rpc_trailer *trailers,
                size_t n_trailers)
{
    pthread_mutex_lock(&call->mutex);
    rpc_call_finish_locked(call, status, trailers, n_trailers);
    pthread_mutex_unlock(&call->mutex);
}

static void end_locked(struct rpc_call *call)
{
    if (call->is_server) {
        const status_t ok = status_ok();
        rpc_call_finish_locked(call, &ok, NULL, 0);
    } else if (!call->end_wanted) {
        call->end_wanted = true;
        rpc_call_pump(call);
    }
}

status_t rpc_call_send_last(struct rpc_call *call, const void *data, size_t size)
{
    status_t s;
    pthread_mutex_lock(&call->mutex);
    if (call->over || call->end_wanted || call->closed) {
        s = status_errorf(STATUS_UNAVAILABLE, "the call is over");
    } else {
        // Not pumped in between, so that message and end are one batch.
        s = queue_put(call, data, size);
        if (status_is_ok(&s)) {
            end_locked(call);
        }
    }
    pthread_mutex_unlock(&call->mutex);
    return s;
}

void rpc_reply(struct rpc_call *call, const struct bytes *message)
{
    const status_t s = rpc_call_send_last(call, message->data, message->size);
    if (!status_is_ok(&s)) {
        rpc_finish(call, &s, NULL, 0);
    }
}

void rpc_half_close(struct rpc_call *call)
{
    assert(!call->is_server);
    pthread_mutex_lock(&call->mutex);
    end_locked(call);
    pthread_mutex_unlock(&call->mutex);
}

void rpc_cancel(struct rpc_call *call)
{
    pthread_mutex_lock(&call->mutex);
    if (call->call != NULL && !call->closed) {
        call->over = true;
        call->cancelled_here = true;
        rpc_call_drop_queue(call);
        grpc_call_cancel(call->call, NULL);
    }
    pthread_mutex_unlock(&call->mutex);
}

#include "tests/proto/loopback.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

#define WAIT_SECONDS 20

static struct timespec wait_limit(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_SECONDS;
    return until;
}

// ---- the server's side ----

static void count_closed(struct loop_server *loop, const status_t *status)
{
    pthread_mutex_lock(&loop->mutex);
    loop->n_closed++;
    loop->n_closed_with[status->code]++;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->mutex);
}

static void bump(struct loop_server *loop, size_t *counter)
{
    pthread_mutex_lock(&loop->mutex);
    (*counter)++;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->mutex);
}

static void plain_closed(struct rpc_call *call, const status_t *status)
{
    count_closed(rpc_call_context(call), status);
}

static void echo_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct loop_server *loop = rpc_call_context(call);
    bump(loop, &loop->n_messages);
    const struct bytes reply = {.data = (uint8_t *)data, .size = size};
    rpc_reply(call, &reply);
}

static const struct rpc_handlers echo_handlers = {
    .on_message = echo_message,
    .on_closed = plain_closed,
};

static void fail_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    (void)data;
    (void)size;
    const status_t s =
        status_errorf(STATUS_RESOURCE_EXHAUSTED, "queue is full: 7 of 7 (caf\xc3\xa9)");
    const struct rpc_trailer trailers[] = {
        {"retry-after-ms", "250"},
        {"Bad Key", "dropped"},
    };
    rpc_finish(call, &s, trailers, 2);
    rpc_finish(call, &s, NULL, 0); // a second one is ignored
}

static const struct rpc_handlers fail_handlers = {
    .on_message = fail_message,
    .on_closed = plain_closed,
};

/* Count: sends 0 .. n-1 as fast as the queue takes them. */
struct counter {
    uint32_t next, n;
    size_t size;
};

static void count_more(struct rpc_call *call)
{
    struct loop_server *loop = rpc_call_context(call);
    struct counter *counter = rpc_call_user(call);
    uint8_t message[4096] = {0};
    while (counter->next < counter->n) {
        memcpy(message, &counter->next, 4);
        const status_t s = rpc_send(call, message, counter->size);
        if (s.code == STATUS_RESOURCE_EXHAUSTED) {
            bump(loop, &loop->n_refused);
            return;
        }
        if (s.code != STATUS_OK) {
            return;
        }
        counter->next++;
    }
    const status_t ok = status_ok();
    rpc_finish(call, &ok, NULL, 0);
}

/* The request: n, and optionally the size of each message. */
static void count_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct counter *counter = calloc(1, sizeof *counter);
    counter->size = 4;
    memcpy(&counter->n, data, 4);
    if (size >= 8) {
        uint32_t bytes;
        memcpy(&bytes, data + 4, 4);
        counter->size = bytes;
    }
    rpc_call_set_user(call, counter);
    count_more(call);
}

static void count_writable(struct rpc_call *call)
{
    struct loop_server *loop = rpc_call_context(call);
    bump(loop, &loop->n_writable);
    count_more(call);
}

static void count_end(struct rpc_call *call, const status_t *status)
{
    free(rpc_call_user(call));
    plain_closed(call, status);
}

static const struct rpc_handlers count_handlers = {
    .on_message = count_message,
    .on_writable = count_writable,
    .on_closed = count_end,
};

/* Chat: sends every message back; "bye" ends the call while the client may still send. */
static void chat_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct loop_server *loop = rpc_call_context(call);
    bump(loop, &loop->n_messages);
    if (size == 3 && memcmp(data, "bye", 3) == 0) {
        const status_t ok = status_ok();
        rpc_finish(call, &ok, NULL, 0);
        return;
    }
    const status_t s = rpc_send(call, data, size);
    if (!status_is_ok(&s)) {
        bump(loop, &loop->n_refused);
    }
}

static void chat_half_close(struct rpc_call *call)
{
    struct loop_server *loop = rpc_call_context(call);
    bump(loop, &loop->n_half_closed);
    const status_t ok = status_ok();
    rpc_finish(call, &ok, NULL, 0);
}

static const struct rpc_handlers chat_handlers = {
    .on_message = chat_message,
    .on_half_close = chat_half_close,
    .on_closed = plain_closed,
};

/* Hold and Never: the test's own thread answers, or nobody does. */
static void hold_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    (void)data;
    (void)size;
    struct loop_server *loop = rpc_call_context(call);
    pthread_mutex_lock(&loop->mutex);
    if (loop->held == NULL) {
        loop->held = rpc_call_acquire(call);
    }
    loop->n_messages++;
    pthread_cond_broadcast(&loop->changed);
    pthread_mutex_unlock(&loop->mutex);
}

static void hold_half_close(struct rpc_call *call)
{
    struct loop_server *loop = rpc_call_context(call);
    bump(loop, &loop->n_half_closed);
}

static void hold_writable(struct rpc_call *call)
{
    struct loop_server *loop = rpc_call_context(call);
    bump(loop, &loop->n_writable);
}

static const struct rpc_handlers hold_handlers = {
    .on_message = hold_message,
    .on_half_close = hold_half_close,
    .on_writable = hold_writable,
    .on_closed = plain_closed,
};

void loop_server_start(struct loop_server *loop, const struct rpc_server_options *options)
{
    *loop = (struct loop_server){0};
    pthread_mutex_init(&loop->mutex, NULL);
    pthread_cond_init(&loop->changed, NULL);
    struct rpc_server_options copy = options != NULL ? *options : (struct rpc_server_options){0};
    if (copy.address == NULL) {
        copy.address = "127.0.0.1:0";
    }
    copy.log = (log_t){.fd = 2, .level = LOG_WARN, .rank = -1, .module = "rpc"};
    assert_status_ok(rpc_server_new(&copy, &loop->server));
    const struct rpc_method methods[] = {
        {"/test.Loop/Echo", RPC_UNARY, &echo_handlers, loop},
        {"/test.Loop/Fail", RPC_UNARY, &fail_handlers, loop},
        {"/test.Loop/Count", RPC_SERVER_STREAM, &count_handlers, loop},
        {"/test.Loop/Never", RPC_SERVER_STREAM, &hold_handlers, loop},
        {"/test.Loop/Chat", RPC_BIDI, &chat_handlers, loop},
        {"/test.Loop/Hold", RPC_BIDI, &hold_handlers, loop},
    };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        assert_status_ok(rpc_server_add(loop->server, &methods[i]));
    }
    assert_status_ok(rpc_server_add_unimplemented(loop->server, "/test.Loop/Later", RPC_UNARY,
                                                  "Later is not built yet"));
    assert_status_ok(rpc_server_add_health(loop->server));
    assert_status_ok(rpc_server_add_reflection(loop->server));
    assert_status_ok(rpc_server_start(loop->server));
}

void loop_server_stop(struct loop_server *loop)
{
    rpc_server_free(loop->server);
    if (loop->held != NULL) {
        rpc_call_release(loop->held);
    }
    pthread_cond_destroy(&loop->changed);
    pthread_mutex_destroy(&loop->mutex);
}

void loop_server_wait(struct loop_server *loop, const size_t *counter, size_t n)
{
    const struct timespec until = wait_limit();
    int error = 0;
    pthread_mutex_lock(&loop->mutex);
    while (*counter < n && error == 0) {
        error = pthread_cond_timedwait(&loop->changed, &loop->mutex, &until);
    }
    const size_t got = *counter;
    pthread_mutex_unlock(&loop->mutex);
    if (got < n) {
        fail_msg("the server counted %zu, want %zu", got, n);
    }
}

size_t loop_server_count(struct loop_server *loop, const size_t *counter)
{
    pthread_mutex_lock(&loop->mutex);
    const size_t n = *counter;
    pthread_mutex_unlock(&loop->mutex);
    return n;
}

struct rpc_call *loop_server_take_held(struct loop_server *loop)
{
    loop_server_wait(loop, &loop->n_messages, 1);
    pthread_mutex_lock(&loop->mutex);
    struct rpc_call *call = loop->held;
    loop->held = NULL;
    pthread_mutex_unlock(&loop->mutex);
    assert_non_null(call);
    return call;
}

// ---- the client's side ----

static void client_message(struct rpc_call *rpc, const uint8_t *data, size_t size)
{
    struct loop_call *call = rpc_call_user(rpc);
    pthread_mutex_lock(&call->mutex);
    if (size >= 4) {
        uint32_t number;
        memcpy(&number, data, 4);
        call->n_out_of_order += number != call->n_messages;
    }
    call->n_messages++;
    call->n_bytes += size;
    pthread_cond_broadcast(&call->changed);
    pthread_mutex_unlock(&call->mutex);
}

static void client_writable(struct rpc_call *rpc)
{
    struct loop_call *call = rpc_call_user(rpc);
    pthread_mutex_lock(&call->mutex);
    call->n_writable++;
    pthread_cond_broadcast(&call->changed);
    pthread_mutex_unlock(&call->mutex);
}

static void client_closed(struct rpc_call *rpc, const status_t *status)
{
    struct loop_call *call = rpc_call_user(rpc);
    pthread_mutex_lock(&call->mutex);
    call->n_closed++;
    call->status = *status;
    pthread_cond_broadcast(&call->changed);
    pthread_mutex_unlock(&call->mutex);
}

static const struct rpc_handlers client_handlers = {
    .on_message = client_message,
    .on_writable = client_writable,
    .on_closed = client_closed,
};

struct rpc_channel *loop_channel(const char *address)
{
    const struct rpc_channel_options options = {
        .log = {.fd = 2, .level = LOG_WARN, .rank = -1, .module = "rpc"},
    };
    struct rpc_channel *channel;
    assert_status_ok(rpc_channel_new(address, &options, &channel));
    return channel;
}

static void start(struct loop_call *call, struct rpc_channel *channel, const char *path,
                  uint64_t timeout_ns, int flags)
{
    *call = (struct loop_call){0};
    pthread_mutex_init(&call->mutex, NULL);
    pthread_cond_init(&call->changed, NULL);
    const struct rpc_start_args args = {
        .path = path,
        .handlers = &client_handlers,
        .user = call,
        .timeout_ns = timeout_ns,
        .flags = flags,
    };
    assert_status_ok(rpc_start(channel, &args, &call->call));
}

void loop_call_start(struct loop_call *call, struct rpc_channel *channel, const char *path,
                     uint64_t timeout_ns)
{
    start(call, channel, path, timeout_ns, 0);
}

void loop_call_start_waiting(struct loop_call *call, struct rpc_channel *channel, const char *path)
{
    start(call, channel, path, RPC_NO_DEADLINE, RPC_WAIT_FOR_READY);
}

static void call_wait(struct loop_call *call, const size_t *counter, size_t n)
{
    const struct timespec until = wait_limit();
    int error = 0;
    pthread_mutex_lock(&call->mutex);
    while (*counter < n && error == 0 && (call->n_closed == 0 || counter == &call->n_closed)) {
        error = pthread_cond_timedwait(&call->changed, &call->mutex, &until);
    }
    const size_t got = *counter;
    pthread_mutex_unlock(&call->mutex);
    if (got < n) {
        fail_msg("the client counted %zu, want %zu; status %d %s", got, n, call->status.code,
                 call->status.msg);
    }
}

void loop_call_wait_messages(struct loop_call *call, size_t n)
{
    call_wait(call, &call->n_messages, n);
}

status_t loop_call_wait(struct loop_call *call)
{
    call_wait(call, &call->n_closed, 1);
    pthread_mutex_lock(&call->mutex);
    const status_t s = call->status;
    const size_t n_closed = call->n_closed;
    pthread_mutex_unlock(&call->mutex);
    assert_int_equal(n_closed, 1);
    return s;
}

void loop_call_destroy(struct loop_call *call)
{
    rpc_call_release(call->call);
    pthread_cond_destroy(&call->changed);
    pthread_mutex_destroy(&call->mutex);
}

status_t loop_unary(const char *address, const char *path, const char *request,
                    struct bytes *response)
{
    struct rpc_channel *channel = loop_channel(address);
    const struct bytes message = {.data = (uint8_t *)request, .size = strlen(request)};
    const status_t s = rpc_unary(channel, path, &message, 10 * NS_PER_S, response);
    rpc_channel_free(channel);
    return s;
}

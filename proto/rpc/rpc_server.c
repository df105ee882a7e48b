#include <assert.h>
#include <grpc/grpc_security.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "proto/rpc/rpc_internal.h"

#define ADDRESS_BYTES       300
#define DEFAULT_POLLERS     4
#define REQUESTS_PER_POLLER 8
#define CLIENT_PING_MS      1000
#define KEEPALIVE_MS        30000
#define MAX_METADATA_BYTES  16384
#define SHUTTING_DOWN       "the server is shutting down"
#define LAST_WORDS_NS       NS_PER_S /* for statuses to reach the connections before those are closed */

/* The library applies this to every accepted connection as TCP_USER_TIMEOUT too: a reader that is slow for longer
 * loses its connection. */
#define KEEPALIVE_TIMEOUT_MS 20000

struct method {
    char *path;
    int shape; /* enum rpc_shape */
    const struct rpc_handlers *handlers;
    void *context;
    char *unimplemented; /* the answer of a method that is not built; NULL: it is */
    bool is_app;         /* a drain waits for its calls */
};

enum phase {
    PHASE_SERVING,
    PHASE_DRAINING, /* health and reflection still answer */
    PHASE_STOPPING,
};

struct rpc_server {
    struct rpc_host host;
    grpc_server *server;
    char address[ADDRESS_BYTES];
    size_t max_live_calls;
    int n_pollers;
    struct rpc_health *health;

    /* fixed by rpc_server_start */
    struct method *methods;
    size_t n_methods;
    bool started;

    atomic_int phase; /* enum phase */
    bool drained;     /* owner: who drains and frees */
    struct rpc_op shutdown_op;

    /* host.mutex */
    size_t
        n_requested; /* calls that wait for a client, or whose client was found and that are not started yet */
    size_t shutdown_left; /* 1 until the library has shut the server down */
};

// ---- a new call ----

static void request_call(struct rpc_server *server);

static const struct method *find_method(const struct rpc_server *server, const char *path)
{
    for (size_t i = 0; i < server->n_methods; i++) {
        if (strcmp(server->methods[i].path, path) == 0) {
            return &server->methods[i];
        }
    }
    return NULL;
}

/* The library's clock is not promised to be ours: only the time left is taken from it. */
static uint64_t deadline_of(gpr_timespec deadline, uint64_t now_ns)
{
    if (deadline.tv_sec == INT64_MAX) {
        return RPC_NO_DEADLINE;
    }
    const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    if (left.tv_sec < 0) {
        return now_ns;
    }
    if ((uint64_t)left.tv_sec > UINT64_MAX / NS_PER_S / 4) {
        return RPC_NO_DEADLINE;
    }
    const uint64_t seconds = (uint64_t)left.tv_sec, nanoseconds = (uint64_t)left.tv_nsec;
    return now_ns + seconds * NS_PER_S + nanoseconds;
}

/* Why the call is not served; OK when it is. */
static status_t admit(const struct rpc_server *server, const struct method *method,
                      const struct rpc_call *call)
{
    if (method == NULL) {
        return status_errorf(STATUS_UNIMPLEMENTED, "unknown method %.200s", call->path);
    }
    if (method->unimplemented != NULL) {
        return status_errorf(STATUS_UNIMPLEMENTED, "%s", method->unimplemented);
    }
    const int phase = atomic_load(&server->phase);
    if (phase == PHASE_STOPPING || (phase == PHASE_DRAINING && method->is_app)) {
        return status_errorf(STATUS_UNAVAILABLE, SHUTTING_DOWN);
    }
    return status_ok();
}

static bool is_full(struct rpc_server *server)
{
    pthread_mutex_lock(&server->host.mutex);
    const bool full = server->host.n_calls > server->max_live_calls;
    pthread_mutex_unlock(&server->host.mutex);
    return full;
}

/* Everything about the call that comes from its headers. */
static bool read_details(struct rpc_call *call)
{
    call->start_ns = clock_now_ns(clock_system());
    call->deadline_ns = deadline_of(call->details.deadline, call->start_ns);
    call->path = rpc_slice_text(&call->details.method);
    return call->path != NULL;
}

static void start_call(struct rpc_server *server, struct rpc_call *call)
{
    status_t s = status_ok();
    const struct method *method = NULL;
    if (read_details(call)) {
        method = find_method(server, call->path);
        s = admit(server, method, call);
    } else {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for another call");
    }
    const bool serve = status_is_ok(&s);
    if (serve) {
        call->handlers = method->handlers;
        call->context = method->context;
        call->shape = method->shape;
    }
    rpc_host_add_call(&server->host, call, serve && method->is_app);
    if (serve && is_full(server)) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "too many calls: the server is limited to %zu",
                          server->max_live_calls);
        call->handlers = NULL;
    }

    pthread_mutex_lock(&call->mutex);
    // Alone and first: this is what notices cancellation, deadline and disconnect.
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    close.data.recv_close_on_server.cancelled = &call->cancelled;
    const bool watched = rpc_call_batch(call, &close, 1, &call->close_op);
    assert(watched);
    (void)watched;
    if (status_is_ok(&s)) {
        rpc_call_receive(call);
    } else {
        rpc_call_finish_locked(call, &s, NULL, 0);
    }
    rpc_call_dispatch(call);
}

static void count_requested(struct rpc_server *server, size_t change)
{
    pthread_mutex_lock(&server->host.mutex);
    server->n_requested += change;
    pthread_cond_broadcast(&server->host.changed);
    pthread_mutex_unlock(&server->host.mutex);
}

/* A call waiting for a client is tagged with its own close_op, which is free until the call starts. */
static void request_done(struct rpc_op *op, bool ok)
{
    struct rpc_call *call = op->owner;
    struct rpc_server *server = (struct rpc_server *)call->context;
    call->context = NULL;
    op->done = rpc_call_close_done;
    if (ok) {
        request_call(server);
        start_call(server, call);
    } else {
        rpc_call_abandon(call); // the server shuts down
    }
    // Only now: a started call is counted by the host, so that at no moment nobody knows of it.
    count_requested(server, (size_t)-1);
}

static void request_call(struct rpc_server *server)
{
    struct rpc_call *call = rpc_call_new(&server->host, true);
    if (call == NULL) {
        log_write(&server->host.log, LOG_ERROR, "no memory to accept calls", "%s", "");
        return;
    }
    count_requested(server, 1);
    call->context = server;
    call->close_op.done = request_done;
    rpc_op_arm(&call->close_op);
    const grpc_call_error error =
        grpc_server_request_call(server->server, &call->call, &call->details, &call->metadata,
                                 server->host.cq, server->host.cq, &call->close_op);
    if (error != GRPC_CALL_OK) {
        rpc_call_abandon(call); // after the shutdown began
        count_requested(server, (size_t)-1);
    }
}

// ---- creation ----

static grpc_arg integer_arg(const char *key, int value)
{
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)key};
    arg.value.integer = value;
    return arg;
}

static int clamp_int(size_t value)
{
    return value < INT_MAX ? (int)value : INT_MAX;
}

static grpc_server *create_server(const struct rpc_server_options *options, size_t max_receive)
{
    const int streams =
        options->max_streams_per_connection > 0 ? options->max_streams_per_connection : 1024;
    grpc_arg args[] = {
        // A second server on the same port is an error, not a silent partner.
        integer_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        // Clients may ping as often as they like: workers watch for a frozen coordinator that way.
        integer_arg(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, CLIENT_PING_MS),
        integer_arg(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
        integer_arg(GRPC_ARG_KEEPALIVE_TIME_MS, KEEPALIVE_MS),
        integer_arg(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, KEEPALIVE_TIMEOUT_MS),
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, clamp_int(max_receive)),
        integer_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, streams),
        integer_arg(GRPC_ARG_MAX_METADATA_SIZE, MAX_METADATA_BYTES),
        integer_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0), // rpc_view.c does it, bounded
    };
    const grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    return grpc_server_create(&channel_args, NULL);
}

static status_t bind_server(struct rpc_server *server, const char *address)
{
    TRY(rpc_listen_check(address));
    if (strlen(address) >= ADDRESS_BYTES - 6) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "address is longer than %d bytes",
                             ADDRESS_BYTES - 6);
    }
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    const int port = grpc_server_add_http2_port(server->server, address, credentials);
    grpc_server_credentials_release(credentials);
    if (port == 0) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot listen on %s", address);
    }
    if (strncmp(address, "unix:", 5) == 0) {
        (void)snprintf(server->address, ADDRESS_BYTES, "%s", address);
    } else {
        const int host_size = (int)(strrchr(address, ':') - address);
        (void)snprintf(server->address, ADDRESS_BYTES, "%.*s:%d", host_size, address, port);
    }
    return status_ok();
}

static void shutdown_done(struct rpc_op *op, bool ok)
{
    (void)ok;
    struct rpc_server *server = op->owner;
    pthread_mutex_lock(&server->host.mutex);
    server->shutdown_left = 0;
    pthread_cond_broadcast(&server->host.changed);
    pthread_mutex_unlock(&server->host.mutex);
}

status_t rpc_server_new(const struct rpc_server_options *options, struct rpc_server **server_out)
{
    struct rpc_server *server = calloc(1, sizeof *server);
    if (server == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a server");
    }
    status_t s;
    server->health = rpc_health_new();
    if (server->health == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a server");
        goto undo_memory;
    }
    server->n_pollers = options->n_pollers > 0 ? options->n_pollers : DEFAULT_POLLERS;
    server->n_pollers = server->n_pollers < RPC_MAX_POLLERS ? server->n_pollers : RPC_MAX_POLLERS;
    server->max_live_calls = options->max_live_calls > 0 ? options->max_live_calls : 16384;
    server->host.max_queued_bytes =
        options->max_queued_bytes > 0 ? options->max_queued_bytes : 8u << 20;
    server->host.max_receive_bytes =
        options->max_receive_bytes > 0 ? options->max_receive_bytes : 4u << 20;
    rpc_op_init(&server->shutdown_op, shutdown_done, server);
    atomic_init(&server->phase, PHASE_SERVING);

    TRY_GOTO(s, rpc_host_init(&server->host, &options->log, server->n_pollers), undo_health);
    server->server = create_server(options, server->host.max_receive_bytes);
    grpc_server_register_completion_queue(server->server, server->host.cq, NULL);
    TRY_GOTO(s, bind_server(server, options->address), undo_server);
    *server_out = server;
    return status_ok();

undo_server:
    rpc_server_free(server);
    return s;
undo_health:
    rpc_health_free(server->health);
undo_memory:
    free(server);
    return s;
}

static status_t add_method(struct rpc_server *server, const struct method *method)
{
    assert(!server->started);
    const char *slash = method->path[0] == '/' ? strchr(method->path + 1, '/') : NULL;
    if (slash == NULL || slash == method->path + 1 || slash[1] == '\0') {
        return status_errorf(STATUS_INVALID_ARGUMENT, "'%s' is no /package.Service/Method",
                             method->path);
    }
    if (find_method(server, method->path) != NULL) {
        return status_errorf(STATUS_ALREADY_EXISTS, "%s was added before", method->path);
    }
    struct method *methods =
        realloc(server->methods, (server->n_methods + 1) * sizeof *server->methods);
    if (methods == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %s", method->path);
    }
    server->methods = methods;

    struct method *copy = &methods[server->n_methods];
    *copy = *method;
    copy->path = strdup(method->path);
    copy->unimplemented = method->unimplemented != NULL ? strdup(method->unimplemented) : NULL;
    if (copy->path == NULL || (method->unimplemented != NULL && copy->unimplemented == NULL)) {
        free(copy->path);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %s", method->path);
    }
    server->n_methods++;
    return status_ok();
}

status_t rpc_server_add(struct rpc_server *server, const struct rpc_method *method)
{
    return add_method(server, &(struct method){
                                  .path = (char *)method->path,
                                  .shape = method->shape,
                                  .handlers = method->handlers,
                                  .context = method->context,
                                  .is_app = true,
                              });
}

status_t rpc_server_add_unimplemented(struct rpc_server *server, const char *path, int shape,
                                      const char *message)
{
    return add_method(server, &(struct method){
                                  .path = (char *)path,
                                  .shape = shape,
                                  .unimplemented = (char *)message,
                                  .is_app = true,
                              });
}

status_t rpc_server_add_health(struct rpc_server *server)
{
    struct method check = {
        .path = (char *)"/grpc.health.v1.Health/Check",
        .shape = RPC_UNARY,
        .handlers = &rpc_health_check_handlers,
        .context = server->health,
    };
    struct method watch = check;
    watch.path = (char *)"/grpc.health.v1.Health/Watch";
    watch.shape = RPC_SERVER_STREAM;
    watch.handlers = &rpc_health_watch_handlers;
    TRY(add_method(server, &check));
    return add_method(server, &watch);
}

status_t rpc_server_add_reflection(struct rpc_server *server)
{
    struct method info = {
        .path = (char *)"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        .shape = RPC_BIDI,
        .handlers = &rpc_reflection_handlers,
        .context = server,
    };
    TRY(add_method(server, &info));
    // The older name of the same messages; many tools still ask for it first.
    info.path = (char *)"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
    return add_method(server, &info);
}

// ---- running ----

status_t rpc_server_start(struct rpc_server *server)
{
    assert(!server->started && !server->drained);
    server->started = true;
    grpc_server_start(server->server);
    for (int i = 0; i < server->n_pollers * REQUESTS_PER_POLLER; i++) {
        request_call(server);
    }
    return status_ok();
}

const char *rpc_server_address(const struct rpc_server *server)
{
    return server->address;
}

void rpc_server_set_health(struct rpc_server *server, const char *service, bool serving)
{
    rpc_health_set(server->health, service, serving);
}

struct rpc_health *rpc_server_health(struct rpc_server *server)
{
    return server->health;
}

static size_t service_size(const char *path)
{
    return (size_t)(strchr(path + 1, '/') - (path + 1));
}

void rpc_server_each_service(struct rpc_server *server,
                             void (*fn)(void *self, const char *name, size_t size), void *self)
{
    for (size_t i = 0; i < server->n_methods; i++) {
        const char *name = server->methods[i].path + 1;
        const size_t size = service_size(server->methods[i].path);
        bool seen = false;
        for (size_t j = 0; j < i && !seen; j++) {
            seen = service_size(server->methods[j].path) == size &&
                   memcmp(server->methods[j].path + 1, name, size) == 0;
        }
        if (!seen) {
            fn(self, name, size);
        }
    }
}

// ---- the end ----

void rpc_server_drain(struct rpc_server *server, uint64_t grace_ns)
{
    if (server->drained) {
        return;
    }
    server->drained = true;
    atomic_store(&server->phase, PHASE_DRAINING);
    rpc_health_drain(server->health);

    // While the port stays open, who comes now is told why it is turned away.
    const uint64_t now = clock_now_ns(clock_system());
    const uint64_t until = grace_ns < UINT64_MAX - now ? now + grace_ns : UINT64_MAX;
    (void)rpc_host_wait_zero(&server->host, &server->host.n_app_calls, until);

    const status_t s = status_errorf(STATUS_UNAVAILABLE, SHUTTING_DOWN);
    atomic_store(&server->phase, PHASE_STOPPING);
    rpc_host_end_calls(&server->host, &s);
    server->shutdown_left = 1;
    rpc_op_arm(&server->shutdown_op);
    grpc_server_shutdown_and_notify(server->server, server->host.cq, &server->shutdown_op);
    // A status that was "sent" may still be in a buffer, which cancelling everything would throw away.
    (void)rpc_host_wait_zero(&server->host, &server->shutdown_left,
                             clock_now_ns(clock_system()) + LAST_WORDS_NS);
    grpc_server_cancel_all_calls(server->server);
    rpc_host_cancel_calls(&server->host);
    // The shutdown is complete when the connections are gone. A call of theirs may still be on its way in then.
    (void)rpc_host_wait_zero(&server->host, &server->shutdown_left, UINT64_MAX);
    (void)rpc_host_wait_zero(&server->host, &server->n_requested, UINT64_MAX);
    (void)rpc_host_wait_zero(&server->host, &server->host.n_calls, UINT64_MAX);
    grpc_server_destroy(server->server);
    rpc_host_destroy(&server->host);
}

void rpc_server_free(struct rpc_server *server)
{
    if (server == NULL) {
        return;
    }
    rpc_server_drain(server, 0);
    for (size_t i = 0; i < server->n_methods; i++) {
        free(server->methods[i].path);
        free(server->methods[i].unimplemented);
    }
    free(server->methods);
    rpc_health_free(server->health);
    free(server);
}

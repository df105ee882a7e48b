#include "ops/client.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mailbox.h"
#include "proto/rpc/rpc.h"

#define MAX_MESSAGE_BYTES (16u << 20)
#define MAX_EVENTS        65536
#define UNARY_TIMEOUT_NS  (10 * NS_PER_S)

struct client {
    const char *address;
    struct rpc_channel *channel;
    struct mailbox mailbox; /* of struct event, posted by the poller */
};

/* One message, or the end of the call. */
struct event {
    bool closed;
    status_t status;
    size_t size;
    uint8_t data[];
};

static void post(struct rpc_call *call, bool closed, const status_t *status, const uint8_t *data,
                 size_t size)
{
    struct client *client = rpc_call_user(call);
    struct event *event = malloc(sizeof *event + size);
    if (event == NULL) {
        rpc_cancel(call);
        return;
    }
    event->closed = closed;
    event->size = size;
    event->status = closed ? *status : status_ok();
    if (size > 0) {
        memcpy(event->data, data, size);
    }
    const status_t s = mailbox_post(&client->mailbox, event);
    if (s.code != STATUS_OK) { // the reader is 65536 messages behind: give up rather than lose one
        free(event);
        rpc_cancel(call);
    }
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    post(call, false, NULL, data, size);
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    post(call, true, status, NULL, 0);
}

static const struct rpc_handlers handlers = {.on_message = on_message, .on_closed = on_closed};

status_t client_open(const char *address, struct client **client_out)
{
    struct client *client = calloc(1, sizeof *client);
    if (client == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "client: out of memory");
    }
    client->address = address;
    status_t s;
    TRY_GOTO(s, mailbox_init(&client->mailbox, MAX_EVENTS), undo_client);
    const struct rpc_channel_options options = {.log = {.fd = -1}};
    TRY_GOTO(s, rpc_channel_new(address, &options, &client->channel), undo_mailbox);
    *client_out = client;
    return status_ok();

undo_mailbox:
    mailbox_destroy(&client->mailbox);
undo_client:
    free(client);
    return s;
}

void client_close(struct client *client)
{
    if (client == NULL) {
        return;
    }
    rpc_channel_free(client->channel);
    for (struct event *event; (event = mailbox_take(&client->mailbox, 0)) != NULL;) {
        free(event);
    }
    mailbox_destroy(&client->mailbox);
    free(client);
}

static status_t explain(const struct client *client, status_t s)
{
    if (s.code == STATUS_UNAVAILABLE && strstr(s.msg, STATUS_FIX) == NULL) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "server at %s: %s" STATUS_FIX
                             "start one with `kvasir serve MODEL`, or check --address",
                             client->address, s.msg);
    }
    return s;
}

static status_t deliver(const struct client_generate_args *args, const struct event *event)
{
    struct arena arena;
    struct wire_generate_response response;
    arena_init(&arena, 4 * (size_t)MAX_MESSAGE_BYTES);
    status_t s = wire_generate_response_unpack(event->data, event->size, &arena, &response);
    if (s.code == STATUS_OK) {
        s = args->on_response(args->user, &response);
    }
    arena_destroy(&arena);
    return s;
}

/* Takes events until the call is over; the first failure of ours cancels it and wins over the call's status. */
static status_t follow(struct client *client, struct rpc_call *call,
                       const struct client_generate_args *args)
{
    status_t ours = status_ok();
    for (;;) {
        struct event *event = mailbox_take(&client->mailbox, UINT64_MAX);
        if (event == NULL) {
            continue; // woken
        }
        const bool closed = event->closed;
        const status_t theirs = event->status;
        if (!closed && ours.code == STATUS_OK) {
            ours = deliver(args, event);
            if (ours.code != STATUS_OK) {
                rpc_cancel(call);
            }
        }
        free(event);
        if (closed) {
            return ours.code != STATUS_OK ? ours : explain(client, theirs);
        }
    }
}

status_t client_generate(struct client *client, const struct client_generate_args *args)
{
    struct bytes message;
    struct rpc_call *call = NULL;
    bytes_init(&message, MAX_MESSAGE_BYTES);
    const struct rpc_start_args start = {.path = "/kvasir.v1.Inference/Generate",
                                         .handlers = &handlers,
                                         .user = client,
                                         .timeout_ns = args->timeout_ns};
    status_t s;
    TRY_GOTO(s, wire_generate_request_pack(args->request, &message), undo_message);
    TRY_GOTO(s, rpc_start(client->channel, &start, &call), undo_message);
    s = rpc_send(call, message.data, message.size);
    if (s.code == STATUS_OK) {
        rpc_half_close(call);
    } else {
        rpc_cancel(call);
    }
    const status_t result = follow(client, call, args);
    // A call that failed by itself says why; the send only knows that it is over.
    const bool ours = s.code != STATUS_OK && result.code == STATUS_CANCELLED;
    s = ours ? s : result;
    rpc_call_release(call);
undo_message:
    bytes_destroy(&message);
    return s;
}

/* One unary call with an empty request; the answer is copied into the arena. */
static status_t ask(struct client *client, const char *path, struct arena *arena,
                    const uint8_t **data_out, size_t *size_out)
{
    struct bytes request, response;
    bytes_init(&request, 1);
    bytes_init(&response, MAX_MESSAGE_BYTES);
    status_t s = rpc_unary(client->channel, path, &request, UNARY_TIMEOUT_NS, &response);
    if (s.code == STATUS_OK) {
        uint8_t *copy = arena_alloc(arena, response.size);
        if (copy == NULL) {
            s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "%s: answer of %zu bytes", path,
                              response.size);
        } else {
            memcpy(copy, response.data, response.size);
            *data_out = copy;
            *size_out = response.size;
        }
    }
    bytes_destroy(&request);
    bytes_destroy(&response);
    return explain(client, s);
}

status_t client_model_info(struct client *client, struct arena *arena,
                           struct wire_model_info *info_out)
{
    const uint8_t *data = NULL;
    size_t size = 0;
    TRY(ask(client, "/kvasir.v1.Inference/GetModelInfo", arena, &data, &size));
    return wire_model_info_unpack(data, size, arena, info_out);
}

status_t client_status(struct client *client, struct arena *arena,
                       struct wire_cluster_status *status_out)
{
    const uint8_t *data = NULL;
    size_t size = 0;
    TRY(ask(client, "/kvasir.v1.Cluster/GetStatus", arena, &data, &size));
    return wire_cluster_status_unpack(data, size, arena, status_out);
}

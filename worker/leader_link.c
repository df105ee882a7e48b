#include "worker/leader_link.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/mailbox.h"
#include "proto/rpc/rpc.h"

#define LINK_MAX_MESSAGE_BYTES (64u << 20)
#define LINK_MAX_EVENTS        65536

struct leader_link {
    struct mailbox mailbox;
    struct rpc_channel *channel;
    struct rpc_call *call;
    struct bytes out; /* owner: main */
    log_t log;
    pthread_t signal_thread;
    atomic_bool stopping; /* tells the signal thread that the signal is ours */
};

void leader_event_free(struct leader_event *event)
{
    if (event != NULL) {
        arena_destroy(&event->arena);
        free(event);
    }
}

static void post(struct leader_link *link, struct leader_event *event)
{
    const status_t s = mailbox_post(&link->mailbox, event);
    if (s.code != STATUS_OK) {
        log_status(&link->log, LOG_ERROR, "event lost", &s);
        leader_event_free(event);
    }
}

static struct leader_event *event_new(struct leader_link *link, int kind)
{
    struct leader_event *event = calloc(1, sizeof *event);
    if (event == NULL) {
        log_write(&link->log, LOG_ERROR, "out of memory", "");
        return NULL;
    }
    event->kind = kind;
    arena_init(&event->arena, LINK_MAX_MESSAGE_BYTES);
    return event;
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct leader_link *link = rpc_call_user(call);
    struct leader_event *event = event_new(link, LEADER_EVENT_MESSAGE);
    if (event == NULL) {
        return;
    }
    const status_t s = wire_coordinator_message_unpack(data, size, &event->arena, &event->message);
    if (s.code != STATUS_OK) {
        log_status(&link->log, LOG_ERROR, "message from the coordinator", &s);
        leader_event_free(event);
        return;
    }
    post(link, event);
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    struct leader_link *link = rpc_call_user(call);
    struct leader_event *event = event_new(link, LEADER_EVENT_CLOSED);
    if (event != NULL) {
        event->status = *status;
        post(link, event);
    }
}

static const struct rpc_handlers handlers = {.on_message = on_message, .on_closed = on_closed};

static void termination_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
}

static void *signal_main(void *arg)
{
    struct leader_link *link = arg;
    sigset_t set;
    termination_signals(&set);
    for (;;) {
        int number;
        if (sigwait(&set, &number) != 0 || atomic_load(&link->stopping)) {
            return NULL;
        }
        struct leader_event *event = event_new(link, LEADER_EVENT_SIGNAL);
        if (event != NULL) {
            post(link, event);
        }
    }
}

status_t leader_link_open(const char *coordinator, log_t log, struct leader_link **out)
{
    struct leader_link *link = calloc(1, sizeof *link);
    if (link == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader link: out of memory");
    }
    link->log = log;
    atomic_init(&link->stopping, false);
    bytes_init(&link->out, LINK_MAX_MESSAGE_BYTES);
    status_t s;
    TRY_GOTO(s, mailbox_init(&link->mailbox, LINK_MAX_EVENTS), undo_link);
    const struct rpc_channel_options options = {.log = log_module(&log, "rpc")};
    TRY_GOTO(s, rpc_channel_new(coordinator, &options, &link->channel), undo_mailbox);
    const struct rpc_start_args args = {.path = "/kvasir.v1.WorkerLink/Attach",
                                        .handlers = &handlers,
                                        .user = link,
                                        .timeout_ns = RPC_NO_DEADLINE,
                                        .flags = RPC_WAIT_FOR_READY};
    TRY_GOTO(s, rpc_start(link->channel, &args, &link->call), undo_channel);
    if (pthread_create(&link->signal_thread, NULL, signal_main, link) != 0) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader link: cannot start a thread");
        goto undo_call;
    }
    *out = link;
    return status_ok();

undo_call:
    rpc_cancel(link->call);
    rpc_call_release(link->call);
undo_channel:
    rpc_channel_free(link->channel);
undo_mailbox:
    mailbox_destroy(&link->mailbox);
undo_link:
    free(link);
    return s;
}

void leader_link_close(struct leader_link *link)
{
    if (link == NULL) {
        return;
    }
    atomic_store(&link->stopping, true);
    pthread_kill(link->signal_thread, SIGTERM);
    pthread_join(link->signal_thread, NULL);
    rpc_cancel(link->call);
    rpc_call_release(link->call);
    rpc_channel_free(link->channel); // joins the poller: no callback runs after this
    mailbox_close(&link->mailbox);
    for (struct leader_event *event; (event = mailbox_take(&link->mailbox, 0)) != NULL;) {
        leader_event_free(event);
    }
    mailbox_destroy(&link->mailbox);
    bytes_destroy(&link->out);
    free(link);
}

struct leader_event *leader_link_take(struct leader_link *link, uint64_t timeout_ns)
{
    return mailbox_take(&link->mailbox, timeout_ns);
}

status_t leader_link_send(struct leader_link *link, const struct wire_worker_message *message)
{
    bytes_clear(&link->out);
    TRY(wire_worker_message_pack(message, &link->out));
    return rpc_send(link->call, link->out.data, link->out.size);
}

void leader_link_flush(struct leader_link *link, uint64_t timeout_ns)
{
    rpc_half_close(link->call);
    for (;;) {
        struct leader_event *event = mailbox_take(&link->mailbox, timeout_ns);
        const bool done = event == NULL || event->kind == LEADER_EVENT_CLOSED;
        leader_event_free(event);
        if (done) {
            return;
        }
    }
}

#include "worker/leader_link.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/mailbox.h"
#include "proto/rpc/rpc.h"

#define LINK_MAX_MESSAGE_BYTES (64u << 20)
#define LINK_MAX_EVENTS        65536

struct leader_link {
    struct mailbox mailbox;
    struct rpc_channel *channel;
    struct rpc_call *call;
    struct bytes out; /* owner: who sends */
    log_t log;
    pthread_t signal_thread;

    pthread_t pulse_thread;
    pthread_mutex_t mutex; /* of what follows; nothing is called while it is held */
    pthread_cond_t cond;   /* CLOCK_MONOTONIC */
    struct wire_load load;
    uint64_t step_began_ns;
    bool beating, closing;
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
    sigaddset(set, SIGUSR2); // leader_link_close wakes the thread with it
}

static void *signal_main(void *arg)
{
    struct leader_link *link = arg;
    sigset_t set;
    termination_signals(&set);
    for (;;) {
        int number;
        if (sigwait(&set, &number) != 0 || number == SIGUSR2) {
            return NULL;
        }
        struct leader_event *event = event_new(link, LEADER_EVENT_SIGNAL);
        if (event != NULL) {
            post(link, event);
        }
    }
}

/* Waits a second; false when the link is being closed. Copies what the next heartbeat says. */
static bool await_beat(struct leader_link *link, bool *beating_out, struct wire_load *load_out)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1;
    pthread_mutex_lock(&link->mutex);
    int waited = 0;
    while (!link->closing && waited == 0) {
        waited = pthread_cond_timedwait(&link->cond, &link->mutex, &until);
    }
    const bool go_on = !link->closing;
    *beating_out = link->beating;
    *load_out = link->load;
    const uint64_t now_ns = clock_now_ns(clock_system());
    load_out->step_age_ns = link->step_began_ns > 0 ? now_ns - link->step_began_ns : 0;
    pthread_mutex_unlock(&link->mutex);
    return go_on;
}

static void *pulse_main(void *arg)
{
    struct leader_link *link = arg;
    struct wire_worker_message m = {.kind = WIRE_WORKER_HEARTBEAT};
    struct bytes out;
    bool beating;
    bytes_init(&out, LINK_MAX_MESSAGE_BYTES);
    while (await_beat(link, &beating, &m.heartbeat)) {
        bytes_clear(&out);
        status_t s = beating ? wire_worker_message_pack(&m, &out) : status_ok();
        if (s.code == STATUS_OK && beating) {
            s = rpc_send(link->call, out.data, out.size);
        }
        if (s.code != STATUS_OK) { // the end of the call is an event of its own
            log_status(&link->log, LOG_DEBUG, "heartbeat", &s);
        }
    }
    bytes_destroy(&out);
    return NULL;
}

void leader_link_set_load(struct leader_link *link, const struct wire_load *load,
                          uint64_t step_began_ns)
{
    pthread_mutex_lock(&link->mutex);
    link->load = *load;
    link->step_began_ns = step_began_ns;
    link->beating = true;
    pthread_mutex_unlock(&link->mutex);
}

static void init_pulse(struct leader_link *link)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&link->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&link->mutex, NULL);
}

static void end_pulse(struct leader_link *link)
{
    pthread_mutex_lock(&link->mutex);
    link->closing = true;
    pthread_cond_signal(&link->cond);
    pthread_mutex_unlock(&link->mutex);
    pthread_join(link->pulse_thread, NULL);
}

static status_t start_threads(struct leader_link *link)
{
    if (pthread_create(&link->pulse_thread, NULL, pulse_main, link) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader link: cannot start a thread");
    }
    if (pthread_create(&link->signal_thread, NULL, signal_main, link) != 0) {
        end_pulse(link);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader link: cannot start a thread");
    }
    return status_ok();
}

status_t leader_link_open(const char *coordinator, log_t log, struct leader_link **out)
{
    struct leader_link *link = calloc(1, sizeof *link);
    if (link == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader link: out of memory");
    }
    link->log = log;
    bytes_init(&link->out, LINK_MAX_MESSAGE_BYTES);
    init_pulse(link);
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
    TRY_GOTO(s, start_threads(link), undo_call);
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
    pthread_kill(link->signal_thread, SIGUSR2);
    pthread_join(link->signal_thread, NULL);
    end_pulse(link);
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

void leader_link_wake(struct leader_link *link)
{
    mailbox_wake(&link->mailbox);
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

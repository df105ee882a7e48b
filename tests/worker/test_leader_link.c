/*
 * test_leader_link.c - the leader's link against a coordinator's end in the same process
 */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "proto/rpc/rpc.h"
#include "tests/support/test.h"
#include "worker/leader_link.h"

enum { MAX_HEARD = 64 };

/* The coordinator's end: remembers the kinds of what it hears. */
struct end {
    struct rpc_server *server;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct rpc_call *call; /* a reference */
    int kinds[MAX_HEARD];
    uint64_t ages[MAX_HEARD]; /* step_age_ns of heartbeats */
    int n;
    bool half_closed;
};

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct end *end = rpc_call_context(call);
    struct arena arena;
    struct wire_worker_message m;
    arena_init(&arena, 1 << 20);
    const status_t s = wire_worker_message_unpack(data, size, &arena, &m);
    pthread_mutex_lock(&end->mutex);
    if (end->call == NULL) {
        end->call = rpc_call_acquire(call);
    }
    if (end->n < MAX_HEARD) {
        end->kinds[end->n] = s.code == STATUS_OK ? m.kind : -1;
        end->ages[end->n] = m.heartbeat.step_age_ns;
        end->n++;
    }
    pthread_cond_broadcast(&end->changed);
    pthread_mutex_unlock(&end->mutex);
    arena_destroy(&arena);
}

static void on_half_close(struct rpc_call *call)
{
    struct end *end = rpc_call_context(call);
    pthread_mutex_lock(&end->mutex);
    end->half_closed = true;
    pthread_cond_broadcast(&end->changed);
    pthread_mutex_unlock(&end->mutex);
    const status_t bye = status_ok();
    rpc_finish(call, &bye, NULL, 0);
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    (void)call;
    (void)status;
}

static const struct rpc_handlers handlers = {.on_message = on_message,
                                             .on_half_close = on_half_close,
                                             .on_closed = on_closed};

static void end_start(struct end *end)
{
    memset(end, 0, sizeof *end);
    pthread_mutex_init(&end->mutex, NULL);
    pthread_cond_init(&end->changed, NULL);
    const struct rpc_server_options options = {.address = "127.0.0.1:0", .log = {.fd = -1}};
    assert_status_ok(rpc_server_new(&options, &end->server));
    const struct rpc_method method = {.path = "/kvasir.v1.WorkerLink/Attach",
                                      .shape = RPC_BIDI,
                                      .handlers = &handlers,
                                      .context = end};
    assert_status_ok(rpc_server_add(end->server, &method));
    assert_status_ok(rpc_server_start(end->server));
}

static void end_stop(struct end *end)
{
    if (end->call != NULL) {
        rpc_call_release(end->call);
    }
    rpc_server_free(end->server);
    pthread_cond_destroy(&end->changed);
    pthread_mutex_destroy(&end->mutex);
}

/* Waits until n messages were heard, and returns the kind of the n-th. */
static int await(struct end *end, int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 30;
    int waited = 0;
    pthread_mutex_lock(&end->mutex);
    while (end->n < n && waited == 0) {
        waited = pthread_cond_timedwait(&end->changed, &end->mutex, &until);
    }
    const int kind = end->n >= n ? end->kinds[n - 1] : -2;
    pthread_mutex_unlock(&end->mutex);
    return kind;
}

static int n_heard(struct end *end)
{
    pthread_mutex_lock(&end->mutex);
    const int n = end->n;
    pthread_mutex_unlock(&end->mutex);
    return n;
}

static bool is_half_closed(struct end *end)
{
    pthread_mutex_lock(&end->mutex);
    const bool half_closed = end->half_closed;
    pthread_mutex_unlock(&end->mutex);
    return half_closed;
}

static struct leader_link *open_link(struct end *end)
{
    struct leader_link *link = NULL;
    const log_t log = {.fd = -1, .module = "link", .rank = -1};
    end_start(end);
    assert_status_ok(leader_link_open(rpc_server_address(end->server), log, &link));
    const struct wire_worker_message hello = {
        .kind = WIRE_WORKER_HELLO,
        .hello = {.version = "1", .join_token = "", .host = "h", .device = "cpu", .world_size = 1}};
    assert_status_ok(leader_link_send(link, &hello));
    assert_int_equal(await(end, 1), WIRE_WORKER_HELLO);
    return link;
}

static void send_submit(struct end *end, uint64_t seq_id)
{
    const uint32_t ids[3] = {1, 2, 3};
    const struct wire_coordinator_message m = {
        .kind = WIRE_COORDINATOR_SUBMIT,
        .submit = {.seq_id = seq_id, .tokens = {ids, 3}, .max_tokens = 4, .top_p = 1, .n_top = -1}};
    struct bytes bytes;
    bytes_init(&bytes, 1 << 16);
    assert_status_ok(wire_coordinator_message_pack(&m, &bytes));
    assert_status_ok(rpc_send(end->call, bytes.data, bytes.size));
    bytes_destroy(&bytes);
}

static void test_leader_link_delivers_messages_in_order(void **state)
{
    (void)state;
    struct end end;
    struct leader_link *link = open_link(&end);
    for (uint64_t i = 0; i < 100; i++) {
        send_submit(&end, i);
    }
    for (uint64_t i = 0; i < 100; i++) {
        struct leader_event *event = leader_link_take(link, 20 * NS_PER_S);
        assert_non_null(event);
        assert_int_equal(event->kind, LEADER_EVENT_MESSAGE);
        assert_int_equal(event->message.kind, WIRE_COORDINATOR_SUBMIT);
        assert_int_equal(event->message.submit.seq_id, i);
        assert_int_equal(event->message.submit.tokens.ids[2], 3);
        leader_event_free(event);
    }
    assert_null(leader_link_take(link, 0));
    leader_link_close(link);
    end_stop(&end);
}

/* Heartbeats come by themselves, but not before a load is known, and say how long a step has run. */
static void test_leader_link_beats_during_a_step(void **state)
{
    (void)state;
    struct end end;
    struct leader_link *link = open_link(&end);
    const struct wire_load load = {.running = 2, .kv_blocks_used = 3};
    leader_link_set_load(link, &load, clock_now_ns(clock_system()) - 5 * NS_PER_S);
    assert_int_equal(await(&end, 2), WIRE_WORKER_HEARTBEAT);
    assert_true(end.ages[1] >= 5 * NS_PER_S);
    leader_link_set_load(link, &load, 0);
    const int n = n_heard(&end);
    assert_int_equal(await(&end, n + 2), WIRE_WORKER_HEARTBEAT);
    assert_int_equal(end.ages[n + 1], 0);
    leader_link_close(link);
    end_stop(&end);
}

static void test_leader_link_reports_signals_and_the_end(void **state)
{
    (void)state;
    struct end end;
    struct leader_link *link = open_link(&end);
    kill(getpid(), SIGTERM);
    struct leader_event *event = leader_link_take(link, 20 * NS_PER_S);
    assert_non_null(event);
    assert_int_equal(event->kind, LEADER_EVENT_SIGNAL);
    leader_event_free(event);
    const status_t gone = status_errorf(STATUS_FAILED_PRECONDITION, "wrong number of ranks");
    rpc_finish(end.call, &gone, NULL, 0);
    event = leader_link_take(link, 20 * NS_PER_S);
    assert_non_null(event);
    assert_int_equal(event->kind, LEADER_EVENT_CLOSED);
    assert_status_says(event->status, STATUS_FAILED_PRECONDITION, "wrong number of ranks");
    leader_event_free(event);
    leader_link_close(link);
    end_stop(&end);
}

static void test_leader_link_flush_waits_for_the_reader(void **state)
{
    (void)state;
    struct end end;
    struct leader_link *link = open_link(&end);
    const struct wire_worker_message failed = {
        .kind = WIRE_WORKER_FAILED, .failed = status_errorf(STATUS_DATA_LOSS, "no such tensor")};
    assert_status_ok(leader_link_send(link, &failed));
    leader_link_flush(link, 20 * NS_PER_S);
    assert_int_equal(await(&end, 2), WIRE_WORKER_FAILED);
    assert_true(is_half_closed(&end));
    leader_link_close(link);
    end_stop(&end);
}

int main(void)
{
    // As worker/main.c does, before any thread: the link's own thread waits for them.
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leader_link_delivers_messages_in_order),
        cmocka_unit_test(test_leader_link_beats_during_a_step),
        cmocka_unit_test(test_leader_link_reports_signals_and_the_end),
        cmocka_unit_test(test_leader_link_flush_waits_for_the_reader),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

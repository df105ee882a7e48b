/*
 * Worker groups from their own side: who may attach, and what becomes of requests when one is lost.
 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/coordinator/stream.h"

static struct wire_cluster_status status_of(struct bench *b, struct arena *arena)
{
    struct wire_cluster_status status;
    arena_init(arena, 1 << 20);
    bench_status(b, arena, &status);
    return status;
}

/* Waits until the group is in this state. */
static void wait_state(struct bench *b, uint32_t group, int state)
{
    for (int tries = 0; tries < 5000; tries++) {
        struct arena arena;
        const struct wire_cluster_status status = status_of(b, &arena);
        const bool there = status.n_groups > group && status.groups[group].state == state;
        arena_destroy(&arena);
        if (there) {
            return;
        }
        usleep(1000);
    }
    fail_msg("group %u did not become %s", group, wire_group_state_name(state));
}

static void stop(struct bench *b)
{
    coordinator_drain(b->coordinator);
    bench_wait_stopped(b);
    assert_status_ok(coordinator_result(b->coordinator));
    bench_stop(b);
}

static void test_groups_refuse_a_worker_that_does_not_fit(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);

    const struct {
        struct fake_worker_options options;
        int code;
        const char *says;
    } cases[] = {
        {{.world_size = 3}, STATUS_FAILED_PRECONDITION, "has 3 ranks, the coordinator expects 1"},
        {{.link_version = 99}, STATUS_FAILED_PRECONDITION, "speaks link version 99"},
        {{.has_group = true, .group_id = 0, .generation = 1},
         STATUS_FAILED_PRECONDITION,
         "was not started by this coordinator"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fake_worker_options options = cases[i].options;
        options.address = b.address;
        struct fake_worker *worker = fake_worker_new(&options);
        assert_status_says(fake_worker_wait_end(worker), cases[i].code, cases[i].says);
        fake_worker_free(worker);
    }
    struct arena arena;
    assert_int_equal(status_of(&b, &arena).n_groups, 0);
    arena_destroy(&arena);
    stop(&b);
}

static void test_groups_ask_for_the_join_token(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    char path[TEST_PATH_BYTES];
    snprintf(path, sizeof path, "%.4000s/token", b.dir);
    test_write_file(path, "secret\n", 7);
    assert_int_equal(chmod(path, 0600), 0);
    b.config.join_token_file = path;
    bench_start(&b);
    const char *wrong[] = {NULL, "", "secre", "secret!", "Secret"};
    for (size_t i = 0; i < 5; i++) {
        struct fake_worker *worker = fake_worker_new(
            &(struct fake_worker_options){.address = b.address, .join_token = wrong[i]});
        assert_status_says(fake_worker_wait_end(worker), STATUS_UNAUTHENTICATED, "join token");
        fake_worker_free(worker);
    }
    struct fake_worker *worker =
        bench_worker(&b, &(struct fake_worker_options){.join_token = "secret"});
    stop(&b);
    fake_worker_free(worker);
}

static void test_groups_refuse_a_join_token_that_others_can_read(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    char path[TEST_PATH_BYTES];
    snprintf(path, sizeof path, "%.4000s/token", b.dir);
    test_write_file(path, "secret", 6);
    assert_int_equal(chmod(path, 0644), 0);
    b.config.join_token_file = path;
    assert_status_ok(model_load(&b.config, &b.model));
    const struct coordinator_options options = {
        .config = &b.config, .model = &b.model, .log = {.fd = -1, .module = "test"}};
    assert_status_says(coordinator_new(&options, &b.coordinator), STATUS_PERMISSION_DENIED,
                       "others may read it");
    bench_stop(&b);
}

static void test_groups_are_unavailable_until_ready(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 3);
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 20);
    assert_status_says(stream_complete(channel, &request, &arena, &m), STATUS_UNAVAILABLE,
                       "no worker group is attached");
    struct fake_worker *worker =
        fake_worker_new(&(struct fake_worker_options){.address = b.address, .stay_loading = true});
    wait_state(&b, 0, WIRE_GROUP_LOADING);
    assert_status_says(stream_complete(channel, &request, &arena, &m), STATUS_UNAVAILABLE,
                       "the model is still loading");
    fake_worker_free(worker);
    wait_state(&b, 0, WIRE_GROUP_LOST);
    worker = bench_worker(&b, NULL);
    assert_status_ok(stream_complete(channel, &request, &arena, &m));
    arena_destroy(&arena);
    const struct wire_cluster_status status = status_of(&b, &arena);
    assert_int_equal(status.n_groups, 1); // the lost one's place was taken
    assert_int_equal(status.groups[0].generation, 2);
    assert_int_equal(status.groups[0].restarts, 1);
    assert_string_equal(status.groups[0].host, "nowhere");
    arena_destroy(&arena);
    rpc_channel_free(channel);
    stop(&b);
    fake_worker_free(worker);
}

static void test_groups_lost_mid_stream_end_their_requests_clearly(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct fake_worker *worker = bench_worker(&b, NULL);
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 2000);
    struct stream streams[8];
    for (int i = 0; i < 8; i++) {
        stream_start(&streams[i], channel, &request, RPC_NO_DEADLINE);
        stream_wait_tokens(&streams[i], 2);
    }
    fake_worker_kill(worker);
    for (int i = 0; i < 8; i++) {
        assert_status_says(stream_wait(&streams[i]), STATUS_UNAVAILABLE, "worker group 0 was lost");
        stream_free(&streams[i]);
    }
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 20);
    assert_status_code(stream_complete(channel, &request, &arena, &m), STATUS_UNAVAILABLE);
    fake_worker_free(worker);
    worker = fake_worker_new(&(struct fake_worker_options){.address = b.address});
    wait_state(&b, 0, WIRE_GROUP_READY);
    assert_status_ok(stream_complete(channel, &request, &arena, &m));
    arena_destroy(&arena);
    rpc_channel_free(channel);
    stop(&b);
    fake_worker_free(worker);
}

static void test_groups_silent_ones_are_lost(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    b.config.heartbeat_timeout_s = 0.3;
    bench_start(&b);
    struct fake_worker *worker =
        bench_worker(&b, &(struct fake_worker_options){.stay_silent = true});
    assert_status_says(fake_worker_wait_end(worker), STATUS_UNAVAILABLE, "not heard of for");
    fake_worker_free(worker);
    // One that only beats its heart stays.
    worker = fake_worker_new(&(struct fake_worker_options){.address = b.address, .hold = true});
    wait_state(&b, 0, WIRE_GROUP_READY);
    usleep(700000);
    wait_state(&b, 0, WIRE_GROUP_READY);
    stop(&b);
    fake_worker_free(worker);
}

static void test_groups_that_skip_a_token_lose_the_request(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct fake_worker *worker =
        bench_worker(&b, &(struct fake_worker_options){.skip_position = true});
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 100);
    struct stream s;
    stream_start(&s, channel, &request, RPC_NO_DEADLINE);
    assert_status_says(stream_wait(&s), STATUS_INTERNAL, "sent token 2, expected 1");
    fake_worker_wait_cancels(worker, 1);
    stream_free(&s);
    rpc_channel_free(channel);
    stop(&b);
    fake_worker_free(worker);
}

static void test_groups_share_the_load(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    const struct fake_worker_options hold = {.hold = true};
    struct fake_worker *first = bench_worker(&b, &hold);
    struct fake_worker *second = bench_worker(&b, &hold);
    wait_state(&b, 1, WIRE_GROUP_READY);
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 100);
    struct stream streams[10];
    for (int i = 0; i < 10; i++) {
        stream_start(&streams[i], channel, &request, RPC_NO_DEADLINE);
    }
    fake_worker_wait_submits(first, 5);
    fake_worker_wait_submits(second, 5);
    fake_worker_kill(first); // its five end, the other five do not
    size_t n_open = 0;
    usleep(100000);
    for (int i = 0; i < 10; i++) {
        pthread_mutex_lock(&streams[i].mutex);
        n_open += streams[i].closed ? 0 : 1;
        pthread_mutex_unlock(&streams[i].mutex);
    }
    assert_int_equal(n_open, 5);
    for (int i = 0; i < 10; i++) {
        stream_free(&streams[i]);
    }
    rpc_channel_free(channel);
    stop(&b);
    fake_worker_free(first);
    fake_worker_free(second);
}

static void test_groups_drain_finishes_what_runs(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct fake_worker *worker =
        bench_worker(&b, &(struct fake_worker_options){.step_ns = 2000000});
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 100);
    struct stream running, late;
    stream_start(&running, channel, &request, RPC_NO_DEADLINE);
    stream_wait_tokens(&running, 2);
    coordinator_drain(b.coordinator);
    usleep(20000);
    stream_start(&late, channel, &request, RPC_NO_DEADLINE);
    assert_status_says(stream_wait(&late), STATUS_UNAVAILABLE, "the server is draining");
    assert_status_ok(stream_wait(&running));
    assert_int_equal(running.n_tokens, 100);
    bench_wait_stopped(&b);
    assert_status_ok(fake_worker_wait_end(worker)); // it was told, and left by itself
    stream_free(&running);
    stream_free(&late);
    rpc_channel_free(channel);
    bench_stop(&b);
    fake_worker_free(worker);
}

static void test_groups_drain_ends_what_takes_too_long(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    b.config.shutdown_timeout_s = 0.2;
    bench_start(&b);
    struct fake_worker *worker = bench_worker(&b, &(struct fake_worker_options){.hold = true});
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 100);
    struct stream s;
    stream_start(&s, channel, &request, RPC_NO_DEADLINE);
    fake_worker_wait_submits(worker, 1);
    coordinator_drain(b.coordinator);
    assert_status_says(stream_wait(&s), STATUS_UNAVAILABLE, "the server is shutting down");
    bench_wait_stopped(&b);
    stream_free(&s);
    rpc_channel_free(channel);
    bench_stop(&b);
    fake_worker_free(worker);
}

static status_t drain(struct rpc_channel *channel, double grace_seconds, uint32_t *n_ended)
{
    struct bytes request, response;
    struct arena arena;
    bytes_init(&request, 1000);
    bytes_init(&response, 1000);
    arena_init(&arena, 1 << 16);
    assert_status_ok(wire_drain_request_pack(grace_seconds, &request));
    status_t s = rpc_unary(channel, "/kvasir.v1.Cluster/Drain", &request, 10 * NS_PER_S, &response);
    if (s.code == STATUS_OK) {
        s = wire_drain_response_unpack(response.data, response.size, &arena, n_ended);
    }
    arena_destroy(&arena);
    bytes_destroy(&request);
    bytes_destroy(&response);
    return s;
}

static void test_groups_drain_by_rpc_answers_when_drained(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct fake_worker *worker = bench_worker(&b, NULL);
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 300);
    struct stream s;
    stream_start(&s, channel, &request, RPC_NO_DEADLINE);
    stream_wait_tokens(&s, 2);
    uint32_t n_ended = 99;
    assert_status_ok(drain(channel, 0, &n_ended));
    assert_int_equal(n_ended, 0);
    assert_status_ok(stream_wait(&s));
    assert_int_equal(s.n_tokens, 300);
    bench_wait_stopped(&b);
    stream_free(&s);
    rpc_channel_free(channel);
    bench_stop(&b);
    fake_worker_free(worker);
}

static void test_groups_drain_by_rpc_ends_what_takes_longer_than_its_grace(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct fake_worker *worker = bench_worker(&b, &(struct fake_worker_options){.hold = true});
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 300);
    struct stream s;
    stream_start(&s, channel, &request, RPC_NO_DEADLINE);
    fake_worker_wait_submits(worker, 1);
    uint32_t n_ended = 0;
    assert_status_says(drain(channel, -1, &n_ended), STATUS_INVALID_ARGUMENT, "grace_seconds: -1");
    assert_status_ok(drain(channel, 0.2, &n_ended));
    assert_int_equal(n_ended, 1);
    assert_status_code(stream_wait(&s), STATUS_UNAVAILABLE);
    bench_wait_stopped(&b);
    stream_free(&s);
    rpc_channel_free(channel);
    bench_stop(&b);
    fake_worker_free(worker);
}

static void test_groups_failing_by_hand_do_not_end_the_coordinator(void **state)
{
    (void)state;
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct fake_worker *worker = fake_worker_new(&(struct fake_worker_options){
        .address = b.address, .fail = status_errorf(STATUS_DATA_LOSS, "shard is truncated")});
    assert_status_says(fake_worker_wait_end(worker), STATUS_DATA_LOSS, "shard is truncated");
    fake_worker_free(worker);
    worker = bench_worker(&b, NULL);
    stop(&b);
    fake_worker_free(worker);
}

/* What watch streams were told. */
struct watcher {
    pthread_mutex_t mutex;
    int n_messages;
    int last_state;
    bool closed;
};

static void on_watch_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct watcher *w = rpc_call_user(call);
    struct arena arena;
    struct wire_cluster_status status;
    arena_init(&arena, 1 << 20);
    const status_t s = wire_cluster_status_unpack(data, size, &arena, &status);
    pthread_mutex_lock(&w->mutex);
    w->n_messages++;
    w->last_state = s.code == STATUS_OK && status.n_groups == 1 ? status.groups[0].state : -1;
    pthread_mutex_unlock(&w->mutex);
    arena_destroy(&arena);
}

static void on_watch_closed(struct rpc_call *call, const status_t *status)
{
    (void)status;
    struct watcher *w = rpc_call_user(call);
    pthread_mutex_lock(&w->mutex);
    w->closed = true;
    pthread_mutex_unlock(&w->mutex);
}

static void watcher_wait(struct watcher *w, int state)
{
    for (int tries = 0; tries < 5000; tries++) {
        pthread_mutex_lock(&w->mutex);
        const bool there = w->n_messages > 0 && w->last_state == state;
        pthread_mutex_unlock(&w->mutex);
        if (there) {
            return;
        }
        usleep(1000);
    }
    fail_msg("no status with state %d", state);
}

static void watcher_wait_messages(struct watcher *w, int n)
{
    for (int tries = 0; tries < 5000; tries++) {
        pthread_mutex_lock(&w->mutex);
        const bool there = w->n_messages >= n;
        pthread_mutex_unlock(&w->mutex);
        if (there) {
            return;
        }
        usleep(1000);
    }
    fail_msg("no %d messages", n);
}

static void test_groups_watchers_are_told_of_changes(void **state)
{
    (void)state;
    static const struct rpc_handlers handlers = {.on_message = on_watch_message,
                                                 .on_closed = on_watch_closed};
    struct bench b;
    bench_init(&b);
    bench_start(&b);
    struct rpc_channel *channel = stream_channel(b.address);
    struct watcher w = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    const struct rpc_start_args args = {.path = "/kvasir.v1.Cluster/WatchStatus",
                                        .handlers = &handlers,
                                        .user = &w,
                                        .timeout_ns = RPC_NO_DEADLINE};
    struct rpc_call *call;
    assert_status_ok(rpc_start(channel, &args, &call));
    struct bytes request;
    bytes_init(&request, 1000);
    assert_status_ok(wire_watch_request_pack(100, &request));
    assert_status_ok(rpc_send(call, request.data, request.size));
    bytes_destroy(&request);
    rpc_half_close(call);
    watcher_wait(&w, -1);         // no group yet
    watcher_wait_messages(&w, 5); // nothing changes, time passes
    struct fake_worker *worker = bench_worker(&b, NULL);
    watcher_wait(&w, WIRE_GROUP_READY);
    fake_worker_kill(worker);
    watcher_wait(&w, WIRE_GROUP_LOST);
    stop(&b);
    rpc_call_release(call);
    rpc_channel_free(channel);
    assert_true(w.closed);
    fake_worker_free(worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_groups_refuse_a_worker_that_does_not_fit),
        cmocka_unit_test(test_groups_ask_for_the_join_token),
        cmocka_unit_test(test_groups_refuse_a_join_token_that_others_can_read),
        cmocka_unit_test(test_groups_are_unavailable_until_ready),
        cmocka_unit_test(test_groups_lost_mid_stream_end_their_requests_clearly),
        cmocka_unit_test(test_groups_silent_ones_are_lost),
        cmocka_unit_test(test_groups_that_skip_a_token_lose_the_request),
        cmocka_unit_test(test_groups_share_the_load),
        cmocka_unit_test(test_groups_drain_finishes_what_runs),
        cmocka_unit_test(test_groups_drain_ends_what_takes_too_long),
        cmocka_unit_test(test_groups_drain_by_rpc_answers_when_drained),
        cmocka_unit_test(test_groups_drain_by_rpc_ends_what_takes_longer_than_its_grace),
        cmocka_unit_test(test_groups_failing_by_hand_do_not_end_the_coordinator),
        cmocka_unit_test(test_groups_watchers_are_told_of_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

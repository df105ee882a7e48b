/* Servers and clients in one process: what each kind of call does, and how it ends. */
#include "tests/proto/loopback.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static status_t say(struct loop_call *call, const char *text)
{
    return rpc_send(call->call, text, strlen(text));
}

static void request_count(struct loop_call *call, uint32_t n, uint32_t size)
{
    const uint32_t request[2] = {n, size};
    assert_status_ok(rpc_send(call->call, request, sizeof request));
    rpc_half_close(call->call);
}

// ---- unary ----

static void test_rpc_unary_echoes(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct bytes response;
    bytes_init(&response, 1u << 20);
    assert_status_ok(
        loop_unary(rpc_server_address(loop.server), "/test.Loop/Echo", "hello", &response));
    assert_int_equal(response.size, 5);
    assert_memory_equal(response.data, "hello", 5);
    bytes_clear(&response);
    assert_status_ok(loop_unary(rpc_server_address(loop.server), "/test.Loop/Echo", "", &response));
    assert_int_equal(response.size, 0);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_OK], 2);
    bytes_destroy(&response);
    loop_server_stop(&loop);
}

static void test_rpc_unary_response_over_the_callers_limit_fails(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct bytes response;
    bytes_init(&response, 4);
    assert_status_code(
        loop_unary(rpc_server_address(loop.server), "/test.Loop/Echo", "hello", &response),
        STATUS_RESOURCE_EXHAUSTED);
    bytes_destroy(&response);
    loop_server_stop(&loop);
}

static void test_rpc_finish_carries_status_and_trailers(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Fail", RPC_NO_DEADLINE);
    assert_status_ok(say(&call, "x"));
    rpc_half_close(call.call);
    assert_status_says(loop_call_wait(&call), STATUS_RESOURCE_EXHAUSTED,
                       "queue is full: 7 of 7 (caf\xc3\xa9)");
    char value[16];
    assert_true(rpc_call_trailer(call.call, "retry-after-ms", value, sizeof value));
    assert_string_equal(value, "250");
    assert_false(rpc_call_trailer(call.call, "retry-after-ms", value, 3));
    assert_false(rpc_call_trailer(call.call, "bad key", value, sizeof value));
    assert_int_equal(call.n_messages, 0);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_unknown_method_is_named(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct bytes response;
    bytes_init(&response, 1u << 20);
    const char *address = rpc_server_address(loop.server);
    assert_status_says(loop_unary(address, "/test.Loop/Nope", "x", &response), STATUS_UNIMPLEMENTED,
                       "/test.Loop/Nope");
    assert_status_says(loop_unary(address, "/test.Loop/Later", "x", &response),
                       STATUS_UNIMPLEMENTED, "Later is not built yet");
    loop_server_stop(&loop);
    bytes_destroy(&response);
}

static void test_rpc_unary_wants_exactly_one_message(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call none, two;
    loop_call_start(&none, channel, "/test.Loop/Echo", RPC_NO_DEADLINE);
    rpc_half_close(none.call);
    assert_status_says(loop_call_wait(&none), STATUS_INVALID_ARGUMENT, "message is missing");

    loop_call_start(&two, channel, "/test.Loop/Count", RPC_NO_DEADLINE);
    assert_status_ok(say(&two, "1111"));
    assert_status_ok(say(&two, "2222"));
    assert_status_says(loop_call_wait(&two), STATUS_INVALID_ARGUMENT, "more than one");
    loop_server_wait(&loop, &loop.n_closed, 2);
    assert_int_equal(loop_server_count(&loop, &loop.n_messages), 0);

    loop_call_destroy(&none);
    loop_call_destroy(&two);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

// ---- streams ----

static void test_rpc_server_stream_delivers_all_in_order(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Count", RPC_NO_DEADLINE);
    request_count(&call, 10000, 16);
    assert_status_ok(loop_call_wait(&call));
    assert_int_equal(call.n_messages, 10000);
    assert_int_equal(call.n_bytes, 160000);
    assert_int_equal(call.n_out_of_order, 0);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_OK], 1);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_full_queue_refuses_then_tells_writable(void **state)
{
    (void)state;
    struct loop_server loop;
    const struct rpc_server_options options = {.max_queued_bytes = 16384};
    loop_server_start(&loop, &options);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Count", RPC_NO_DEADLINE);
    request_count(&call, 3000, 4000);
    assert_status_ok(loop_call_wait(&call));
    assert_int_equal(call.n_messages, 3000);
    assert_int_equal(call.n_out_of_order, 0);
    // 12 MB went through a queue of 16 KB, so it was full, and each refusal was followed by a call.
    assert_true(loop_server_count(&loop, &loop.n_refused) > 10);
    assert_int_equal(loop_server_count(&loop, &loop.n_refused),
                     loop_server_count(&loop, &loop.n_writable));
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_queue_is_bounded_by_bytes(void **state)
{
    (void)state;
    struct loop_server loop;
    const struct rpc_server_options options = {.max_queued_bytes = 65536};
    loop_server_start(&loop, &options);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call client;
    loop_call_start(&client, channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
    assert_status_ok(say(&client, "x"));
    struct rpc_call *held = loop_server_take_held(&loop);

    static const uint8_t big[70000];
    assert_status_says(rpc_send(held, big, 65536), STATUS_INVALID_ARGUMENT, "65536");
    // The message under way is not counted, so one of the largest size follows another.
    assert_status_ok(rpc_send(held, big, 65536 - 64));
    status_t s = status_ok();
    size_t n = 1;
    while (status_is_ok(&s) && n < 100000) {
        s = rpc_send(held, big, 30000);
        n += status_is_ok(&s);
        assert_true(rpc_queued_bytes(held) <= 65536);
    }
    assert_int_equal(s.code, STATUS_RESOURCE_EXHAUSTED);
    loop_server_wait(&loop, &loop.n_writable, 1);
    const status_t ok = status_ok();
    rpc_finish(held, &ok, NULL, 0);
    assert_status_code(rpc_send(held, "x", 1), STATUS_UNAVAILABLE);
    // What was queued before the end still arrives.
    assert_status_ok(loop_call_wait(&client));
    assert_int_equal(client.n_messages, n);
    rpc_call_release(held);
    loop_call_destroy(&client);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_bidi_echoes_until_half_close(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Chat", RPC_NO_DEADLINE);
    for (uint32_t i = 0; i < 2000; i++) {
        assert_status_ok(rpc_send(call.call, &i, sizeof i));
    }
    loop_call_wait_messages(&call, 2000);
    assert_int_equal(loop_server_count(&loop, &loop.n_half_closed), 0);
    rpc_half_close(call.call);
    assert_status_code(rpc_send(call.call, "x", 1), STATUS_UNAVAILABLE);
    assert_status_ok(loop_call_wait(&call));
    assert_int_equal(call.n_out_of_order, 0);
    assert_int_equal(loop_server_count(&loop, &loop.n_half_closed), 1);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_server_may_finish_while_client_sends(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Chat", RPC_NO_DEADLINE);
    assert_status_ok(say(&call, "bye"));
    status_t s = status_ok();
    while (s.code == STATUS_OK || s.code == STATUS_RESOURCE_EXHAUSTED) {
        s = say(&call, "more");
    }
    assert_int_equal(s.code, STATUS_UNAVAILABLE);
    assert_status_ok(loop_call_wait(&call));
    // Finished as the server wanted, whatever the client still had to say.
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_OK], 1);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

// ---- cancellation and deadlines ----

static void test_rpc_client_cancel_is_noticed_at_once(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Never", RPC_NO_DEADLINE);
    assert_status_ok(say(&call, "x"));
    rpc_half_close(call.call);
    struct rpc_call *held = loop_server_take_held(&loop);
    assert_true(rpc_call_deadline_ns(held) == RPC_NO_DEADLINE);
    assert_string_equal(rpc_call_path(held), "/test.Loop/Never");
    char peer[64];
    rpc_call_peer(held, peer, sizeof peer);
    assert_non_null(strstr(peer, "127.0.0.1"));
    char agent[200];
    assert_true(rpc_call_metadata(held, "user-agent", agent, sizeof agent));
    assert_non_null(strstr(agent, "grpc"));
    assert_false(rpc_call_metadata(held, "x-none", agent, sizeof agent));

    const uint64_t before = clock_now_ns(clock_system());
    rpc_cancel(call.call);
    assert_status_code(loop_call_wait(&call), STATUS_CANCELLED);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_CANCELLED], 1);
    assert_true(clock_now_ns(clock_system()) - before < 10 * NS_PER_S);

    // The handler's reference is good for the struct; everything else says that it is over.
    assert_status_code(rpc_send(held, "x", 1), STATUS_UNAVAILABLE);
    const status_t ok = status_ok();
    rpc_finish(held, &ok, NULL, 0);
    rpc_cancel(held);
    rpc_call_release(held);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_server_cancel_ends_both_sides(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
    assert_status_ok(say(&call, "x"));
    struct rpc_call *held = loop_server_take_held(&loop);
    rpc_cancel(held);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_CANCELLED], 1);
    const status_t s = loop_call_wait(&call);
    assert_int_not_equal(s.code, STATUS_OK);
    rpc_call_release(held);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_deadline_ends_both_sides(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    const uint64_t before = clock_now_ns(clock_system());
    loop_call_start(&call, channel, "/test.Loop/Never", NS_PER_S);
    assert_status_ok(say(&call, "x"));
    rpc_half_close(call.call);
    struct rpc_call *held = loop_server_take_held(&loop);
    const uint64_t deadline = rpc_call_deadline_ns(held);
    assert_true(deadline > before && deadline < before + 2 * NS_PER_S);
    rpc_call_release(held);

    assert_status_code(loop_call_wait(&call), STATUS_DEADLINE_EXCEEDED);
    const uint64_t took = clock_now_ns(clock_system()) - before;
    assert_true(took >= 950 * NS_PER_MS && took < 10 * NS_PER_S);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_DEADLINE_EXCEEDED], 1);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_lost_channel_is_a_cancelled_call(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
    assert_status_ok(say(&call, "x"));
    loop_server_wait(&loop, &loop.n_messages, 1);
    rpc_channel_free(channel); // with the call under way
    assert_int_equal(call.n_closed, 1);
    assert_int_equal(call.status.code, STATUS_CANCELLED);
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_CANCELLED], 1);
    // A reference outlives the channel.
    assert_status_code(rpc_send(call.call, "x", 1), STATUS_UNAVAILABLE);
    loop_call_destroy(&call);
    loop_server_stop(&loop);
}

static void test_rpc_no_server_fails_at_once_or_waits_when_told(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    char address[128];
    (void)snprintf(address, sizeof address, "%s", rpc_server_address(loop.server));
    loop_server_stop(&loop);

    struct bytes response;
    bytes_init(&response, 1024);
    const uint64_t before = clock_now_ns(clock_system());
    assert_status_code(loop_unary(address, "/test.Loop/Echo", "x", &response), STATUS_UNAVAILABLE);
    assert_true(clock_now_ns(clock_system()) - before < 10 * NS_PER_S);

    struct rpc_channel *channel = loop_channel(address);
    struct loop_call call;
    loop_call_start_waiting(&call, channel, "/test.Loop/Chat");
    assert_status_ok(say(&call, "12"));
    const struct rpc_server_options options = {.address = address};
    loop_server_start(&loop, &options);
    loop_call_wait_messages(&call, 1);
    rpc_half_close(call.call);
    assert_status_ok(loop_call_wait(&call));
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    bytes_destroy(&response);
    loop_server_stop(&loop);
}

// ---- limits ----

static void test_rpc_request_over_the_limit_is_refused(void **state)
{
    (void)state;
    struct loop_server loop;
    const struct rpc_server_options options = {.max_receive_bytes = 10000};
    loop_server_start(&loop, &options);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    uint8_t *big = calloc(1, 10001);
    const struct bytes fits = {.data = big, .size = 10000}, too_big = {.data = big, .size = 10001};
    struct bytes response;
    bytes_init(&response, 1u << 20);
    assert_status_ok(rpc_unary(channel, "/test.Loop/Echo", &fits, RPC_NO_DEADLINE, &response));
    assert_int_equal(response.size, 10000);
    assert_status_says(rpc_unary(channel, "/test.Loop/Echo", &too_big, RPC_NO_DEADLINE, &response),
                       STATUS_RESOURCE_EXHAUSTED, "10001");
    free(big);
    bytes_destroy(&response);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_rpc_more_calls_than_the_limit_are_refused(void **state)
{
    (void)state;
    struct loop_server loop;
    const struct rpc_server_options options = {.max_live_calls = 3};
    loop_server_start(&loop, &options);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call calls[3], extra;
    for (size_t i = 0; i < 3; i++) {
        loop_call_start(&calls[i], channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
        assert_status_ok(say(&calls[i], "x"));
        loop_server_wait(&loop, &loop.n_messages, i + 1);
    }
    loop_call_start(&extra, channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
    assert_status_says(loop_call_wait(&extra), STATUS_RESOURCE_EXHAUSTED, "limited to 3");
    rpc_cancel(calls[0].call);
    loop_server_wait(&loop, &loop.n_closed, 1);
    struct bytes response;
    bytes_init(&response, 1024);
    status_t s;
    int tries = 0;
    do { // the place is free once the call has left, a moment after its end was told
        const struct bytes request = {.data = (uint8_t *)"x", .size = 1};
        s = rpc_unary(channel, "/test.Loop/Echo", &request, RPC_NO_DEADLINE, &response);
        tries++;
    } while (s.code == STATUS_RESOURCE_EXHAUSTED && tries < 1000);
    assert_status_ok(s);
    bytes_destroy(&response);
    loop_call_destroy(&extra);
    rpc_channel_free(channel);
    for (size_t i = 0; i < 3; i++) {
        loop_call_destroy(&calls[i]);
    }
    loop_server_stop(&loop);
}

#define N_STREAMS 500

static void test_rpc_500_streams_at_once(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call *calls = calloc(N_STREAMS, sizeof *calls);
    for (size_t i = 0; i < N_STREAMS; i++) {
        loop_call_start(&calls[i], channel, "/test.Loop/Count", RPC_NO_DEADLINE);
    }
    for (size_t i = 0; i < N_STREAMS; i++) {
        request_count(&calls[i], (uint32_t)(i % 60), 8);
    }
    for (size_t i = 0; i < N_STREAMS; i++) {
        assert_status_ok(loop_call_wait(&calls[i]));
        assert_int_equal(calls[i].n_messages, i % 60);
        assert_int_equal(calls[i].n_out_of_order, 0);
        loop_call_destroy(&calls[i]);
    }
    loop_server_wait(&loop, &loop.n_closed_with[STATUS_OK], N_STREAMS);
    free(calls);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rpc_unary_echoes),
        cmocka_unit_test(test_rpc_unary_response_over_the_callers_limit_fails),
        cmocka_unit_test(test_rpc_finish_carries_status_and_trailers),
        cmocka_unit_test(test_rpc_unknown_method_is_named),
        cmocka_unit_test(test_rpc_unary_wants_exactly_one_message),
        cmocka_unit_test(test_rpc_server_stream_delivers_all_in_order),
        cmocka_unit_test(test_rpc_full_queue_refuses_then_tells_writable),
        cmocka_unit_test(test_rpc_queue_is_bounded_by_bytes),
        cmocka_unit_test(test_rpc_bidi_echoes_until_half_close),
        cmocka_unit_test(test_rpc_server_may_finish_while_client_sends),
        cmocka_unit_test(test_rpc_client_cancel_is_noticed_at_once),
        cmocka_unit_test(test_rpc_server_cancel_ends_both_sides),
        cmocka_unit_test(test_rpc_deadline_ends_both_sides),
        cmocka_unit_test(test_rpc_lost_channel_is_a_cancelled_call),
        cmocka_unit_test(test_rpc_no_server_fails_at_once_or_waits_when_told),
        cmocka_unit_test(test_rpc_request_over_the_limit_is_refused),
        cmocka_unit_test(test_rpc_more_calls_than_the_limit_are_refused),
        cmocka_unit_test(test_rpc_500_streams_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* A server as a process sees it: where it listens, what hostile bytes do, how it ends. */
#include "tests/proto/loopback.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zlib.h>

#include "base/clock.h"

static status_t new_server(const char *address)
{
    const struct rpc_server_options options = {.address = address, .log = {.fd = -1}};
    struct rpc_server *server = NULL;
    const status_t s = rpc_server_new(&options, &server);
    rpc_server_free(server);
    return s;
}

static int port_of(const char *address)
{
    return (int)strtol(strrchr(address, ':') + 1, NULL, 10);
}

static int dial(const char *address)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_port = htons((uint16_t)port_of(address));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void assert_echoes(const char *address)
{
    struct bytes response;
    bytes_init(&response, 1024);
    assert_status_ok(loop_unary(address, "/test.Loop/Echo", "still here", &response));
    assert_int_equal(response.size, 10);
    bytes_destroy(&response);
}

// ---- where it listens ----

static void test_listen_port_in_use_names_it_and_a_fix(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    const char *address = rpc_server_address(loop.server);
    assert_true(port_of(address) > 0);
    char expected[200];
    (void)snprintf(expected, sizeof expected,
                   "cannot listen on %s: address already in use; fix: ", address);
    assert_status_says(new_server(address), STATUS_UNAVAILABLE, expected);
    assert_echoes(address);
    loop_server_stop(&loop);
}

static void test_listen_port_is_free_after_the_end(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    char address[64];
    (void)snprintf(address, sizeof address, "%s", rpc_server_address(loop.server));
    assert_echoes(address);
    loop_server_stop(&loop);
    const struct rpc_server_options options = {.address = address};
    loop_server_start(&loop, &options);
    assert_string_equal(rpc_server_address(loop.server), address);
    assert_echoes(address);
    loop_server_stop(&loop);
}

static void test_listen_refuses_malformed_addresses(void **state)
{
    (void)state;
    const char *const bad[] = {
        "",          "127.0.0.1",       ":50051",       "127.0.0.1:", "127.0.0.1:x",
        "::1:50051", "127.0.0.1:65536", "127.0.0.1:-1", "[::1:50051", "unix:"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_status_says(new_server(bad[i]), STATUS_INVALID_ARGUMENT, bad[i]);
    }
    assert_status_says(new_server("192.0.2.7:50051"), STATUS_UNAVAILABLE, "192.0.2.7:50051");
    assert_status_says(new_server("no-such-host.invalid:1"), STATUS_UNAVAILABLE,
                       "no-such-host.invalid:1");
}

static void test_listen_on_a_unix_socket(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    char address[TEST_PATH_BYTES + 32];
    (void)snprintf(address, sizeof address, "unix:%s/k.sock", dir);
    const char *path = address + 5;
    const struct rpc_server_options options = {.address = address};

    struct loop_server loop;
    loop_server_start(&loop, &options);
    assert_string_equal(rpc_server_address(loop.server), address);
    assert_echoes(address);
    assert_status_says(new_server(address), STATUS_UNAVAILABLE, "address already in use; fix: ");
    assert_echoes(address); // whose socket was not taken away
    loop_server_stop(&loop);

    // What a killed server leaves behind is nobody's.
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    (void)snprintf(name.sun_path, sizeof name.sun_path, "%s", path);
    const int stale = socket(AF_UNIX, SOCK_STREAM, 0);
    (void)unlink(path);
    assert_int_equal(bind(stale, (struct sockaddr *)&name, sizeof name), 0);
    close(stale);
    assert_int_equal(access(path, F_OK), 0);
    loop_server_start(&loop, &options);
    assert_echoes(address);
    loop_server_stop(&loop);

    // A file that is no socket is somebody's.
    (void)unlink(path);
    test_write_file(path, "precious", 8);
    assert_status_says(new_server(address), STATUS_UNAVAILABLE, "no socket");
    assert_int_equal(access(path, F_OK), 0);

    char long_address[256];
    memset(long_address, 'a', sizeof long_address);
    memcpy(long_address, "unix:/", 6);
    long_address[200] = '\0';
    assert_status_says(new_server(long_address), STATUS_INVALID_ARGUMENT, "195");
    test_tmpdir_remove(dir);
}

static void test_server_refuses_bad_methods(void **state)
{
    (void)state;
    const struct rpc_server_options options = {.address = "127.0.0.1:0", .log = {.fd = -1}};
    struct rpc_server *server;
    assert_status_ok(rpc_server_new(&options, &server));
    const char *const bad[] = {"", "x", "/x", "//x", "/x/"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_status_code(rpc_server_add_unimplemented(server, bad[i], RPC_UNARY, "no"),
                           STATUS_INVALID_ARGUMENT);
    }
    assert_status_ok(rpc_server_add_unimplemented(server, "/x.Y/Z", RPC_UNARY, "no"));
    assert_status_says(rpc_server_add_unimplemented(server, "/x.Y/Z", RPC_UNARY, "no"),
                       STATUS_ALREADY_EXISTS, "/x.Y/Z");
    rpc_server_free(server); // never started
    rpc_server_free(NULL);
}

// ---- hostile bytes ----

static void send_raw(int fd, const void *data, size_t size)
{
    // The server may hang up in the middle: that is as good an answer as any.
    (void)send(fd, data, size, MSG_NOSIGNAL);
}

static void test_server_survives_garbage_connections(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    const char *address = rpc_server_address(loop.server);
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    uint8_t noise[512];
    for (int i = 0; i < 200; i++) {
        const int fd = dial(address);
        if (i % 2 == 0) {
            send_raw(fd, preface, sizeof preface - 1);
        }
        for (size_t j = 0; j < sizeof noise; j++) {
            noise[j] = (uint8_t)test_random_u64();
        }
        send_raw(fd, noise, (size_t)test_random_below(sizeof noise));
        close(fd);
    }
    const int silent = dial(address);
    assert_echoes(address);
    close(silent);
    assert_int_equal(loop_server_count(&loop, &loop.n_messages), 1);
    loop_server_stop(&loop);
}

/* One gRPC request over bare HTTP/2, with a payload and an encoding of our choice. */
static void raw_request(const char *address, const char *encoding, const void *payload, size_t size)
{
    const char *const headers[][2] = {
        {":method", "POST"},         {":scheme", "http"}, {":path", "/test.Loop/Echo"},
        {":authority", "test"},      {"te", "trailers"},  {"content-type", "application/grpc"},
        {"grpc-encoding", encoding},
    };
    uint8_t block[512];
    size_t n = 0;
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        block[n++] = 0; // literal without indexing, new name
        for (int j = 0; j < 2; j++) {
            const size_t length = strlen(headers[i][j]);
            block[n++] = (uint8_t)length;
            memcpy(block + n, headers[i][j], length);
            n += length;
        }
    }
    const int fd = dial(address);
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
    send_raw(fd, preface, sizeof preface - 1);
    const uint8_t head[9] = {0, (uint8_t)(n >> 8), (uint8_t)n, 1, 4, 0, 0, 0, 1};
    send_raw(fd, head, sizeof head);
    send_raw(fd, block, n);
    const size_t frame = size + 5;
    const uint8_t data[14] = {
        (uint8_t)(frame >> 16), (uint8_t)(frame >> 8), (uint8_t)frame, 0, 1, 0, 0, 0, 1, 1, 0, 0,
        (uint8_t)(size >> 8),   (uint8_t)size};
    send_raw(fd, data, sizeof data);
    send_raw(fd, payload, size);

    // Until the server ends the stream or the connection.
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    uint8_t buf[4096];
    while (poll(&wait, 1, 300) == 1 && recv(fd, buf, sizeof buf, 0) > 0) {
    }
    close(fd);
}

static size_t compress_zeros(size_t n, int window_bits, uint8_t *out, size_t out_bytes)
{
    static uint8_t zeros[65536];
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 9, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_out = out;
    z.avail_out = (uInt)out_bytes;
    int code = Z_OK;
    while (code != Z_STREAM_END) {
        const size_t part = n < sizeof zeros ? n : sizeof zeros;
        z.next_in = zeros;
        z.avail_in = (uInt)part;
        n -= part;
        code = deflate(&z, n == 0 ? Z_FINISH : Z_NO_FLUSH);
        assert_true(code == Z_OK || code == Z_STREAM_END);
    }
    const size_t size = out_bytes - z.avail_out;
    deflateEnd(&z);
    return size;
}

static void test_server_inflates_within_the_limit_only(void **state)
{
    (void)state;
    struct loop_server loop;
    const struct rpc_server_options options = {.max_receive_bytes = 1u << 20};
    loop_server_start(&loop, &options);
    const char *address = rpc_server_address(loop.server);
    static uint8_t packed[65000];

    size_t size = compress_zeros(1u << 20, 15 | 16, packed, sizeof packed);
    raw_request(address, "gzip", packed, size);
    loop_server_wait(&loop, &loop.n_messages, 1); // exactly the limit
    size = compress_zeros(100, 15, packed, sizeof packed);
    raw_request(address, "deflate", packed, size);
    loop_server_wait(&loop, &loop.n_messages, 2);

    size = compress_zeros((1u << 20) + 1, 15 | 16, packed, sizeof packed);
    raw_request(address, "gzip", packed, size);
    size = compress_zeros(12u << 20, 15 | 16, packed, sizeof packed); // 12 MB in 12 KB
    raw_request(address, "gzip", packed, size);
    raw_request(address, "gzip", packed, size / 2); // cut short
    raw_request(address, "gzip", "not compressed", 14);
    raw_request(address, "deflate", packed, 100);
    assert_echoes(address);
    assert_int_equal(loop_server_count(&loop, &loop.n_messages), 3);
    loop_server_stop(&loop);
}

// ---- the end ----

struct drainer {
    struct loop_server *loop;
    uint64_t grace_ns;
    uint64_t took_ns;
    pthread_t thread;
};

static void *drain(void *arg)
{
    struct drainer *drainer = arg;
    const uint64_t before = clock_now_ns(clock_system());
    rpc_server_drain(drainer->loop->server, drainer->grace_ns);
    drainer->took_ns = clock_now_ns(clock_system()) - before;
    return NULL;
}

static void test_drain_without_calls_takes_no_time(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call watch, info;
    rpc_server_set_health(loop.server, "", true);
    loop_call_start(&watch, channel, "/grpc.health.v1.Health/Watch", RPC_NO_DEADLINE);
    assert_status_ok(rpc_send(watch.call, "", 0));
    rpc_half_close(watch.call);
    loop_call_wait_messages(&watch, 1);
    loop_call_start(&info, channel, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                    RPC_NO_DEADLINE);
    assert_status_ok(rpc_send(info.call, "\x3a\0", 2));
    loop_call_wait_messages(&info, 1);

    struct drainer drainer = {.loop = &loop, .grace_ns = 30 * NS_PER_S};
    (void)drain(&drainer);
    assert_true(drainer.took_ns < 15 * NS_PER_S);
    // The watcher heard NOT_SERVING before its stream was ended.
    assert_status_code(loop_call_wait(&watch), STATUS_UNAVAILABLE);
    assert_int_equal(watch.n_messages, 2);
    assert_int_not_equal(loop_call_wait(&info).code, STATUS_OK);
    loop_call_destroy(&watch);
    loop_call_destroy(&info);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_drain_lets_calls_finish_within_the_grace(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    const char *address = rpc_server_address(loop.server);
    struct rpc_channel *channel = loop_channel(address);
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
    assert_status_ok(rpc_send(call.call, "x", 1));
    struct rpc_call *held = loop_server_take_held(&loop);

    struct drainer drainer = {.loop = &loop, .grace_ns = 40 * NS_PER_S};
    assert_int_equal(pthread_create(&drainer.thread, NULL, drain, &drainer), 0);
    // New calls are turned away with a reason, health says so, and the live one goes on.
    struct bytes response;
    bytes_init(&response, 1024);
    status_t s = status_ok();
    for (int i = 0; i < 1000 && status_is_ok(&s); i++) {
        bytes_clear(&response);
        s = loop_unary(address, "/test.Loop/Echo", "x", &response);
    }
    assert_status_says(s, STATUS_UNAVAILABLE, "shutting down");
    rpc_server_set_health(loop.server, "", true); // has no say any more
    bytes_clear(&response);
    assert_status_ok(loop_unary(address, "/grpc.health.v1.Health/Check", "", &response));
    assert_int_equal(response.size, 2);
    assert_int_equal(response.data[1], 2); // NOT_SERVING
    assert_status_ok(rpc_send(held, "last", 4));
    const status_t ok = status_ok();
    rpc_finish(held, &ok, NULL, 0);
    rpc_call_release(held);

    assert_status_ok(loop_call_wait(&call));
    assert_int_equal(call.n_messages, 1);
    pthread_join(drainer.thread, NULL);
    assert_true(drainer.took_ns < 30 * NS_PER_S);
    assert_int_equal(loop_server_count(&loop, &loop.n_closed_with[STATUS_CANCELLED]), 0);
    bytes_destroy(&response);
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_drain_cancels_calls_after_the_grace(void **state)
{
    (void)state;
    struct loop_server loop;
    loop_server_start(&loop, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(loop.server));
    struct loop_call call;
    loop_call_start(&call, channel, "/test.Loop/Hold", RPC_NO_DEADLINE);
    assert_status_ok(rpc_send(call.call, "x", 1));
    struct rpc_call *held = loop_server_take_held(&loop);

    struct drainer drainer = {.loop = &loop, .grace_ns = 200 * NS_PER_MS};
    (void)drain(&drainer);
    assert_true(drainer.took_ns >= 200 * NS_PER_MS && drainer.took_ns < 15 * NS_PER_S);
    assert_int_equal(loop_server_count(&loop, &loop.n_closed_with[STATUS_CANCELLED]), 1);
    assert_int_not_equal(loop_call_wait(&call).code, STATUS_OK);
    rpc_call_release(held); // outlives the server's pollers
    loop_call_destroy(&call);
    rpc_channel_free(channel);
    loop_server_stop(&loop);
}

static void test_two_servers_and_a_channel_are_independent(void **state)
{
    (void)state;
    struct loop_server first, second;
    loop_server_start(&first, NULL);
    loop_server_start(&second, NULL);
    struct rpc_channel *channel = loop_channel(rpc_server_address(second.server));
    loop_server_stop(&first);
    struct bytes response;
    bytes_init(&response, 1024);
    const struct bytes request = {.data = (uint8_t *)"x", .size = 1};
    assert_status_ok(rpc_unary(channel, "/test.Loop/Echo", &request, RPC_NO_DEADLINE, &response));
    loop_server_stop(&second);
    const status_t s = rpc_unary(channel, "/test.Loop/Echo", &request, 10 * NS_PER_S, &response);
    assert_int_equal(s.code, STATUS_UNAVAILABLE);
    bytes_destroy(&response);
    rpc_channel_free(channel);
    rpc_channel_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listen_port_in_use_names_it_and_a_fix),
        cmocka_unit_test(test_listen_port_is_free_after_the_end),
        cmocka_unit_test(test_listen_refuses_malformed_addresses),
        cmocka_unit_test(test_listen_on_a_unix_socket),
        cmocka_unit_test(test_server_refuses_bad_methods),
        cmocka_unit_test(test_server_survives_garbage_connections),
        cmocka_unit_test(test_server_inflates_within_the_limit_only),
        cmocka_unit_test(test_drain_without_calls_takes_no_time),
        cmocka_unit_test(test_drain_lets_calls_finish_within_the_grace),
        cmocka_unit_test(test_drain_cancels_calls_after_the_grace),
        cmocka_unit_test(test_two_servers_and_a_channel_are_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

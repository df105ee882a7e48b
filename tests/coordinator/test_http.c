#include "coordinator/http.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/coordinator/stream.h"

/* One request; returns the status code, the whole answer in buf. */
static int http_get(const char *address, const char *method, const char *path, char *buf,
                    size_t buf_bytes)
{
    const char *colon = strrchr(address, ':');
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)strtoul(colon + 1, NULL, 10)),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    char request[256];
    const int n = snprintf(request, sizeof request,
                           "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path);
    assert_int_equal(write(fd, request, (size_t)n), n);
    size_t at = 0;
    ssize_t got;
    while (at + 1 < buf_bytes && (got = read(fd, buf + at, buf_bytes - 1 - at)) > 0) {
        at += (size_t)got;
    }
    buf[at] = '\0';
    close(fd);
    int status = 0;
    assert_int_equal(sscanf(buf, "HTTP/1.1 %d", &status), 1);
    return status;
}

static void test_http_pages_follow_the_server(void **state)
{
    (void)state;
    static char page[1 << 18];
    struct bench b;
    bench_init(&b);
    b.config.http = "127.0.0.1:0";
    bench_start(&b);
    const char *address = coordinator_http_address(b.coordinator);
    assert_int_equal(http_get(address, "GET", "/livez", page, sizeof page), 200);
    assert_int_equal(http_get(address, "GET", "/readyz", page, sizeof page), 503);
    assert_non_null(
        strstr(page, "{\"ready\":false,\"reasons\":[\"no worker group is attached\"]}"));
    struct fake_worker *worker = bench_worker(&b, NULL);
    assert_int_equal(http_get(address, "GET", "/readyz", page, sizeof page), 200);
    assert_non_null(strstr(page, "{\"ready\":true"));

    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 20);
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 20);
    assert_status_ok(stream_complete(channel, &request, &arena, &m));
    arena_destroy(&arena);
    rpc_channel_free(channel);
    assert_int_equal(http_get(address, "GET", "/metrics", page, sizeof page), 200);
    assert_non_null(strstr(page, "kvasir_generation_tokens_total{model_name=\"tiny\"} 20\n"));
    assert_non_null(strstr(page, "kvasir_prompt_tokens_total{model_name=\"tiny\"} 5\n"));
    assert_non_null(strstr(page, "finished_reason=\"length\"} 1\n"));
    assert_non_null(
        strstr(page, "kvasir_time_to_first_token_seconds_count{model_name=\"tiny\"} 1\n"));
    assert_non_null(
        strstr(page, "kvasir_inter_token_latency_seconds_count{model_name=\"tiny\"} 19\n"));
    assert_non_null(strstr(page, "kvasir_group_generation{model_name=\"tiny\",group=\"0\"} 1\n"));

    assert_int_equal(http_get(address, "GET", "/", page, sizeof page), 404);
    assert_int_equal(http_get(address, "POST", "/metrics", page, sizeof page), 405);
    coordinator_drain(b.coordinator);
    bench_wait_stopped(&b);
    assert_int_equal(http_get(address, "GET", "/readyz", page, sizeof page), 503);
    assert_non_null(strstr(page, "draining"));
    fake_worker_free(worker);
    bench_stop(&b);
}

static void test_http_explains_a_bad_address(void **state)
{
    (void)state;
    struct http_options options = {.address = "127.0.0.1"};
    struct http *http = NULL;
    assert_status_says(http_new(&options, &http), STATUS_INVALID_ARGUMENT,
                       "--http: 127.0.0.1 is not HOST:PORT or off");
    options.address = "127.0.0.1:0";
    assert_status_ok(http_new(&options, &http));
    struct http_options taken = {.address = http_address(http)};
    struct http *second = NULL;
    assert_status_says(http_new(&taken, &second), STATUS_UNAVAILABLE,
                       "cannot listen on 127.0.0.1:");
    http_free(http);
    http_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_pages_follow_the_server),
        cmocka_unit_test(test_http_explains_a_bad_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

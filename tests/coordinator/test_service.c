/*
 * Requests from a client's side, through a real server, to a fake worker and back.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/coordinator/stream.h"

static void expect_letters(const struct stream *s, uint64_t seed, uint32_t n)
{
    assert_int_equal(s->n_tokens, n);
    assert_int_equal(s->n_text, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(s->text[i], fake_token(seed, i));
    }
}

static void test_service_streams_a_completion(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct wire_generate_request request = stream_request("hello", 5, 100);
    struct stream s;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&s));
    assert_true(s.got_prompt && s.got_end);
    assert_int_equal(s.n_prompt_ids, 5);
    expect_letters(&s, 5, 100);
    assert_int_equal(s.reason, WIRE_FINISH_LENGTH);
    assert_int_equal(s.usage.prompt_tokens, 5);
    assert_int_equal(s.usage.completion_tokens, 100);
    assert_false(s.has_logprobs);
    assert_true(strlen(s.request_id) == 32); // one was made up
    stream_free(&s);
    bench_served_end(&f);
}

static void test_service_completes_whole(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct wire_generate_request request = stream_request("hello", 6, 50);
    request.request_id = "my-id";
    request.output.has_logprobs = true;
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 22);
    assert_status_ok(stream_complete(f.channel, &request, &arena, &m));
    assert_string_equal(m.request_id, "my-id");
    assert_int_equal(m.n_choices, 1);
    assert_int_equal(m.choices[0].n_tokens, 50);
    assert_true(m.choices[0].tokens[49].has_logprob);
    for (uint32_t i = 0; i < 50; i++) {
        assert_int_equal(m.choices[0].text[i], fake_token(6, i));
    }
    assert_int_equal(m.usage.completion_tokens, 50);
    arena_destroy(&arena);
    bench_served_end(&f);
}

static void test_service_stops_at_strings_and_tells_the_worker(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    const char *const stop[] = {"lo w"};
    struct wire_generate_request request = stream_request("hello world ", FAKE_ECHO, 1000);
    request.stopping.stop = stop;
    request.stopping.n_stop = 1;
    struct stream s;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&s));
    assert_string_equal(s.text, "hel");
    assert_string_equal(s.stop_text, "lo w");
    assert_int_equal(s.reason, WIRE_FINISH_STOP);
    assert_int_equal(s.n_tokens, 7);
    assert_int_equal(s.usage.completion_tokens, 7);
    fake_worker_wait_cancels(f.worker, 1);
    fake_worker_wait_active(f.worker, 0);
    stream_free(&s);
    bench_served_end(&f);
}

static void test_service_stops_at_eos_and_at_stop_tokens(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    const uint32_t ids[] = {'h', 'i', TINY_EOS, 'x'};
    struct wire_generate_request request = stream_request("", FAKE_ECHO, 6);
    request.prompt_kind = WIRE_PROMPT_TOKENS;
    request.prompt_token_ids = (struct wire_token_ids){ids, 4};
    struct stream s;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&s));
    assert_string_equal(s.text, "hi");
    assert_int_equal(s.reason, WIRE_FINISH_STOP);
    assert_int_equal(s.stop_token_id, TINY_EOS);
    assert_int_equal(s.n_tokens, 3); // with the stop token
    stream_free(&s);

    request.stopping.ignore_eos = true;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&s));
    assert_string_equal(s.text, "hixhi"); // <eos> is special and skipped
    assert_int_equal(s.reason, WIRE_FINISH_LENGTH);
    stream_free(&s);

    const uint32_t stop_ids[] = {'x'};
    request.stopping.stop_token_ids = (struct wire_token_ids){stop_ids, 1};
    request.stopping.include_stop_str_in_output = true;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&s));
    assert_string_equal(s.text, "hix");
    assert_int_equal(s.reason, WIRE_FINISH_STOP);
    stream_free(&s);
    bench_served_end(&f);
}

static void test_service_cancel_reaches_the_worker(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    const struct wire_generate_request request = stream_request("hello", 1, 2000);
    struct stream s;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    stream_wait_tokens(&s, 3);
    assert_int_equal(fake_worker_n_active(f.worker), 1);
    rpc_cancel(s.call);
    assert_status_code(stream_wait(&s), STATUS_CANCELLED);
    fake_worker_wait_cancels(f.worker, 1);
    fake_worker_wait_active(f.worker, 0);
    struct arena arena;
    struct wire_cluster_status status;
    arena_init(&arena, 1 << 20);
    bench_status(&f.bench, &arena, &status);
    assert_int_equal(status.requests_running, 0);
    assert_int_equal(status.requests_total, 1);
    arena_destroy(&arena);
    stream_free(&s);
    bench_served_end(&f);
}

static void test_service_deadline_ends_the_work(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.hold = true});
    const struct wire_generate_request request = stream_request("hello", 1, 2000);
    struct stream s;
    const uint64_t begin_ns = clock_now_ns(clock_system());
    stream_start(&s, f.channel, &request, NS_PER_S / 5);
    fake_worker_wait_submits(f.worker, 1);
    assert_status_code(stream_wait(&s), STATUS_DEADLINE_EXCEEDED);
    fake_worker_wait_cancels(f.worker, 1);
    fake_worker_wait_active(f.worker, 0);
    assert_true(clock_now_ns(clock_system()) - begin_ns < 3 * NS_PER_S);
    stream_free(&s);
    bench_served_end(&f);
}

static void test_service_refuses_a_live_request_id(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.hold = true});
    struct wire_generate_request request = stream_request("hello", 1, 10);
    request.request_id = "twin";
    struct stream first, second;
    stream_start(&first, f.channel, &request, RPC_NO_DEADLINE);
    fake_worker_wait_submits(f.worker, 1);
    stream_start(&second, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_says(stream_wait(&second), STATUS_ALREADY_EXISTS, "request_id: twin is live");
    stream_free(&second);
    stream_free(&first);
    fake_worker_wait_active(f.worker, 0);
    stream_start(&second, f.channel, &request, RPC_NO_DEADLINE); // the first is dead
    fake_worker_wait_submits(f.worker, 2);
    stream_free(&second);
    bench_served_end(&f);
}

static void test_service_refuses_when_the_queue_is_full(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    f.bench.config.max_num_seqs = 1; // four in flight
    f.bench.config.max_num_queued_reqs = 3;
    bench_served_begin(&f, &(struct fake_worker_options){.hold = true});
    const struct wire_generate_request request = stream_request("hello", 7, 10);
    struct stream live[7], refused;
    for (int i = 0; i < 7; i++) {
        const struct wire_generate_request own = stream_request("hello", (uint64_t)i, 10);
        stream_start(&live[i], f.channel, &own, RPC_NO_DEADLINE);
    }
    fake_worker_wait_submits(f.worker, 4);
    struct arena arena;
    struct wire_cluster_status status = {0};
    for (int tries = 0; status.requests_waiting < 3 && tries < 500; tries++) {
        arena_init(&arena, 1 << 20);
        bench_status(&f.bench, &arena, &status);
        arena_destroy(&arena);
        usleep(1000);
    }
    assert_int_equal(status.requests_waiting, 3);
    const uint64_t begin_ns = clock_now_ns(clock_system());
    stream_start(&refused, f.channel, &request, RPC_NO_DEADLINE);
    const status_t s = stream_wait(&refused);
    assert_true(clock_now_ns(clock_system()) - begin_ns < NS_PER_S);
    assert_status_says(s, STATUS_RESOURCE_EXHAUSTED, "waiting");
    assert_true(strtol(refused.retry_after, NULL, 10) >= 20);
    stream_free(&refused);
    assert_int_equal(fake_worker_n_submits(f.worker), 4);
    int runs = 0; // one that has left the queue
    while (!fake_worker_computes(f.worker, (uint64_t)runs)) {
        runs = (runs + 1) % 7;
    }
    stream_free(&live[runs]); // it leaves, and the next in the queue takes its place
    fake_worker_wait_submits(f.worker, 5);
    for (int i = 0; i < 7; i++) {
        if (i != runs) {
            stream_free(&live[i]);
        }
    }
    bench_served_end(&f);
}

static void test_service_names_bad_fields(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct wire_generate_request request = stream_request("hello", 1, 2044);
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 20);
    assert_status_says(stream_complete(f.channel, &request, &arena, &m), STATUS_INVALID_ARGUMENT,
                       "prompt of 5 tokens + stopping.max_tokens 2044 is over the context of 2048");
    request = stream_request("hello", 1, 10);
    request.sampling.temperature = -1;
    assert_status_says(stream_complete(f.channel, &request, &arena, &m), STATUS_INVALID_ARGUMENT,
                       "sampling.temperature: -1 is not in [0, 100]");
    request = stream_request("hello", 1, 10);
    request.model = "llama";
    assert_status_says(stream_complete(f.channel, &request, &arena, &m), STATUS_NOT_FOUND,
                       "tiny is");
    request = stream_request("hello", 1, 10);
    request.has_resume_from = true;
    assert_status_says(stream_complete(f.channel, &request, &arena, &m), STATUS_UNIMPLEMENTED,
                       "resume_from");
    const struct wire_chat_message message = {"user", "hi"};
    request = stream_request("", 1, 10);
    request.prompt_kind = WIRE_PROMPT_MESSAGES;
    request.messages = &message;
    request.n_messages = 1;
    assert_status_code(stream_complete(f.channel, &request, &arena, &m),
                       STATUS_FAILED_PRECONDITION); // a base model
    struct bytes garbage, response;
    bytes_init(&garbage, 16);
    bytes_init(&response, 1 << 20);
    assert_status_ok(bytes_append(&garbage, "\xff\xff\xff", 3));
    assert_status_code(
        rpc_unary(f.channel, "/kvasir.v1.Inference/Complete", &garbage, 5 * NS_PER_S, &response),
        STATUS_INVALID_ARGUMENT);
    assert_int_equal(fake_worker_n_submits(f.worker), 0);
    bytes_destroy(&garbage);
    bytes_destroy(&response);
    arena_destroy(&arena);
    bench_served_end(&f);
}

static void test_service_gives_several_samples(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct wire_generate_request request = stream_request("hello", 40, 30);
    request.sampling.n = 5;
    request.output.has_prompt_logprobs = true;
    request.output.echo = true;
    struct stream s;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&s));
    assert_true(s.got_prompt && s.got_end);
    assert_int_equal(s.n_prompt_logprobs, 5);
    assert_int_equal(s.usage.prompt_tokens, 5);
    assert_int_equal(s.usage.completion_tokens, 150);
    for (uint32_t i = 0; i < 5; i++) {
        assert_memory_equal(s.samples[i].text, "hello", 5);
        assert_int_equal(strlen(s.samples[i].text), 35);
        for (uint32_t t = 0; t < 30; t++) {
            assert_int_equal(s.samples[i].text[5 + t], fake_token(40 + i, t));
        }
    }
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 22);
    assert_status_ok(stream_complete(f.channel, &request, &arena, &m));
    assert_int_equal(m.n_choices, 5);
    assert_int_equal(m.n_prompt_logprobs, 5);
    assert_true(m.prompt_logprobs[4].logprob == -4.0F);
    for (uint32_t i = 0; i < 5; i++) {
        assert_string_equal(m.choices[i].text, s.samples[i].text);
        assert_int_equal(m.choices[i].finished.index, i);
    }
    struct wire_cluster_status status;
    bench_status(&f.bench, &arena, &status);
    assert_int_equal(status.requests_running, 0);
    arena_destroy(&arena);
    stream_free(&s);
    bench_served_end(&f);
}

/* One ends at its stop string, and only that one; cancelling the call ends the others. */
static void test_service_ends_samples_one_by_one(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    char stop[6] = "";
    for (uint32_t t = 0; t < 5; t++) {
        stop[t] = (char)fake_token(70 + 2, 10 + t);
    }
    const char *const stops[] = {stop};
    struct wire_generate_request request = stream_request("hello", 70, 2000);
    request.sampling.n = 3;
    request.stopping.stop = stops;
    request.stopping.n_stop = 1;
    struct stream s;
    stream_start(&s, f.channel, &request, RPC_NO_DEADLINE);
    fake_worker_wait_cancels(f.worker, 1);
    fake_worker_wait_active(f.worker, 2);
    stream_wait_tokens(&s, 100);
    assert_int_equal(s.n_ended, 1);
    assert_true(s.samples[2].ended);
    assert_int_equal(s.samples[2].n_tokens, 15);
    assert_int_equal(strlen(s.samples[2].text), 10);
    rpc_cancel(s.call);
    assert_status_code(stream_wait(&s), STATUS_CANCELLED);
    fake_worker_wait_cancels(f.worker, 3);
    fake_worker_wait_active(f.worker, 0);
    stream_free(&s);
    bench_served_end(&f);
}

static void test_service_refuses_what_the_kv_cache_cannot_hold(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.kv_blocks_per_lane = 4}); // 64 tokens
    struct wire_generate_request request = stream_request("hello", 1, 59);
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 20);
    assert_status_ok(stream_complete(f.channel, &request, &arena, &m));
    request = stream_request("hello", 1, 60);
    assert_status_says(stream_complete(f.channel, &request, &arena, &m), STATUS_INVALID_ARGUMENT,
                       "over the context of 64");
    arena_destroy(&arena);
    bench_served_end(&f);
}

static void test_service_serves_256_streams_at_once(void **state)
{
    (void)state;

    enum { N = 256, TOKENS = 40 };
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.step_ns = 2000000});
    struct stream *streams = calloc(N, sizeof *streams);
    assert_non_null(streams);
    for (uint64_t i = 0; i < N; i++) {
        const struct wire_generate_request request = stream_request("hello", 1000 + i, TOKENS);
        stream_start(&streams[i], f.channel, &request, RPC_NO_DEADLINE);
    }
    for (uint64_t i = 0; i < N; i++) {
        assert_status_ok(stream_wait(&streams[i]));
        expect_letters(&streams[i], 1000 + i, TOKENS);
        stream_free(&streams[i]);
    }
    free(streams);
    struct arena arena;
    struct wire_cluster_status status;
    arena_init(&arena, 1 << 20);
    bench_status(&f.bench, &arena, &status);
    assert_int_equal(status.requests_running, 0);
    assert_int_equal(status.requests_waiting, 0);
    assert_int_equal(status.generation_tokens_total, N * TOKENS);
    arena_destroy(&arena);
    bench_served_end(&f);
}

/* Streams cancelled at random moments, over and over: nothing stays behind. */
static void test_service_survives_cancels_at_any_moment(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct stream streams[16];
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < 16; i++) {
            const struct wire_generate_request request =
                stream_request("hello", (uint64_t)i, 1 + (uint32_t)test_random_below(30));
            stream_start(&streams[i], f.channel, &request,
                         test_random_below(4) == 0 ? NS_PER_MS * (1 + test_random_below(5))
                                                   : RPC_NO_DEADLINE);
        }
        usleep((useconds_t)test_random_below(4000));
        for (int i = 0; i < 16; i++) {
            stream_free(&streams[i]); // cancels what still runs
        }
    }
    fake_worker_wait_active(f.worker, 0);
    struct arena arena;
    struct wire_cluster_status status = {.requests_running = 1};
    for (int tries = 0; (status.requests_running > 0 || status.requests_waiting > 0) && tries < 500;
         tries++) {
        arena_init(&arena, 1 << 20);
        bench_status(&f.bench, &arena, &status);
        arena_destroy(&arena);
        usleep(1000);
    }
    assert_int_equal(status.requests_running, 0);
    assert_int_equal(status.requests_waiting, 0);
    bench_served_end(&f);
}

// ---- a client that asks and does not read: HTTP/2 by hand, with a window of 0 ----

static void put_frame(struct bytes *out, uint8_t type, uint8_t flags, uint8_t stream,
                      const void *payload, size_t size)
{
    const uint8_t head[9] = {
        (uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, type, flags, 0, 0, 0, stream};
    assert_status_ok(bytes_append(out, head, sizeof head));
    assert_status_ok(bytes_append(out, payload, size));
}

/* A header that is not indexed (RFC 7541, 6.2.2). */
static void put_header(struct bytes *out, const char *name, const char *value)
{
    const uint8_t literal[2] = {0, (uint8_t)strlen(name)};
    const uint8_t value_bytes = (uint8_t)strlen(value);
    assert_status_ok(bytes_append(out, literal, sizeof literal));
    assert_status_ok(bytes_append_str(out, name));
    assert_status_ok(bytes_append(out, &value_bytes, 1));
    assert_status_ok(bytes_append_str(out, value));
}

static void put_request(struct bytes *out, const struct wire_generate_request *request)
{
    struct bytes headers, message;
    bytes_init(&headers, 1000);
    bytes_init(&message, 10000);
    put_header(&headers, ":method", "POST");
    put_header(&headers, ":scheme", "http");
    put_header(&headers, ":path", "/kvasir.v1.Inference/Generate");
    put_header(&headers, ":authority", "test");
    put_header(&headers, "content-type", "application/grpc");
    put_header(&headers, "te", "trailers");
    assert_status_ok(bytes_append(&message, "\0\0\0\0\0", 5));
    assert_status_ok(wire_generate_request_pack(request, &message));
    assert_true(message.size < 256 + 5);
    message.data[4] = (uint8_t)(message.size - 5);

    static const uint8_t no_window[6] = {0, 4, 0, 0, 0, 0};
    assert_status_ok(bytes_append_str(out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    put_frame(out, 4, 0, 0, no_window, sizeof no_window);
    put_frame(out, 1, 4, 1, headers.data, headers.size);
    put_frame(out, 0, 1, 1, message.data, message.size);
    bytes_destroy(&headers);
    bytes_destroy(&message);
}

static int dial(const char *address)
{
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const struct sockaddr_in to = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)strtoul(strrchr(address, ':') + 1, NULL, 10)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static void test_service_ends_streams_that_nobody_reads(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    f.bench.config.max_unread_bytes = 20000;
    bench_served_begin(&f, NULL);
    const struct wire_generate_request request = stream_request("hello", 1, 2000);
    struct bytes bytes;
    bytes_init(&bytes, 10000);
    put_request(&bytes, &request);
    const int fd = dial(f.bench.address);
    assert_int_equal(write(fd, bytes.data, bytes.size), bytes.size);
    fake_worker_wait_submits(f.worker, 1);
    fake_worker_wait_cancels(f.worker, 1); // long before its 2,000 tokens
    fake_worker_wait_active(f.worker, 0);
    struct stream healthy;
    stream_start(&healthy, f.channel, &request, RPC_NO_DEADLINE);
    assert_status_ok(stream_wait(&healthy));
    assert_int_equal(healthy.n_tokens, 2000);
    assert_int_equal(fake_worker_n_cancels(f.worker), 1);
    stream_free(&healthy);
    close(fd);
    bytes_destroy(&bytes);
    bench_served_end(&f);
}

static void test_service_tokenizes_and_back(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct bytes request, response;
    struct arena arena;
    bytes_init(&request, 1 << 20);
    bytes_init(&response, 1 << 20);
    arena_init(&arena, 1 << 20);
    const struct wire_tokenize_request text = {
        .text = "a \xc3\xa4<eos>", .text_bytes = 9, .add_special_tokens = true};
    assert_status_ok(wire_tokenize_request_pack(&text, &request));
    assert_status_ok(
        rpc_unary(f.channel, "/kvasir.v1.Inference/Tokenize", &request, 5 * NS_PER_S, &response));
    struct wire_token_ids ids;
    assert_status_ok(wire_tokenize_response_unpack(response.data, response.size, &arena, &ids));
    assert_int_equal(ids.n, 9); // a special token written out is plain text
    assert_int_equal(ids.ids[2], 0xc3);

    bytes_clear(&request);
    bytes_clear(&response);
    const struct wire_detokenize_request back = {.token_ids = ids, .skip_special_tokens = true};
    assert_status_ok(wire_detokenize_request_pack(&back, &request));
    assert_status_ok(
        rpc_unary(f.channel, "/kvasir.v1.Inference/Detokenize", &request, 5 * NS_PER_S, &response));
    const char *decoded;
    assert_status_ok(
        wire_detokenize_response_unpack(response.data, response.size, &arena, &decoded));
    assert_string_equal(decoded, "a \xc3\xa4<eos>");

    const uint32_t bad = 5000;
    bytes_clear(&request);
    const struct wire_detokenize_request wrong = {.token_ids = {&bad, 1}};
    assert_status_ok(wire_detokenize_request_pack(&wrong, &request));
    assert_status_says(
        rpc_unary(f.channel, "/kvasir.v1.Inference/Detokenize", &request, 5 * NS_PER_S, &response),
        STATUS_INVALID_ARGUMENT, "token_ids[0]: 5000 is not below");
    bytes_destroy(&request);
    bytes_destroy(&response);
    arena_destroy(&arena);
    bench_served_end(&f);
}

static void test_service_describes_the_model_and_the_plan(void **state)
{
    (void)state;
    struct bench_served f;
    bench_init(&f.bench);
    bench_served_begin(&f, NULL);
    struct bytes request, response;
    struct arena arena;
    bytes_init(&request, 16);
    bytes_init(&response, 1 << 20);
    arena_init(&arena, 1 << 20);
    assert_status_ok(rpc_unary(f.channel, "/kvasir.v1.Inference/GetModelInfo", &request,
                               5 * NS_PER_S, &response));
    struct wire_model_info info;
    assert_status_ok(wire_model_info_unpack(response.data, response.size, &arena, &info));
    assert_string_equal(info.name, "tiny");
    assert_int_equal(info.context_length, TINY_CONTEXT);
    assert_int_equal(info.vocab_size, TINY_VOCAB);
    assert_int_equal(info.n_kv_heads, 2);
    assert_int_equal(info.kv_heads[0], 4);
    assert_int_equal(info.kv_heads[1], 2);
    assert_int_equal(info.eos_token_ids.n, 1);
    assert_int_equal(info.eos_token_ids.ids[0], TINY_EOS);

    bytes_clear(&response);
    assert_status_ok(
        rpc_unary(f.channel, "/kvasir.v1.Cluster/GetPlan", &request, 5 * NS_PER_S, &response));
    const char *json;
    assert_status_ok(wire_plan_response_unpack(response.data, response.size, &arena, &json));
    assert_non_null(strstr(json, "\"kv_replication_factor\""));

    assert_status_says(
        rpc_unary(f.channel, "/kvasir.v1.Batch/ListBatches", &request, 5 * NS_PER_S, &response),
        STATUS_UNIMPLEMENTED, "batch jobs");
    bytes_destroy(&request);
    bytes_destroy(&response);
    arena_destroy(&arena);
    bench_served_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_service_streams_a_completion),
        cmocka_unit_test(test_service_completes_whole),
        cmocka_unit_test(test_service_stops_at_strings_and_tells_the_worker),
        cmocka_unit_test(test_service_stops_at_eos_and_at_stop_tokens),
        cmocka_unit_test(test_service_cancel_reaches_the_worker),
        cmocka_unit_test(test_service_deadline_ends_the_work),
        cmocka_unit_test(test_service_refuses_a_live_request_id),
        cmocka_unit_test(test_service_refuses_when_the_queue_is_full),
        cmocka_unit_test(test_service_names_bad_fields),
        cmocka_unit_test(test_service_gives_several_samples),
        cmocka_unit_test(test_service_ends_samples_one_by_one),
        cmocka_unit_test(test_service_refuses_what_the_kv_cache_cannot_hold),
        cmocka_unit_test(test_service_serves_256_streams_at_once),
        cmocka_unit_test(test_service_survives_cancels_at_any_moment),
        cmocka_unit_test(test_service_ends_streams_that_nobody_reads),
        cmocka_unit_test(test_service_tokenizes_and_back),
        cmocka_unit_test(test_service_describes_the_model_and_the_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

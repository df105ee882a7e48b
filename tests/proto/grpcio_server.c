/*
 * A server for test_grpcio.py: methods of kvasir.v1 with answers that need no model.
 *
 * What:      Generate with the prompt "count N" streams N tokens and the end, "forever" one token and no end.
 *            Complete with "full" fails with a trailer; with another prompt it tells how the request was understood.
 *            GetStatus: requests_running = live streams, requests_total = cancelled, prompt_tokens_total = those
 *            whose deadline passed. Prints "listening ADDRESS"; SIGUSR1 turns the health of kvasir.v1.Inference
 *            over, SIGTERM drains for 5 s and ends.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "proto/rpc/rpc.h"
#include "proto/wire/cluster.h"
#include "proto/wire/inference.h"

#define MAX_BYTES (64u << 20)

struct counters {
    atomic_uint n_running, n_cancelled, n_deadline;
};

static void finish(struct rpc_call *call, status_t s)
{
    rpc_finish(call, &s, NULL, 0);
}

static void nothing_closed(struct rpc_call *call, const status_t *status)
{
    (void)call;
    (void)status;
}

// ---- Generate ----

static status_t send_token(struct rpc_call *call, uint32_t seq)
{
    static const char *const words[] = {"wind ", "caf\xc3\xa9 ", "\xe6\x97\xa5\xe6\x9c\xac ",
                                        "\xf0\x9f\x8c\x8a "};
    const struct wire_token_info info = {.id = seq * 7, .has_logprob = true, .logprob = -0.5f};
    struct wire_generate_response m = {.request_id = "r", .event = WIRE_EVENT_TOKEN};
    m.token.seq = seq;
    m.token.text = words[seq % 4];
    m.token.tokens = &info;
    m.token.n_tokens = 1;
    struct bytes out;
    bytes_init(&out, MAX_BYTES);
    status_t s = wire_generate_response_pack(&m, &out);
    if (status_is_ok(&s)) {
        s = rpc_send(call, out.data, out.size);
    }
    bytes_destroy(&out);
    return s;
}

static status_t send_finished(struct rpc_call *call, uint32_t n)
{
    const struct wire_generate_response m = {
        .request_id = "r",
        .event = WIRE_EVENT_FINISHED,
        .finished = {.reason = WIRE_FINISH_STOP, .stop_text = "END"},
        .has_usage = true,
        .usage = {.prompt_tokens = 2, .completion_tokens = n},
    };
    struct bytes out;
    bytes_init(&out, MAX_BYTES);
    status_t s = wire_generate_response_pack(&m, &out);
    if (status_is_ok(&s)) {
        s = rpc_send(call, out.data, out.size);
    }
    bytes_destroy(&out);
    return s;
}

static status_t generate(struct rpc_call *call, const struct wire_generate_request *m)
{
    if (strcmp(m->prompt, "forever") == 0) {
        return send_token(call, 0);
    }
    if (strncmp(m->prompt, "count ", 6) != 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "prompt: neither count N nor forever");
    }
    const uint32_t n = (uint32_t)strtoul(m->prompt + 6, NULL, 10);
    for (uint32_t i = 0; i < n; i++) {
        TRY(send_token(call, i));
    }
    TRY(send_finished(call, n));
    finish(call, status_ok());
    return status_ok();
}

static void generate_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct counters *counters = rpc_call_context(call);
    atomic_fetch_add(&counters->n_running, 1);
    rpc_call_set_user(call, counters);
    struct arena arena;
    arena_init(&arena, MAX_BYTES);
    struct wire_generate_request m;
    status_t s = wire_generate_request_unpack(data, size, &arena, &m);
    if (status_is_ok(&s)) {
        s = generate(call, &m);
    }
    if (!status_is_ok(&s)) {
        finish(call, s);
    }
    arena_destroy(&arena);
}

static void generate_closed(struct rpc_call *call, const status_t *status)
{
    struct counters *counters = rpc_call_user(call);
    if (counters == NULL) {
        return;
    }
    atomic_fetch_sub(&counters->n_running, 1);
    atomic_fetch_add(&counters->n_cancelled, status->code == STATUS_CANCELLED);
    atomic_fetch_add(&counters->n_deadline, status->code == STATUS_DEADLINE_EXCEEDED);
}

static const struct rpc_handlers generate_handlers = {
    .on_message = generate_message,
    .on_closed = generate_closed,
};

// ---- Complete ----

static status_t describe(const struct wire_generate_request *m, struct bytes *text)
{
    static const char *const kinds[] = {"none", "text", "tokens", "messages"};
    return bytes_printf(
        text,
        "prompt=%s:%zu temperature=%g top_p=%g n=%u max_tokens=%u seed=%s%llu "
        "skip_special_tokens=%d logprobs=%s%u stop=%zu priority=%d%c",
        kinds[m->prompt_kind], m->prompt_bytes + m->prompt_token_ids.n + m->n_messages,
        (double)m->sampling.temperature, (double)m->sampling.top_p, m->sampling.n,
        m->stopping.max_tokens,
        m->sampling.has_seed ? "" : "absent:", (unsigned long long)m->sampling.seed,
        m->output.skip_special_tokens, m->output.has_logprobs ? "" : "absent:", m->output.logprobs,
        m->stopping.n_stop, m->priority, '\0');
}

static status_t answer(const struct wire_generate_request *m, struct bytes *out)
{
    struct bytes text;
    bytes_init(&text, 4096);
    status_t s = describe(m, &text);
    if (status_is_ok(&s)) {
        const struct wire_choice choice = {
            .text = (const char *)text.data,
            .finished = {.reason = WIRE_FINISH_LENGTH},
        };
        const struct wire_complete_response response = {
            .request_id = m->request_id,
            .choices = &choice,
            .n_choices = 1,
            .usage = {.prompt_tokens = 1, .completion_tokens = 2},
        };
        s = wire_complete_response_pack(&response, out);
    }
    bytes_destroy(&text);
    return s;
}

static void complete_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct arena arena;
    struct bytes out;
    struct wire_generate_request m;
    arena_init(&arena, MAX_BYTES);
    bytes_init(&out, MAX_BYTES);
    status_t s = wire_generate_request_unpack(data, size, &arena, &m);
    if (status_is_ok(&s) && strcmp(m.prompt, "full") == 0) {
        const struct rpc_trailer trailer = {"retry-after-ms", "250"};
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "queue is full: 7 of 7 (caf\xc3\xa9)");
        rpc_finish(call, &s, &trailer, 1);
    } else if (status_is_ok(&s)) {
        s = answer(&m, &out);
        if (status_is_ok(&s)) {
            rpc_reply(call, &out);
        }
    }
    if (!status_is_ok(&s)) {
        finish(call, s);
    }
    bytes_destroy(&out);
    arena_destroy(&arena);
}

static const struct rpc_handlers complete_handlers = {
    .on_message = complete_message,
    .on_closed = nothing_closed,
};

// ---- GetStatus ----

static void status_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    (void)data;
    (void)size;
    struct counters *counters = rpc_call_context(call);
    const struct wire_cluster_status m = {
        .requests_running = atomic_load(&counters->n_running),
        .requests_total = atomic_load(&counters->n_cancelled),
        .prompt_tokens_total = atomic_load(&counters->n_deadline),
    };
    struct bytes out;
    bytes_init(&out, MAX_BYTES);
    const status_t s = wire_cluster_status_pack(&m, &out);
    if (status_is_ok(&s)) {
        rpc_reply(call, &out);
    } else {
        finish(call, s);
    }
    bytes_destroy(&out);
}

static const struct rpc_handlers status_handlers = {
    .on_message = status_message,
    .on_closed = nothing_closed,
};

// ---- the server ----

static status_t add_methods(struct rpc_server *server, struct counters *counters)
{
    const struct rpc_method methods[] = {
        {"/kvasir.v1.Inference/Generate", RPC_SERVER_STREAM, &generate_handlers, counters},
        {"/kvasir.v1.Inference/Complete", RPC_UNARY, &complete_handlers, counters},
        {"/kvasir.v1.Cluster/GetStatus", RPC_UNARY, &status_handlers, counters},
    };
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        TRY(rpc_server_add(server, &methods[i]));
    }
    const char *why = "batch jobs are not built yet";
    TRY(rpc_server_add_unimplemented(server, "/kvasir.v1.Batch/CreateBatch", RPC_CLIENT_STREAM,
                                     why));
    TRY(rpc_server_add_unimplemented(server, "/kvasir.v1.Batch/GetBatch", RPC_UNARY, why));
    TRY(rpc_server_add_health(server));
    TRY(rpc_server_add_reflection(server));
    rpc_server_set_health(server, "", true);
    rpc_server_set_health(server, "kvasir.v1.Inference", true);
    rpc_server_set_health(server, "kvasir.v1.Batch", false);
    return rpc_server_start(server);
}

static void wait_for_signals(struct rpc_server *server, const sigset_t *signals)
{
    bool serving = true;
    int signal = SIGUSR1;
    while (sigwait(signals, &signal) == 0 && signal == SIGUSR1) {
        serving = !serving;
        rpc_server_set_health(server, "kvasir.v1.Inference", serving);
    }
    rpc_server_drain(server, 5 * NS_PER_S);
}

int main(int argc, char **argv)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);

    const struct rpc_server_options options = {
        .address = argc > 1 ? argv[1] : "127.0.0.1:0",
        .log = {.fd = 2, .level = LOG_ERROR, .rank = -1, .module = "grpcio_server"},
    };
    struct counters counters = {0};
    struct rpc_server *server = NULL;
    status_t s = rpc_server_new(&options, &server);
    if (status_is_ok(&s)) {
        s = add_methods(server, &counters);
    }
    if (status_is_ok(&s)) {
        printf("listening %s\n", rpc_server_address(server));
        (void)fflush(stdout);
        wait_for_signals(server, &signals);
    } else {
        status_print(stderr, &s);
    }
    rpc_server_free(server);
    return status_exit_code(&s);
}

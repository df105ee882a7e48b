#include "tests/coordinator/stream.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/config.h"
#include "base/utf8.h"

#define WAIT_NS (20 * NS_PER_S)

/* Polls `done` under the mutex; the tests' waits are short and their machines busy. */
#define WAIT_UNTIL(mutex, done, what)                                   \
    do {                                                                \
        const uint64_t until_ = clock_now_ns(clock_system()) + WAIT_NS; \
        for (;;) {                                                      \
            pthread_mutex_lock(mutex);                                  \
            const bool done_ = (done);                                  \
            pthread_mutex_unlock(mutex);                                \
            if (done_) {                                                \
                break;                                                  \
            }                                                           \
            if (clock_now_ns(clock_system()) > until_) {                \
                fail_msg("waited in vain for %s", what);                \
            }                                                           \
            usleep(500);                                                \
        }                                                               \
    } while (0)

// ---- bench ----

void bench_init(struct bench *b)
{
    memset(b, 0, sizeof *b);
    pthread_mutex_init(&b->mutex, NULL);
    test_tmpdir(b->dir);
    tiny_model_write(b->dir);
    size_t n_rows;
    const struct config_row *rows = config_table_rows(&n_rows);
    struct config_set set;
    char name[] = "test";
    char *argv[] = {name, b->dir, NULL};
    assert_status_ok(config_load(&set, rows, n_rows, &b->config, 2, argv));
    assert_status_ok(config_table_check(&set, &b->config));
    config_destroy(&set);
    // Strings of the set are gone with it.
    b->config.listen = "127.0.0.1:0";
    b->config.http = "off";
    b->config.mpirun = "mpirun";
    b->config.served_model_name = "tiny";
    b->config.shutdown_timeout_s = 5;
}

static void on_ready(void *user)
{
    struct bench *b = user;
    pthread_mutex_lock(&b->mutex);
    b->n_ready++;
    pthread_mutex_unlock(&b->mutex);
}

static void on_stopped(void *user)
{
    struct bench *b = user;
    pthread_mutex_lock(&b->mutex);
    b->n_stopped++;
    pthread_mutex_unlock(&b->mutex);
}

void bench_start(struct bench *b)
{
    assert_status_ok(model_load(&b->config, &b->model));
    const char *level = getenv("KVASIR_TEST_LOG");
    log_t log = {.fd = level != NULL ? 2 : -1, .level = LOG_ERROR, .rank = -1, .module = "test"};
    if (level != NULL) {
        assert_status_ok(log_level_parse(level, &log.level));
    }
    const struct coordinator_options options = {.config = &b->config,
                                                .model = &b->model,
                                                .log = log,
                                                .on_ready = on_ready,
                                                .on_stopped = on_stopped,
                                                .user = b};
    assert_status_ok(coordinator_new(&options, &b->coordinator));
    b->address = coordinator_address(b->coordinator);
}

void bench_wait_ready(struct bench *b)
{
    WAIT_UNTIL(&b->mutex, b->n_ready > 0, "ready");
}

void bench_wait_stopped(struct bench *b)
{
    WAIT_UNTIL(&b->mutex, b->n_stopped > 0, "stopped");
}

void bench_stop(struct bench *b)
{
    coordinator_free(b->coordinator);
    model_destroy(&b->model);
    test_tmpdir_remove(b->dir);
    pthread_mutex_destroy(&b->mutex);
}

struct fake_worker *bench_worker(struct bench *b, const struct fake_worker_options *options)
{
    struct fake_worker_options with_address = {0};
    if (options != NULL) {
        with_address = *options;
    }
    with_address.address = b->address;
    struct fake_worker *worker = fake_worker_new(&with_address);
    bench_wait_ready(b);
    return worker;
}

void bench_status(struct bench *b, struct arena *arena, struct wire_cluster_status *out)
{
    struct rpc_channel *channel = stream_channel(b->address);
    struct bytes request, response;
    bytes_init(&request, 16);
    bytes_init(&response, 1 << 20);
    assert_status_ok(
        rpc_unary(channel, "/kvasir.v1.Cluster/GetStatus", &request, 5 * NS_PER_S, &response));
    assert_status_ok(wire_cluster_status_unpack(response.data, response.size, arena, out));
    bytes_destroy(&request);
    bytes_destroy(&response);
    rpc_channel_free(channel);
}

void bench_served_begin(struct bench_served *served, const struct fake_worker_options *worker)
{
    bench_start(&served->bench);
    served->worker = bench_worker(&served->bench, worker);
    served->channel = stream_channel(served->bench.address);
}

void bench_served_end(struct bench_served *served)
{
    rpc_channel_free(served->channel);
    coordinator_drain(served->bench.coordinator);
    bench_wait_stopped(&served->bench);
    assert_status_ok(coordinator_result(served->bench.coordinator));
    fake_worker_free(served->worker);
    bench_stop(&served->bench);
}

// ---- streams ----

static void keep_text(struct stream *s, uint32_t index, const char *text)
{
    const size_t size = strlen(text);
    if (!utf8_is_valid((const uint8_t *)text, size) || s->n_text + size >= sizeof s->text) {
        s->n_violations++;
        return;
    }
    struct stream_sample *sample = &s->samples[index];
    strncat(sample->text, text, sizeof sample->text - 1 - strlen(sample->text));
    if (index == 0) {
        memcpy(s->text + s->n_text, text, size + 1);
        s->n_text += size;
    }
}

static void take_token(struct stream *s, const struct wire_generate_response *m)
{
    const uint32_t index = m->token.index;
    if (!s->got_prompt || index >= s->n_samples || s->samples[index].ended ||
        m->token.seq != s->samples[index].n_tokens || m->token.n_tokens != 1) {
        s->n_violations++;
        return;
    }
    s->has_logprobs = m->token.tokens[0].has_logprob;
    if (index == 0 && m->token.seq < sizeof s->ids / sizeof s->ids[0]) {
        s->ids[m->token.seq] = m->token.tokens[0].id;
    }
    s->samples[index].n_tokens++;
    s->n_tokens++;
    keep_text(s, index, m->token.text);
}

static void take_end(struct stream *s, const struct wire_generate_response *m)
{
    const uint32_t index = m->finished.index;
    if (index >= s->n_samples || s->samples[index].ended) {
        s->n_violations++;
        return;
    }
    s->samples[index].ended = true;
    s->n_ended++;
    s->got_end = s->n_ended == s->n_samples;
    s->n_violations += s->got_end != m->has_usage ? 1 : 0;
    s->usage = m->usage;
    if (m->finished.text != NULL) {
        keep_text(s, index, m->finished.text);
    }
    if (index > 0) {
        return;
    }
    s->reason = m->finished.reason;
    s->has_stop_token_id = m->finished.has_stop_token_id;
    s->stop_token_id = m->finished.stop_token_id;
    if (m->finished.stop_text != NULL) {
        snprintf(s->stop_text, sizeof s->stop_text, "%s", m->finished.stop_text);
    }
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct stream *s = rpc_call_user(call);
    struct arena arena;
    struct wire_generate_response m;
    arena_init(&arena, 1 << 24);
    const status_t unpacked = wire_generate_response_unpack(data, size, &arena, &m);
    pthread_mutex_lock(&s->mutex);
    if (unpacked.code != STATUS_OK) {
        m.event = WIRE_EVENT_NONE;
    }
    if (m.event == WIRE_EVENT_PROMPT) {
        s->n_violations += s->got_prompt || s->n_tokens > 0 ? 1 : 0;
        s->got_prompt = true;
        s->n_prompt_ids = m.prompt.token_ids.n;
        s->n_prompt_logprobs = m.prompt.n_logprobs;
        snprintf(s->request_id, sizeof s->request_id, "%s", m.request_id);
    } else if (m.event == WIRE_EVENT_TOKEN) {
        take_token(s, &m);
    } else if (m.event == WIRE_EVENT_FINISHED) {
        take_end(s, &m);
    } else {
        s->n_violations++;
    }
    pthread_mutex_unlock(&s->mutex);
    arena_destroy(&arena);
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    struct stream *s = rpc_call_user(call);
    pthread_mutex_lock(&s->mutex);
    s->status = *status;
    if (!rpc_call_trailer(call, "retry-after-ms", s->retry_after, sizeof s->retry_after)) {
        s->retry_after[0] = '\0';
    }
    s->closed = true;
    pthread_mutex_unlock(&s->mutex);
}

static const struct rpc_handlers handlers = {.on_message = on_message, .on_closed = on_closed};

struct rpc_channel *stream_channel(const char *address)
{
    const struct rpc_channel_options options = {.log = {.fd = -1, .module = "test"}};
    struct rpc_channel *channel = NULL;
    assert_status_ok(rpc_channel_new(address, &options, &channel));
    return channel;
}

void stream_start(struct stream *s, struct rpc_channel *channel,
                  const struct wire_generate_request *request, uint64_t timeout_ns)
{
    memset(s, 0, sizeof *s);
    pthread_mutex_init(&s->mutex, NULL);
    s->channel = channel;
    s->n_samples = request->sampling.n;
    assert_true(s->n_samples <= STREAM_MAX_SAMPLES);
    struct bytes packed;
    bytes_init(&packed, 1 << 24);
    assert_status_ok(wire_generate_request_pack(request, &packed));
    const struct rpc_start_args args = {.path = "/kvasir.v1.Inference/Generate",
                                        .handlers = &handlers,
                                        .user = s,
                                        .timeout_ns = timeout_ns,
                                        .flags = 0};
    assert_status_ok(rpc_start(channel, &args, &s->call));
    const status_t sent = rpc_send(s->call, packed.data, packed.size);
    if (timeout_ns == RPC_NO_DEADLINE ||
        sent.code != STATUS_UNAVAILABLE) { // else it is over by now
        assert_status_ok(sent);
    }
    rpc_half_close(s->call);
    bytes_destroy(&packed);
}

void stream_wait_tokens(struct stream *s, uint32_t n)
{
    WAIT_UNTIL(&s->mutex, s->n_tokens >= n || s->closed, "tokens");
    pthread_mutex_lock(&s->mutex);
    const uint32_t now = s->n_tokens;
    pthread_mutex_unlock(&s->mutex);
    assert_true(now >= n);
}

status_t stream_wait(struct stream *s)
{
    WAIT_UNTIL(&s->mutex, s->closed, "the end of a stream");
    pthread_mutex_lock(&s->mutex);
    const status_t status = s->status;
    const size_t n_violations = s->n_violations;
    pthread_mutex_unlock(&s->mutex);
    assert_int_equal(n_violations, 0);
    return status;
}

void stream_free(struct stream *s)
{
    rpc_cancel(s->call);
    WAIT_UNTIL(&s->mutex, s->closed, "the end of a cancelled stream");
    rpc_call_release(s->call);
    pthread_mutex_destroy(&s->mutex);
}

struct wire_generate_request stream_request(const char *prompt, uint64_t seed, uint32_t max_tokens)
{
    struct wire_generate_request m;
    wire_generate_request_init(&m);
    m.prompt_kind = WIRE_PROMPT_TEXT;
    m.prompt = prompt;
    m.prompt_bytes = strlen(prompt);
    m.sampling.has_seed = true;
    m.sampling.seed = seed;
    m.stopping.max_tokens = max_tokens;
    return m;
}

status_t stream_complete(struct rpc_channel *channel, const struct wire_generate_request *request,
                         struct arena *arena, struct wire_complete_response *out)
{
    struct bytes packed, response;
    bytes_init(&packed, 1 << 24);
    bytes_init(&response, 1 << 24);
    assert_status_ok(wire_generate_request_pack(request, &packed));
    status_t s = rpc_unary(channel, "/kvasir.v1.Inference/Complete", &packed, WAIT_NS, &response);
    if (s.code == STATUS_OK) {
        s = wire_complete_response_unpack(response.data, response.size, arena, out);
    }
    bytes_destroy(&packed);
    bytes_destroy(&response);
    return s;
}

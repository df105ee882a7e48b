#include "ops/bench_driver.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mailbox.h"
#include "ops/bench_progress.h"
#include "proto/rpc/rpc.h"
#include "proto/wire/inference.h"

#define MAX_MESSAGE_BYTES (16u << 20)
#define MAX_MESSAGES      ((size_t)1 << 20)
#define STREAMS_A_CHANNEL 900 /* a server of ours takes 1024 on a connection */
#define MAX_CHANNELS      64
#define DEFAULT_RETRY_NS  (100 * NS_PER_MS)
#define MAX_RETRY_MS      60000

/* One message, from a poller; or the end of a stream, which is a part of it: that one is never lost. */
struct event {
    uint64_t at_ns;
    struct stream *stream;
    const uint8_t *data; /* behind the event; NULL: the end */
    size_t size;
};

/* owner: main, but for driver, which never changes, and end, which is a poller's until it is posted. */
struct stream {
    struct driver *driver;

    struct {
        struct event event;
        status_t status;
        uint64_t retry_ns; /* when the server wants to be asked again */
        bool told;         /* it said so */
    } end;
    struct rpc_call *call; /* NULL: not under way */
    size_t index;
    uint64_t due_ns;
    double *gaps_s; /* [n_gaps]: kept until it is known to have succeeded */
    size_t n_gaps, gaps_capacity;
    status_t ours;     /* why this side gave it up */
    bool finished;     /* the message that says so came */
    int64_t cancel_at; /* tokens; -1: never */
};

struct driver {
    const struct bench_driver_options *options;
    const struct bench_workload *workload;
    struct bench_record *record;
    struct rpc_channel *channels[MAX_CHANNELS];
    size_t n_channels;
    struct mailbox
        mailbox; /* of struct event, posted by pollers: room for MAX_MESSAGES and each stream's end */
    atomic_size_t n_messages; /* in the mailbox, ends not counted */
    struct arena arena;       /* of the message being read */
    struct bytes message;     /* being packed */
    struct stream *streams;   /* [n] */
    size_t *retries;          /* [n_waiting]: streams that wait to be sent again */
    size_t n_waiting;
    size_t n_sent, n_done, n_failed, n_running;
};

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

// ---- pollers ----

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    const uint64_t at_ns = now_ns();
    struct stream *stream = rpc_call_user(call);
    struct driver *d = stream->driver;
    struct event *event = malloc(sizeof *event + size);
    // A million messages behind: the request fails rather than lose one.
    if (event == NULL || atomic_fetch_add(&d->n_messages, 1) >= MAX_MESSAGES) {
        free(event);
        rpc_cancel(call);
        return;
    }
    uint8_t *const copy = (uint8_t *)(event + 1);
    *event = (struct event){.at_ns = at_ns, .stream = stream, .data = copy, .size = size};
    if (size > 0) {
        memcpy(copy, data, size);
    }
    const status_t s = mailbox_post(&d->mailbox, event);
    if (s.code != STATUS_OK) { // closed: the run is over
        free(event);
    }
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    struct stream *stream = rpc_call_user(call);
    char text[32];
    stream->end.event = (struct event){.at_ns = now_ns(), .stream = stream};
    stream->end.status = *status;
    stream->end.retry_ns = DEFAULT_RETRY_NS;
    stream->end.told = rpc_call_trailer(call, "retry-after-ms", text, sizeof text);
    if (stream->end.told) {
        const uint64_t wanted_ms = strtoull(text, NULL, 10);
        stream->end.retry_ns =
            wanted_ms < MAX_RETRY_MS ? wanted_ms * NS_PER_MS : MAX_RETRY_MS * NS_PER_MS;
    }
    const status_t s = mailbox_post(&stream->driver->mailbox, &stream->end.event);
    (void)s; // refused only when the run is over
}

static const struct rpc_handlers handlers = {.on_message = on_message, .on_closed = on_closed};

// ---- sending ----

static void fill_request(const struct driver *d, size_t index, struct wire_generate_request *m)
{
    const struct bench_prompt *prompt = &d->workload->prompts[index];
    wire_generate_request_init(m);
    m->request_id = "";
    m->model = d->options->model_name != NULL ? d->options->model_name : "";
    if (prompt->text != NULL) {
        m->prompt_kind = WIRE_PROMPT_TEXT;
        m->prompt = prompt->text;
        m->prompt_bytes = prompt->n;
    } else {
        m->prompt_kind = WIRE_PROMPT_TOKENS;
        m->prompt_token_ids = (struct wire_token_ids){.ids = prompt->ids, .n = prompt->n};
    }
    m->sampling.n = d->options->n;
    m->sampling.beam_width = d->options->beam_width;
    m->sampling.temperature = (float)d->options->temperature;
    m->sampling.has_seed = d->options->beam_width == 0;
    m->sampling.seed = d->options->seed + index;
    m->stopping.max_tokens = prompt->output_len;
    m->stopping.ignore_eos = d->options->ignore_eos;
}

static status_t send(struct driver *d, struct stream *stream)
{
    struct wire_generate_request request;
    fill_request(d, stream->index, &request);
    bytes_clear(&d->message);
    TRY(wire_generate_request_pack(&request, &d->message));
    const struct rpc_start_args start = {.path = "/kvasir.v1.Inference/Generate",
                                         .handlers = &handlers,
                                         .user = stream,
                                         .timeout_ns = d->options->timeout_ns};
    TRY(rpc_start(d->channels[stream->index % d->n_channels], &start, &stream->call));
    const status_t s = rpc_send(stream->call, d->message.data, d->message.size);
    if (s.code == STATUS_OK) {
        rpc_half_close(stream->call);
    }
    if (s.code != STATUS_OK || stream->cancel_at == 0) { // on_closed says why
        rpc_cancel(stream->call);
    }
    return status_ok();
}

/* Evenly spread over 0 to cancel_after, the same for an index. */
static int64_t cancel_at(const struct driver *d, size_t index)
{
    const uint64_t mixed = (index + 1) * UINT64_C(0x9e3779b97f4a7c15);
    return d->options->cancel_after < 0
               ? -1
               : (int64_t)((mixed >> 33) % ((uint64_t)d->options->cancel_after + 1));
}

static void note_start(struct driver *d, struct stream *stream)
{
    struct bench_request *request = &d->record->requests[stream->index];
    const uint64_t now = now_ns();
    if (request->start_ns == 0) {
        request->start_ns = now;
    }
    stream->ours = status_ok();
    stream->finished = false;
    stream->cancel_at = cancel_at(d, stream->index);
    stream->n_gaps = 0;
    request->first_ns = 0;
    request->output_tokens = 0;
    d->n_running++;
    if (d->n_running > d->record->max_concurrent) {
        d->record->max_concurrent = (uint32_t)d->n_running;
    }
}

static bool has_room(const struct driver *d)
{
    return d->options->max_concurrency == 0 || d->n_running < d->options->max_concurrency;
}

/* Index into retries of the one that is due first; n_waiting: there is none. */
static size_t first_retry(const struct driver *d)
{
    size_t first = 0;
    for (size_t i = 1; i < d->n_waiting; i++) {
        if (d->streams[d->retries[i]].due_ns < d->streams[d->retries[first]].due_ns) {
            first = i;
        }
    }
    return first;
}

/* Takes the stream that is due, or NULL and how long until there is one (UINT64_MAX: not before something ends). */
static struct stream *take_due(struct driver *d, uint64_t *wait_ns_out)
{
    *wait_ns_out = UINT64_MAX;
    if (!has_room(d)) {
        return NULL;
    }
    const uint64_t now = now_ns();
    if (d->n_waiting > 0) {
        const size_t at = first_retry(d);
        struct stream *stream = &d->streams[d->retries[at]];
        if (stream->due_ns <= now) {
            d->retries[at] = d->retries[--d->n_waiting];
            return stream;
        }
        *wait_ns_out = stream->due_ns - now;
    }
    if (d->n_sent < d->workload->n) {
        struct stream *stream = &d->streams[d->n_sent];
        if (stream->due_ns <= now) {
            d->n_sent++;
            return stream;
        }
        const uint64_t wait = stream->due_ns - now;
        *wait_ns_out = wait < *wait_ns_out ? wait : *wait_ns_out;
    }
    return NULL;
}

static status_t send_due(struct driver *d, uint64_t *wait_ns_out)
{
    for (struct stream *stream; (stream = take_due(d, wait_ns_out)) != NULL;) {
        note_start(d, stream);
        TRY(send(d, stream));
    }
    return status_ok();
}

// ---- receiving ----

static status_t add_gap(struct stream *stream, double gap_s)
{
    if (stream->n_gaps == stream->gaps_capacity) {
        const size_t capacity = stream->gaps_capacity > 0 ? 2 * stream->gaps_capacity : 64;
        double *gaps = realloc(stream->gaps_s, capacity * sizeof *gaps);
        if (gaps == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu latencies",
                                 capacity);
        }
        stream->gaps_s = gaps;
        stream->gaps_capacity = capacity;
    }
    stream->gaps_s[stream->n_gaps++] = gap_s;
    return status_ok();
}

static status_t count_second(struct bench_record *record, uint64_t at_ns, size_t n_tokens)
{
    const size_t second = (size_t)((at_ns - record->begin_ns) / NS_PER_S);
    if (second >= record->n_seconds) {
        uint64_t *tokens = realloc(record->second_tokens, (second + 1) * sizeof *tokens);
        if (tokens == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu seconds", second);
        }
        memset(tokens + record->n_seconds, 0, (second + 1 - record->n_seconds) * sizeof *tokens);
        record->second_tokens = tokens;
        record->n_seconds = second + 1;
    }
    record->second_tokens[second] += n_tokens;
    return status_ok();
}

static status_t read_token(struct driver *d, struct stream *stream, uint64_t at_ns, size_t n_tokens)
{
    struct bench_request *request = &d->record->requests[stream->index];
    if (n_tokens == 0) {
        return status_ok(); // text that had been held back
    }
    if (request->first_ns == 0) {
        request->first_ns = at_ns;
    } else {
        TRY(add_gap(stream, (double)(at_ns - request->last_ns) * 1e-9));
    }
    request->last_ns = at_ns;
    request->output_tokens += (uint32_t)n_tokens;
    if (stream->cancel_at == (int64_t)request->output_tokens) {
        rpc_cancel(stream->call);
    }
    return count_second(d->record, at_ns, n_tokens);
}

static status_t read_message(struct driver *d, struct stream *stream, const struct event *event)
{
    struct wire_generate_response response;
    arena_reset(&d->arena);
    TRY(wire_generate_response_unpack(event->data, event->size, &d->arena, &response));
    struct bench_request *request = &d->record->requests[stream->index];
    if (response.has_usage) {
        request->input_tokens = response.usage.prompt_tokens;
        request->cached_tokens = response.usage.cached_tokens;
        if (response.usage.completion_tokens != request->output_tokens) {
            return status_errorf(STATUS_DATA_LOSS, "%u tokens came, the server counts %u",
                                 request->output_tokens, response.usage.completion_tokens);
        }
    }
    if (response.event == WIRE_EVENT_FINISHED) {
        stream->finished = true;
        const int reason = response.finished.reason;
        return reason == WIRE_FINISH_STOP || reason == WIRE_FINISH_LENGTH
                   ? status_ok()
                   : status_errorf(STATUS_ABORTED, "finished with reason %s",
                                   wire_finish_reason_name(reason));
    }
    return response.event == WIRE_EVENT_TOKEN
               ? read_token(d, stream, event->at_ns, response.token.n_tokens)
               : status_ok();
}

/* A stream that ends well has said so and has given what was asked for. */
static status_t verdict(const struct driver *d, const struct stream *stream, status_t theirs)
{
    if (stream->ours.code != STATUS_OK) {
        return stream->ours;
    }
    if (theirs.code != STATUS_OK) {
        return theirs;
    }
    const uint32_t got = d->record->requests[stream->index].output_tokens;
    const uint32_t wanted = d->options->n * d->workload->prompts[stream->index].output_len;
    if (!stream->finished || got == 0 || (d->options->ignore_eos && got != wanted)) {
        return status_errorf(STATUS_DATA_LOSS, "the stream ended after %u of %u tokens", got,
                             wanted);
    }
    return status_ok();
}

static status_t keep_gaps(struct bench_record *record, const struct stream *stream)
{
    const size_t n = record->n_gaps + stream->n_gaps;
    if (n > record->gaps_capacity) {
        const size_t capacity = 2 * n;
        double *gaps = realloc(record->gaps_s, capacity * sizeof *gaps);
        if (gaps == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu latencies", n);
        }
        record->gaps_s = gaps;
        record->gaps_capacity = capacity;
    }
    if (stream->n_gaps > 0) {
        memcpy(record->gaps_s + record->n_gaps, stream->gaps_s,
               stream->n_gaps * sizeof *stream->gaps_s);
    }
    record->n_gaps = n;
    return status_ok();
}

static status_t end_stream(struct driver *d, struct stream *stream)
{
    struct bench_request *request = &d->record->requests[stream->index];
    rpc_call_release(stream->call);
    stream->call = NULL;
    d->n_running--;
    request->end_ns = stream->end.event.at_ns;
    request->told_to_retry = stream->end.told;
    request->cancelled = stream->cancel_at >= 0 && stream->ours.code == STATUS_OK &&
                         stream->end.status.code == STATUS_CANCELLED;
    request->status = verdict(d, stream, stream->end.status);
    if (request->status.code == STATUS_RESOURCE_EXHAUSTED && d->options->retry) {
        request->n_retries++;
        d->record->n_retries++;
        stream->due_ns = request->end_ns + stream->end.retry_ns;
        d->retries[d->n_waiting++] = stream->index;
        return status_ok();
    }
    d->n_done++;
    d->n_failed += request->status.code != STATUS_OK && !request->cancelled;
    const status_t s =
        request->status.code == STATUS_OK ? keep_gaps(d->record, stream) : status_ok();
    free(stream->gaps_s);
    stream->gaps_s = NULL;
    stream->gaps_capacity = 0;
    return s;
}

static status_t take_event(struct driver *d, struct event *event)
{
    struct stream *stream = event->stream;
    if (event->data == NULL) {
        return end_stream(d, stream);
    }
    if (stream->ours.code == STATUS_OK) {
        stream->ours = read_message(d, stream, event);
        if (stream->ours.code != STATUS_OK) {
            rpc_cancel(stream->call);
        }
    }
    atomic_fetch_sub(&d->n_messages, 1);
    free(event);
    return status_ok();
}

static status_t drive(struct driver *d)
{
    struct bench_progress progress;
    bench_progress_init(&progress, d->options->progress, d->workload->n);
    while (d->n_done < d->workload->n) {
        uint64_t wait_ns;
        TRY(send_due(d, &wait_ns));
        struct event *event = mailbox_take(&d->mailbox, wait_ns);
        for (; event != NULL; event = mailbox_take(&d->mailbox, 0)) {
            TRY(take_event(d, event));
        }
        bench_progress_show(&progress, d->n_done, d->n_failed);
    }
    bench_progress_end(&progress, d->n_done);
    return status_ok();
}

// ---- the run ----

static status_t open_channels(struct driver *d)
{
    const size_t most =
        d->options->max_concurrency > 0 && d->options->max_concurrency < d->workload->n
            ? d->options->max_concurrency
            : d->workload->n;
    const size_t n = (most + STREAMS_A_CHANNEL - 1) / STREAMS_A_CHANNEL;
    const struct rpc_channel_options options = {.log = {.fd = -1}};
    for (; d->n_channels < n && d->n_channels < MAX_CHANNELS; d->n_channels++) {
        TRY(rpc_channel_new(d->options->address, &options, &d->channels[d->n_channels]));
    }
    return status_ok();
}

static status_t alloc_arrays(struct driver *d)
{
    const size_t n = d->workload->n;
    d->record->n = n;
    d->record->requests = calloc(n, sizeof *d->record->requests);
    d->streams = calloc(n, sizeof *d->streams);
    d->retries = calloc(n, sizeof *d->retries);
    if (d->record->requests == NULL || d->streams == NULL || d->retries == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu requests", n);
    }
    return status_ok();
}

static void set_due(struct driver *d)
{
    d->record->begin_ns = now_ns();
    for (size_t i = 0; i < d->workload->n; i++) {
        const double arrival_ns = d->workload->prompts[i].arrival_s * 1e9;
        d->streams[i] = (struct stream){
            .driver = d, .index = i, .due_ns = d->record->begin_ns + (uint64_t)arrival_ns};
        d->record->requests[i].due_ns = d->streams[i].due_ns;
    }
}

/* Calls end with their channel; what they still say is thrown away. */
static void destroy(struct driver *d)
{
    mailbox_close(&d->mailbox);
    for (size_t i = 0; d->streams != NULL && i < d->workload->n; i++) {
        if (d->streams[i].call != NULL) {
            rpc_call_release(d->streams[i].call);
        }
        free(d->streams[i].gaps_s);
    }
    for (size_t i = 0; i < d->n_channels; i++) {
        rpc_channel_free(d->channels[i]);
    }
    for (struct event *event; (event = mailbox_take(&d->mailbox, 0)) != NULL;) {
        if (event->data != NULL) {
            free(event);
        }
    }
    mailbox_destroy(&d->mailbox);
    bytes_destroy(&d->message);
    arena_destroy(&d->arena);
    free(d->streams);
    free(d->retries);
}

status_t bench_driver_run(const struct bench_driver_options *options,
                          const struct bench_workload *workload, struct bench_record *record_out)
{
    struct bench_record record = {0};
    struct driver d = {.options = options, .workload = workload, .record = &record};
    bytes_init(&d.message, MAX_MESSAGE_BYTES);
    arena_init(&d.arena, 4 * (size_t)MAX_MESSAGE_BYTES);
    status_t s;
    TRY_GOTO(s, mailbox_init(&d.mailbox, MAX_MESSAGES + workload->n), undo_buffers);
    TRY_GOTO(s, alloc_arrays(&d), undo);
    TRY_GOTO(s, open_channels(&d), undo);
    set_due(&d);
    TRY_GOTO(s, drive(&d), undo);
    record.end_ns = now_ns();
    destroy(&d);
    *record_out = record;
    return status_ok();

undo:
    destroy(&d);
    bench_record_destroy(&record);
    return s;
undo_buffers:
    bytes_destroy(&d.message);
    arena_destroy(&d.arena);
    return s;
}

void bench_record_destroy(struct bench_record *record)
{
    free(record->requests);
    free(record->gaps_s);
    free(record->second_tokens);
    *record = (struct bench_record){0};
}

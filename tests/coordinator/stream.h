/*
 * stream.h - one Generate call as a client sees it, and a coordinator to call
 *
 * What:      a stream remembers what it was told and checks what must always hold: seq is 0, 1, 2, ... in each sample, the
 *            prompt comes first, nothing follows the end, which has the usage, text is valid UTF-8. ids, text, reason and
 *            what stopped it are those of the first sample.
 * Thread:    the test's main thread; callbacks write under the stream's mutex.
 */
#pragma once

#include <pthread.h>

#include "coordinator/config_table.h"
#include "coordinator/coordinator.h"
#include "coordinator/model.h"
#include "proto/rpc/rpc.h"
#include "proto/wire/cluster.h"
#include "proto/wire/inference.h"
#include "tests/coordinator/fake_worker.h"
#include "tests/coordinator/tiny_model.h"
#include "tests/support/test.h"

// ---- a coordinator of a tiny model on any port ----

struct bench {
    char dir[TEST_PATH_BYTES];
    struct coordinator_config config;
    struct model model;
    struct coordinator *coordinator;
    const char *address;
    pthread_mutex_t mutex;
    int n_ready, n_stopped;
};

/* Fills the settings with the table's defaults and a tiny model; change them, then start. */
void bench_init(struct bench *b);
void bench_start(struct bench *b);
void bench_wait_ready(struct bench *b);
void bench_wait_stopped(struct bench *b);
void bench_stop(struct bench *b); /* frees everything, start or not */

/* A worker attached to the bench's coordinator, which has become ready. */
struct fake_worker *bench_worker(struct bench *b, const struct fake_worker_options *options);

void bench_status(struct bench *b, struct arena *arena, struct wire_cluster_status *out);

/* A bench with one worker, ready, and a channel to it: bench_init(&served.bench) comes first. */
struct bench_served {
    struct bench bench;
    struct fake_worker *worker;
    struct rpc_channel *channel;
};

void bench_served_begin(struct bench_served *served, const struct fake_worker_options *worker);
void bench_served_end(struct bench_served *served);

// ---- calls ----

#define STREAM_MAX_SAMPLES 8

/* Of one of several samples. */
struct stream_sample {
    uint32_t n_tokens;
    bool ended;
    char text[256]; /* its beginning */
};

struct stream {
    struct rpc_channel *channel; /* borrowed */
    struct rpc_call *call;
    pthread_mutex_t mutex; /* all below */
    uint32_t n_samples, n_ended;
    struct stream_sample samples[STREAM_MAX_SAMPLES];
    size_t n_prompt_ids, n_prompt_logprobs, n_text, n_violations;
    uint32_t n_tokens, stop_token_id;
    int reason;
    struct wire_usage usage;
    status_t status;
    uint32_t ids[4096];
    bool got_prompt, got_end, closed, has_logprobs, has_stop_token_id;
    char text[65536], stop_text[300], request_id[200], retry_after[32];
};

struct rpc_channel *stream_channel(const char *address);

/* timeout_ns RPC_NO_DEADLINE: none. */
void stream_start(struct stream *s, struct rpc_channel *channel,
                  const struct wire_generate_request *request, uint64_t timeout_ns);
void stream_wait_tokens(struct stream *s, uint32_t n);

/* Waits at most 20 s for the end; checks that nothing was violated. */
status_t stream_wait(struct stream *s);
void stream_free(struct stream *s); /* destroys its content */

/* A request for a text prompt with everything at its default but these. */
struct wire_generate_request stream_request(const char *prompt, uint64_t seed, uint32_t max_tokens);

/* Complete, blocking. */
status_t stream_complete(struct rpc_channel *channel, const struct wire_generate_request *request,
                         struct arena *arena, struct wire_complete_response *out);

/*
 * bench_driver.h - sends a workload to a server and writes down what came back, and when
 *
 * What:      all streams run at once from two threads: gRPC's poller stamps each message as it arrives and hands it over
 *            through a mailbox; the caller's thread sends what is due and reads the messages. More than 900 streams get
 *            more connections, each with a poller of its own.
 * Units:     nanoseconds of CLOCK_MONOTONIC. Gaps between the messages of a stream are seconds.
 * Ownership: the record owns its arrays.
 * Thread:    owner:main
 * Errors:    a request that fails is written down and the run goes on; bench_driver_run itself fails when the driver cannot work.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "ops/bench_workload.h"

struct bench_driver_options {
    const char *address;
    const char *model_name;   /* "": the server's */
    uint32_t max_concurrency; /* 0: no bound */
    double temperature;
    uint64_t seed;       /* of sampling */
    uint32_t n;          /* samples of each request */
    uint32_t beam_width; /* 0: they are sampled */
    uint64_t timeout_ns; /* of a request; RPC_NO_DEADLINE */
    bool ignore_eos;
    int64_t
        cancel_after; /* tokens: each request is cancelled after some number up to that; -1: none is */
    bool retry;       /* RESOURCE_EXHAUSTED: again when the server says, not a failure */
    const char *progress; /* title of the progress on stderr; NULL: none */
};

struct bench_request {
    uint64_t due_ns, start_ns;  /* start: of the first attempt */
    uint64_t first_ns, last_ns; /* tokens; 0: none came */
    uint64_t end_ns;
    uint32_t input_tokens, cached_tokens, output_tokens;
    uint32_t n_retries;
    bool cancelled;     /* by this side, as wanted: its status is no failure */
    bool told_to_retry; /* refused at last, and told when to come back */
    status_t status;
};

struct bench_record {
    struct bench_request *requests; /* [n] */
    size_t n;
    double
        *gaps_s; /* [n_gaps]: inter-token latencies of the requests that succeeded, in no order */
    size_t n_gaps, gaps_capacity;
    uint64_t *second_tokens; /* [n_seconds]: tokens that arrived in each second of the run */
    size_t n_seconds;
    uint64_t begin_ns, end_ns;
    uint32_t max_concurrent;
    uint64_t n_retries;
};

MUST_USE status_t bench_driver_run(const struct bench_driver_options *options,
                                   const struct bench_workload *workload,
                                   struct bench_record *record_out);
void bench_record_destroy(struct bench_record *record); /* accepts a zeroed one */

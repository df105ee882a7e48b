/*
 * bench_speed.h - how fast prompts and decoding are, by the engine alone
 *
 * What:      for each batch fills the caches of so many sequences with random tokens, in steps of up to
 *            --max-num-batched-tokens, then decodes --generate tokens of each, greedily, all at once. One round with the
 *            largest batch comes before and is not counted: it brings in code, and a device chooses algorithms.
 *            No scheduler, no gRPC: what the engine and the device can do.
 * Units:     seconds. A decode step is everything from the end of one step to the end of the next; --steps-ahead are submitted
 *            while one is computed.
 * Thread:    owner:the rank's main thread.
 * Collective: yes. Rank 0 hands out a result for each batch.
 */
#pragma once

#include "worker/bench_floor.h"
#include "worker/bench_session.h"

struct bench_speed_result {
    int32_t n_ranks, batch, prompt, generate;
    double prefill_s, decode_s, median_step_s, p99_step_s;
    double gap_share; /* of the time of decoding in which no step was under way on rank 0 */
    double peak_bytes, weight_bytes,
        kv_bytes;                     /* the most of a rank: memory, of it weights and KV pools */
    struct bench_floor floor;         /* sum over ranks; zeroed: not measured */
    const struct bench_trace_op *ops; /* of rank 0's decode steps; NULL: not traced */
    int32_t n_ops;
};

typedef void (*bench_speed_report_fn)(void *user, const struct bench_session *session,
                                      const struct bench_speed_result *result);

MUST_USE status_t bench_speed_run(const struct bench_session_request *request,
                                  bench_speed_report_fn report, void *user);

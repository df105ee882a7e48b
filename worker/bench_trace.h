/*
 * bench_trace.h - how long each op of a step takes, and what it has to move and compute
 *
 * What:      a backend table around another one: every op that is given a stream is timed and counted. Matmuls count by
 *            the shape of their matrix. Where the device is not the host each op is waited for, so that its time is
 *            its own: small ones then look slower than they are in a step that is queued or recorded, and steps are
 *            not recorded as graphs. Collectives are not ops: they are in what is left of a step.
 * Units:     bytes and flops are those that cannot be avoided: each operand once.
 * Ownership: the trace owns its table and counters; streams it wraps are freed by the table's stream_free.
 * Thread:    owner:the rank's main thread.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"

struct bench_trace;

struct bench_trace_op {
    char name[48]; /* "attention", "matmul 14336x4096" */
    uint64_t n_calls, ns;
    double bytes, flops;
};

/* inner is static, as all tables are. */
MUST_USE status_t bench_trace_new(const struct backend *inner, struct bench_trace **trace_out);
void bench_trace_free(struct bench_trace *trace); /* accepts NULL; after the engine that uses it */

const struct backend *bench_trace_backend(const struct bench_trace *trace);

/* The stream to give to that table's ops in the place of one of inner's, which it owns. NULL for memory: that one is freed. */
struct backend_stream *bench_trace_wrap(struct bench_trace *trace, struct backend_stream *stream);

void bench_trace_reset(struct bench_trace *trace);

/* Those that were called since; borrowed until the next op. */
const struct bench_trace_op *bench_trace_ops(const struct bench_trace *trace, int32_t *n_out);

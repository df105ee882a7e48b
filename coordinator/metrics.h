/*
 * metrics.h - what /metrics shows
 *
 * What:      counters, gauges and histograms with vLLM's stems under the prefix kvasir_, and our own. One table in
 *            metrics.c gives each its name, type and help.
 * Units:     times are kept in nanoseconds and shown in seconds.
 * Ownership: the struct is its owner's; names given to init are borrowed.
 * Thread:    add, set and observe: any (relaxed atomics: a scrape may fall between two of them). render: any.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "proto/wire/inference.h"

enum metrics_counter {
    METRICS_PROMPT_TOKENS,
    METRICS_GENERATION_TOKENS,
    METRICS_PREFIX_CACHE_QUERIES,
    METRICS_PREFIX_CACHE_HITS,
    METRICS_PREEMPTIONS,
    METRICS_RECOMPUTE_TOKENS,
    METRICS_SWAPPED_OUT_BLOCKS,
    METRICS_SWAPPED_IN_BLOCKS,
    METRICS_REQUESTS,
    METRICS_SLOW_READERS,
    METRICS_N_COUNTERS,
};

enum metrics_gauge {
    METRICS_REQUESTS_RUNNING,
    METRICS_REQUESTS_WAITING,
    METRICS_KV_REPLICATION,
    METRICS_KV_BYTES_PER_TOKEN,
    METRICS_SERVING,
    METRICS_N_GAUGES,
};

enum metrics_histogram {
    METRICS_TIME_TO_FIRST_TOKEN,
    METRICS_INTER_TOKEN_LATENCY,
    METRICS_E2E_LATENCY,
    METRICS_QUEUE_TIME,
    METRICS_REQUEST_PROMPT_TOKENS,
    METRICS_REQUEST_GENERATION_TOKENS,
    METRICS_N_HISTOGRAMS,
};

enum metrics_rejection {
    METRICS_REJECTED_INVALID,
    METRICS_REJECTED_OVERLOAD,
    METRICS_REJECTED_DEADLINE,
    METRICS_REJECTED_NOT_READY,
    METRICS_REJECTED_DRAINING,
    METRICS_REJECTED_OTHER,
    METRICS_N_REJECTIONS,
};

enum metrics_restart {
    METRICS_RESTART_EXIT,
    METRICS_RESTART_HANG,
    METRICS_RESTART_LOST,
    METRICS_N_RESTARTS
};

#define METRICS_MAX_GROUPS  64
#define METRICS_MAX_BUCKETS 28
#define METRICS_N_REASONS   (WIRE_FINISH_ERROR + 1)

struct metrics_series {
    _Atomic uint64_t buckets[METRICS_MAX_BUCKETS + 1]; /* not cumulative; the last is +Inf */
    _Atomic uint64_t sum;
};

struct metrics_group {
    atomic_bool present;
    _Atomic uint64_t generation, kv_blocks_used, kv_blocks_total;
    _Atomic uint64_t heard_ns; /* monotonic, last message */
    _Atomic uint64_t restarts[METRICS_N_RESTARTS];
};

struct metrics {
    const char *model, *version; /* labels */
    _Atomic uint64_t counters[METRICS_N_COUNTERS];
    _Atomic uint64_t gauges[METRICS_N_GAUGES]; /* bits of a double */
    _Atomic uint64_t finished[METRICS_N_REASONS];
    _Atomic uint64_t rejected[METRICS_N_REJECTIONS];
    struct metrics_series histograms[METRICS_N_HISTOGRAMS];
    struct metrics_group groups[METRICS_MAX_GROUPS];
};

void metrics_init(struct metrics *m, const char *model, const char *version);

static inline void metrics_add(struct metrics *m, int counter, uint64_t n)
{
    atomic_fetch_add_explicit(&m->counters[counter], n, memory_order_relaxed);
}

static inline void metrics_reject(struct metrics *m, int rejection)
{
    atomic_fetch_add_explicit(&m->rejected[rejection], 1, memory_order_relaxed);
}

static inline void metrics_finish(struct metrics *m, int reason)
{
    atomic_fetch_add_explicit(&m->finished[reason], 1, memory_order_relaxed);
}

void metrics_set(struct metrics *m, int gauge, double value);

/* value: nanoseconds, or a number of tokens for the two histograms that count them. */
void metrics_observe(struct metrics *m, int histogram, uint64_t value);

uint64_t metrics_counter_value(const struct metrics *m, int counter);

/* Appends the Prometheus text format, version 0.0.4. now_ns is monotonic. */
MUST_USE status_t metrics_render(const struct metrics *m, uint64_t now_ns, struct bytes *out);

/*
 * bench_report.h - what a record of a load test says, in vLLM's words
 *
 * What:      the fields, names and formulas of `vllm bench serve`: TTFT from sending to the first token; TPOT (E2EL - TTFT) /
 *            (tokens - 1); ITL each gap between two messages of a stream; E2EL from sending to the end. Requests that
 *            failed count in `failed` alone. Ours are: rejected, the time it took to hear it, errors by status, the rates of single streams
 *            (tokens after the first / time from first to last) and how late requests were sent.
 * Units:     milliseconds where a name ends in _ms, else seconds.
 * Thread:    owner:main
 */
#pragma once

#include <jansson.h>
#include <stdio.h>

#include "ops/bench_driver.h"

#define BENCH_MAX_PERCENTILES 16

struct bench_report_options {
    const char *model;
    double request_rate; /* 0: all at once */
    uint32_t max_concurrency;
    double percentiles[BENCH_MAX_PERCENTILES];
    size_t n_percentiles;
    double goodput_ttft_ms, goodput_tpot_ms,
        goodput_e2el_ms; /* 0: no such bound; all 0: no goodput */
};

/* One object. Null for memory; decref it. */
json_t *bench_report_make(const struct bench_report_options *options,
                          const struct bench_record *record);

/* As vLLM prints it. */
void bench_report_print(const json_t *report, const struct bench_report_options *options,
                        FILE *out);

/* Every number of both reports, and new / old. */
void bench_report_compare(const json_t *report, const json_t *old, FILE *out);

/* OK, or what failed, by status: its code is that of most failures. Details go to `out`. */
status_t bench_report_verdict(const struct bench_record *record, FILE *out);

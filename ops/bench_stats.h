/*
 * bench_stats.h - means and percentiles of a run, exact
 *
 * What:      every value is kept and sorted; nothing is binned. Percentiles are numpy's (linear between ranks), the
 *            deviation is over n, as vLLM's bench serve has them.
 * Thread:    any
 */
#pragma once

#include <stddef.h>

struct bench_stats {
    size_t n;
    double mean, median, deviation, min, max; /* all 0 where n is 0 */
};

/* Sorts the values, which bench_stats_percentile wants. */
void bench_stats_of(double *values, size_t n, struct bench_stats *stats_out);

/* percent in [0, 100]; 0 where n is 0. */
double bench_stats_percentile(const double *sorted, size_t n, double percent);

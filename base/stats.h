/*
 * stats.h - means and percentiles, exact
 *
 * What:      every value is kept and sorted; nothing is binned. Percentiles are numpy's (linear between ranks), the
 *            deviation is over n, as vLLM's bench serve has them.
 * Thread:    any
 */
#pragma once

#include <stddef.h>

struct stats {
    size_t n;
    double mean, median, deviation, min, max; /* all 0 where n is 0 */
};

/* From the smallest to the largest. */
void stats_sort(double *values, size_t n);

/* Sorts the values, which stats_percentile wants. */
void stats_of(double *values, size_t n, struct stats *stats_out);

/* percent in [0, 100]; 0 where n is 0. */
double stats_percentile(const double *sorted, size_t n, double percent);

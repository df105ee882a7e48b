#include "base/stats.h"

#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void stats_sort(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare);
}

double stats_percentile(const double *sorted, size_t n, double percent)
{
    if (n == 0) {
        return 0;
    }
    const double rank = percent / 100.0 * (double)(n - 1);
    const size_t below = (size_t)rank;
    if (below + 1 >= n) {
        return sorted[n - 1];
    }
    return sorted[below] + (rank - (double)below) * (sorted[below + 1] - sorted[below]);
}

void stats_of(double *values, size_t n, struct stats *stats_out)
{
    struct stats stats = {.n = n};
    if (n > 0) {
        stats_sort(values, n);
        double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) {
            sum += values[i];
        }
        stats.mean = sum / (double)n;
        for (size_t i = 0; i < n; i++) {
            squares += (values[i] - stats.mean) * (values[i] - stats.mean);
        }
        stats.deviation = sqrt(squares / (double)n);
        stats.median = stats_percentile(values, n, 50);
        stats.min = values[0];
        stats.max = values[n - 1];
    }
    *stats_out = stats;
}

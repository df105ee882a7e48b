/*
 * test_stats.c - percentiles and means against numpy's (numpy 2: percentile, mean, std, median)
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/stats.h"

static const double values[] = {12.5, 3.25, 7.0, 0.125, 99.0, 41.5, 8.75, 2.0, 63.0, 5.5, 17.25};
static const double percents[] = {0, 1, 25, 50, 90, 99, 99.9, 100};

enum {
    N_VALUES = sizeof values / sizeof values[0],
    N_PERCENTS = sizeof percents / sizeof percents[0]
};

static void check(size_t n, const double want[N_PERCENTS], const double means[3])
{
    double sorted[N_VALUES];
    struct stats stats;
    memcpy(sorted, values, n * sizeof *values);
    stats_of(sorted, n, &stats);
    for (int i = 0; i < N_PERCENTS; i++) {
        assert_close(stats_percentile(sorted, n, percents[i]), want[i], 1e-12, 1e-12);
    }
    assert_int_equal(stats.n, n);
    assert_close(stats.mean, means[0], 1e-12, 1e-12);
    assert_close(stats.deviation, means[1], 1e-12, 1e-12);
    assert_close(stats.median, means[2], 1e-12, 1e-12);
    assert_close(stats.min, want[0], 0, 0);
    assert_close(stats.max, want[N_PERCENTS - 1], 0, 0);
}

static void test_stats_are_numpys(void **state)
{
    (void)state;
    static const double all[] = {0.125, 0.3125, 4.375, 8.75, 63.0, 95.4, 98.64000000000007, 99.0};
    static const double four[] = {
        0.125, 0.21875, 2.46875, 5.125, 10.850000000000001, 12.334999999999999, 12.483500000000001,
        12.5};
    check(N_VALUES, all, (const double[]){23.625, 30.116299196161656, 8.75});
    check(4, four, (const double[]){5.71875, 4.610089986919995, 5.125});
}

static void test_stats_of_one_and_of_none(void **state)
{
    (void)state;
    double one[] = {7.5};
    struct stats stats;
    stats_of(one, 1, &stats);
    assert_close(stats.median, 7.5, 0, 0);
    assert_close(stats.deviation, 0, 0, 0);
    assert_close(stats_percentile(one, 1, 99), 7.5, 0, 0);
    stats_of(one, 0, &stats);
    assert_close(stats.mean, 0, 0, 0);
    assert_close(stats_percentile(one, 0, 50), 0, 0, 0);
}

/* Of n values the percentile 100 i / (n - 1) is the i-th smallest: counted, not sorted. */
static void test_stats_percentiles_are_ranks(void **state)
{
    (void)state;

    enum { N = 201 };

    double sorted[N], drawn[N];
    struct stats stats;
    for (int i = 0; i < N; i++) {
        drawn[i] = test_random_double(-5, 5);
    }
    memcpy(sorted, drawn, sizeof drawn);
    stats_of(sorted, N, &stats);
    for (int i = 0; i < N; i += 10) {
        const double got = stats_percentile(sorted, N, 100.0 * i / (N - 1));
        int below = 0;
        for (int k = 0; k < N; k++) {
            below += drawn[k] < got - 1e-9;
        }
        assert_int_equal(below, i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats_are_numpys),
        cmocka_unit_test(test_stats_of_one_and_of_none),
        cmocka_unit_test(test_stats_percentiles_are_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

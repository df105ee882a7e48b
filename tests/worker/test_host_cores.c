/*
 * test_host_cores.c - threads of ranks on machines that hwloc is told of in words, and on this one
 */
#include "tests/support/test.h"

#include <sched.h>
#include <string.h>

#include "worker/host.h"
#include "worker/host_cores.h"

static struct host_cores choose(const char *machine, int32_t n_sharers, int32_t index,
                                int32_t n_threads)
{
    const struct host_cores_request request = {
        .n_sharers = n_sharers, .index = index, .n_threads = n_threads, .machine = machine};
    struct host_cores cores;
    memset(&cores, 0xA5, sizeof cores);
    host_cores_choose(&request, &cores);
    return cores;
}

static void assert_cores(const struct host_cores *cores, const int32_t *want, int32_t n)
{
    assert_true(cores->pinned);
    assert_int_equal(cores->n_threads, n);
    for (int32_t i = 0; i < n; i++) {
        assert_int_equal(cores->cores[i], want[i]);
    }
}

static void test_host_cores_ranks_take_a_package_each(void **state)
{
    (void)state;
    static const int32_t first[] = {0, 1, 2, 3}, second[] = {4, 5, 6, 7};
    const struct host_cores a = choose("pack:2 core:4 pu:1", 2, 0, 0);
    const struct host_cores b = choose("pack:2 core:4 pu:1", 2, 1, 0);
    assert_cores(&a, first, 4);
    assert_cores(&b, second, 4);
}

/* Numbered so that the hardware threads of a core are 8 apart, as Linux does. */
static void test_host_cores_a_thread_has_a_core_before_a_hardware_thread(void **state)
{
    (void)state;
    const char *machine = "pack:2 core:4 pu:2(indexes=0,8,1,9,2,10,3,11,4,12,5,13,6,14,7,15)";
    static const int32_t second[] = {4, 5, 6, 7};
    const struct host_cores half = choose(machine, 2, 1, 4);
    assert_cores(&half, second, 4);
    static const int32_t all[] = {4, 12, 5, 13, 6, 14, 7, 15};
    const struct host_cores whole = choose(machine, 2, 1, 8);
    assert_cores(&whole, all, 8);
}

/* Whatever the machine and the ranks: cores are distinct, and there. */
static void test_host_cores_are_nobody_elses(void **state)
{
    (void)state;
    static const char *const machines[] = {"pack:2 core:4 pu:1", "pack:1 core:12 pu:1",
                                           "pack:2 numa:2 l3:2 core:2 pu:1", "core:3 pu:1"};
    for (size_t m = 0; m < sizeof machines / sizeof machines[0]; m++) {
        const int32_t n_cores = choose(machines[m], 1, 0, 0).n_threads;
        for (int32_t ranks = 1; ranks <= n_cores; ranks++) {
            const int32_t n_threads = n_cores / ranks;
            bool taken[64] = {false};
            for (int32_t rank = 0; rank < ranks; rank++) {
                const struct host_cores_request request = {.n_sharers = ranks,
                                                           .index = rank,
                                                           .pinning = HOST_PIN_ON,
                                                           .machine = machines[m]};
                struct host_cores cores;
                host_cores_choose(&request, &cores);
                assert_true(cores.pinned);
                assert_int_equal(cores.n_threads, n_threads);
                for (int32_t i = 0; i < n_threads; i++) {
                    assert_in_range(cores.cores[i], 0, n_cores - 1);
                    assert_false(taken[cores.cores[i]]);
                    taken[cores.cores[i]] = true;
                }
            }
        }
    }
}

static void assert_free(const struct host_cores *cores, int32_t n_threads, const char *why)
{
    assert_false(cores->pinned);
    assert_int_equal(cores->n_threads, n_threads);
    assert_non_null(strstr(cores->why, why));
}

static void test_host_cores_says_why_threads_are_not_pinned(void **state)
{
    (void)state;
    const char *machine = "pack:1 core:4 pu:1";
    const struct host_cores crowded = choose(machine, 3, 2, 2);
    assert_free(&crowded, 2, "3 ranks of 2 threads on 4 cores");
    const struct host_cores more_ranks = choose(machine, 5, 4, 0);
    assert_free(&more_ranks, 1, "5 ranks of 1 threads on 4 cores");
    const struct host_cores idle = choose(machine, 1, 0, 3);
    assert_free(&idle, 3, "leave some of 4 cores idle");
    const struct host_cores overlapping = choose(machine, 0, 0, 2);
    assert_free(&overlapping, 2, "other ranks'");
    const struct host_cores nonsense = choose("no machine", 1, 0, 2);
    assert_free(&nonsense, 2, "cannot be read");

    const struct host_cores_request off = {
        .n_sharers = 1, .pinning = HOST_PIN_OFF, .machine = machine};
    struct host_cores cores;
    host_cores_choose(&off, &cores);
    assert_free(&cores, 4, "switched off");
    const struct host_cores_request on = {
        .n_sharers = 1, .n_threads = 3, .pinning = HOST_PIN_ON, .machine = machine};
    host_cores_choose(&on, &cores);
    assert_true(cores.pinned);
}

/* As a batch system or mpirun does it. */
static void test_host_cores_stay_within_what_is_allowed(void **state)
{
    (void)state;
    struct host_cores_mask before;
    host_cores_get_mask(&before);
    const int32_t n_before = host_cores();
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    int last = CPU_SETSIZE - 1;
    while (!CPU_ISSET((size_t)last, &set)) {
        last--;
    }
    CPU_ZERO(&set);
    CPU_SET((size_t)last, &set);
    assert_int_equal(sched_setaffinity(0, sizeof set, &set), 0);
    const struct host_cores cores = choose(NULL, 1, 0, 0);
    const struct host_cores crowded = choose(NULL, 1, 0, 2);
    host_cores_set_mask(&before);
    assert_int_equal(host_cores(), n_before);
    const int32_t want[] = {last};
    assert_cores(&cores, want, 1);
    assert_free(&crowded, 2, "1 ranks of 2 threads on 1 cores");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_cores_ranks_take_a_package_each),
        cmocka_unit_test(test_host_cores_a_thread_has_a_core_before_a_hardware_thread),
        cmocka_unit_test(test_host_cores_are_nobody_elses),
        cmocka_unit_test(test_host_cores_says_why_threads_are_not_pinned),
        cmocka_unit_test(test_host_cores_stay_within_what_is_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/support/test.h"

#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

static void test_clock_system_moves_forward(void **state)
{
    (void)state;
    const struct clock *clock = clock_system();
    uint64_t last = clock_now_ns(clock);
    for (int i = 0; i < 1000; i++) {
        const uint64_t now = clock_now_ns(clock);
        assert_true(now >= last);
        last = now;
    }
}

static void test_clock_system_measures_a_sleep(void **state)
{
    (void)state;
    const uint64_t start = clock_now_ns(clock_system());
    const struct timespec nap = {.tv_nsec = 2 * (long)NS_PER_MS};
    nanosleep(&nap, NULL);
    const uint64_t took = clock_now_ns(clock_system()) - start;
    assert_true(took >= 2 * NS_PER_MS);
    assert_true(took < 10 * NS_PER_S);
}

static void test_clock_system_wall_is_now(void **state)
{
    (void)state;
    const struct clock *clock = clock_system();
    const time_t seconds = (time_t)(clock->wall_ns(clock->self) / NS_PER_S);
    assert_true(labs(seconds - time(NULL)) <= 1);
}

static uint64_t stopped(void *self)
{
    return *(const uint64_t *)self;
}

static void test_clock_can_be_replaced(void **state)
{
    (void)state;
    uint64_t now = 41;
    const struct clock clock = {.monotonic_ns = stopped, .wall_ns = stopped, .self = &now};
    assert_true(clock_now_ns(&clock) == 41);
    now++;
    assert_true(clock_now_ns(&clock) == 42);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clock_system_moves_forward),
        cmocka_unit_test(test_clock_system_measures_a_sleep),
        cmocka_unit_test(test_clock_system_wall_is_now),
        cmocka_unit_test(test_clock_can_be_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

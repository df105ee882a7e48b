/* Runs alone and under mpirun with several rank counts. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "parallel/group.h"

static void sleep_ms(long ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* Processor seconds of this process so far. */
static double cpu_seconds(void)
{
    struct rusage use;
    assert_int_equal(getrusage(RUSAGE_SELF, &use), 0);
    return (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
           1e-6 * (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

static void test_group_knows_its_place(void **state)
{
    struct group *group = *state;
    assert_true(group_rank(group) >= 0 && group_rank(group) < group_size(group));
    // All ranks of a test run on this machine.
    assert_int_equal(group_host_size(group), group_size(group));
    assert_int_equal(group_host_rank(group), group_rank(group));
}

static void test_group_does_not_open_twice(void **state)
{
    (void)state;
    struct group *second = NULL;
    assert_status_code(group_open("test", &second), STATUS_FAILED_PRECONDITION);
    assert_null(second);
}

// ---- agreement ----

static void test_group_agrees_on_success(void **state)
{
    struct group *group = *state;
    for (int i = 0; i < 100; i++) {
        assert_status_ok(group_agree(group, status_ok()));
    }
}

/* Any set of ranks fails: everybody hears of the lowest. */
static void test_group_agrees_on_the_first_failing_rank(void **state)
{
    struct group *group = *state;
    const int32_t size = group_size(group);
    for (int i = 0; i < 60; i++) {
        const uint64_t failing = 1 + test_random_below((1u << size) - 1);
        const int32_t first = __builtin_ctzll(failing);
        status_t mine = status_ok();
        if (failing >> group_rank(group) & 1) {
            mine = status_errorf(STATUS_NOT_FOUND + group_rank(group), "case %d: shard %d lost", i,
                                 group_rank(group));
        }
        const status_t s = group_agree(group, mine);
        char want[STATUS_MSG_BYTES];
        snprintf(want, sizeof want, "case %d: shard %d lost", i, first);
        assert_int_equal(s.code, STATUS_NOT_FOUND + first);
        if (size == 1) {
            assert_string_equal(s.msg, want);
            continue;
        }
        snprintf(want, sizeof want, "rank %d: case %d: shard %d lost", first, i, first);
        assert_string_equal(s.msg, want);
    }
}

// ---- the leader's message ----

static uint8_t byte_of(size_t i, size_t k)
{
    return (uint8_t)(i * 131 + i / 251 + k * 17);
}

static void broadcast_and_check(struct group *group, struct bytes *data, size_t size, size_t k)
{
    bytes_clear(data);
    if (group_rank(group) == 0) {
        uint8_t *tail = NULL;
        assert_status_ok(bytes_reserve(data, size, &tail));
        for (size_t i = 0; i < size; i++) {
            tail[i] = byte_of(i, k);
        }
        data->size = size;
    } else {
        assert_status_ok(bytes_append_str(data, "what was here before"));
    }
    assert_status_ok(group_broadcast(group, data, 2000));
    assert_int_equal(data->size, size);
    for (size_t i = 0; i < size; i++) {
        if (data->data[i] != byte_of(i, k)) {
            fail_msg("size %zu, byte %zu: %d, want %d", size, i, data->data[i], byte_of(i, k));
        }
    }
}

static void test_group_broadcast_carries_any_size(void **state)
{
    struct group *group = *state;
    struct bytes data;
    bytes_init(&data, 8 << 20);
    static const size_t sizes[] = {0,     1,     100,     4095,    4096, 4097, 65535,
                                   65536, 65537, 1000003, 5000001, 0,    3};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        broadcast_and_check(group, &data, sizes[k], k);
    }
    for (size_t k = 100; k < 300; k++) {
        broadcast_and_check(group, &data, test_random_below(3000), k);
    }
    bytes_destroy(&data);
}

/* Many messages in flight at once stay in order and whole. */
static void test_group_broadcast_keeps_order(void **state)
{
    struct group *group = *state;
    struct bytes data;
    bytes_init(&data, 64);
    for (uint32_t i = 0; i < 2000; i++) {
        bytes_clear(&data);
        if (group_rank(group) == 0) {
            assert_status_ok(bytes_append_u32(&data, i));
        } else if (i % 500 == 0) {
            sleep_ms(20); // lets the leader run ahead
        }
        assert_status_ok(group_broadcast(group, &data, 1000));
        struct bytes_reader r;
        bytes_reader_init(&r, data.data, data.size);
        assert_int_equal(bytes_read_u32(&r), i);
    }
    bytes_destroy(&data);
}

/* A message longer than the receiver allows is an error there. Last: it ends the group's order. */
static void test_group_broadcast_respects_the_limit(void **state)
{
    struct group *group = *state;
    if (group_size(group) == 1) {
        skip();
    }
    struct bytes data;
    bytes_init(&data, group_rank(group) == 0 ? 1000 : 100);
    if (group_rank(group) == 0) {
        static const char zeros[500];
        assert_status_ok(bytes_append(&data, zeros, sizeof zeros));
        assert_status_ok(group_broadcast(group, &data, 1000));
    } else {
        assert_status_says(group_broadcast(group, &data, 1000), STATUS_RESOURCE_EXHAUSTED,
                           "group message on rank");
    }
    bytes_destroy(&data);
}

/* Waiting costs next to nothing: for a message, for agreement, and it ends soon after the news. */
static void test_group_waits_without_burning_a_core(void **state)
{
    struct group *group = *state;
    if (group_size(group) == 1) {
        skip();
    }

    enum { IDLE_MS = 1200 };
    struct bytes data;
    bytes_init(&data, 64);
    assert_status_ok(group_agree(group, status_ok()));
    const double before = cpu_seconds();
    if (group_rank(group) == 0) {
        sleep_ms(IDLE_MS);
    }
    assert_status_ok(group_broadcast(group, &data, 2000));
    const double message = cpu_seconds() - before;
    if (group_rank(group) == 0) {
        sleep_ms(IDLE_MS);
    }
    assert_status_ok(group_agree(group, status_ok()));
    const double agreement = cpu_seconds() - before - message;
    // Ten times what is measured on an idle machine: a busy wait would take all of it.
    assert_true(message < 0.2 * IDLE_MS / 1000);
    assert_true(agreement < 0.2 * IDLE_MS / 1000);
    bytes_destroy(&data);
}

static int set_up(void **state)
{
    struct group *group = NULL;
    const status_t s = group_open("test", &group);
    *state = group;
    return s.code == STATUS_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    group_close(*state);
    group_close(NULL);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_group_knows_its_place),
        cmocka_unit_test(test_group_does_not_open_twice),
        cmocka_unit_test(test_group_agrees_on_success),
        cmocka_unit_test(test_group_agrees_on_the_first_failing_rank),
        cmocka_unit_test(test_group_broadcast_carries_any_size),
        cmocka_unit_test(test_group_broadcast_keeps_order),
        cmocka_unit_test(test_group_waits_without_burning_a_core),
        cmocka_unit_test(test_group_broadcast_respects_the_limit),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

#include "tests/support/test.h"

#include <pthread.h>
#include <time.h>

#include "base/clock.h"
#include "base/mailbox.h"

static void test_mailbox_keeps_order_round_the_ring(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 3));
    int items[50];
    size_t posted = 0;
    for (size_t taken = 0; taken < 50; taken++) {
        while (posted < 50 && posted - taken < 1 + taken % 3) {
            assert_status_ok(mailbox_post(&m, &items[posted++]));
        }
        assert_ptr_equal(mailbox_take(&m, 0), &items[taken]);
    }
    assert_null(mailbox_take(&m, 0));
    mailbox_destroy(&m);
}

static void test_mailbox_refuses_when_full(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 2));
    int item;
    assert_status_ok(mailbox_post(&m, &item));
    assert_status_ok(mailbox_post(&m, &item));
    assert_status_says(mailbox_post(&m, &item), STATUS_RESOURCE_EXHAUSTED, "2 items");
    (void)mailbox_take(&m, 0);
    assert_status_ok(mailbox_post(&m, &item));
    mailbox_destroy(&m);
}

static void test_mailbox_close_keeps_what_is_queued(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 2));
    int item;
    assert_status_ok(mailbox_post(&m, &item));
    mailbox_close(&m);
    assert_status_code(mailbox_post(&m, &item), STATUS_UNAVAILABLE);
    assert_ptr_equal(mailbox_take(&m, UINT64_MAX), &item);
    assert_null(mailbox_take(&m, UINT64_MAX)); // closed and empty: does not wait
    mailbox_destroy(&m);
}

static void test_mailbox_take_times_out(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 1));
    const uint64_t start = clock_now_ns(clock_system());
    assert_null(mailbox_take(&m, 5 * NS_PER_MS));
    const uint64_t took = clock_now_ns(clock_system()) - start;
    assert_true(took >= 5 * NS_PER_MS);
    mailbox_destroy(&m);
}

static void test_mailbox_wake_is_kept_for_the_next_wait(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 1));
    mailbox_wake(&m);
    assert_null(mailbox_take(&m, 0)); // a poll does not use it up
    assert_null(mailbox_take(&m, UINT64_MAX));
    // Used up: the next wait lasts.
    const uint64_t start = clock_now_ns(clock_system());
    assert_null(mailbox_take(&m, 3 * NS_PER_MS));
    assert_true(clock_now_ns(clock_system()) - start >= 3 * NS_PER_MS);
    mailbox_destroy(&m);
}

static void test_mailbox_huge_timeout_does_not_wrap(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 1));
    int item;
    assert_status_ok(mailbox_post(&m, &item));
    assert_ptr_equal(mailbox_take(&m, UINT64_MAX - 1), &item);
    mailbox_destroy(&m);
}

#define N_POSTERS 4
#define N_EACH    5000

struct poster {
    struct mailbox *mailbox;
    int values[N_EACH];
    int n_refused;
};

static void *post_all(void *arg)
{
    struct poster *p = arg;
    for (int i = 0; i < N_EACH; i++) {
        p->values[i] = i;
        status_t s = mailbox_post(p->mailbox, &p->values[i]);
        while (!status_is_ok(&s)) {
            p->n_refused++;
            const struct timespec nap = {.tv_nsec = 50000};
            nanosleep(&nap, NULL);
            s = mailbox_post(p->mailbox, &p->values[i]);
        }
    }
    return NULL;
}

static void test_mailbox_many_posters_lose_nothing(void **state)
{
    (void)state;
    struct mailbox m;
    assert_status_ok(mailbox_init(&m, 64));
    static struct poster posters[N_POSTERS];
    pthread_t threads[N_POSTERS];
    for (int i = 0; i < N_POSTERS; i++) {
        posters[i].mailbox = &m;
        assert_int_equal(pthread_create(&threads[i], NULL, post_all, &posters[i]), 0);
    }
    int next[N_POSTERS] = {0};
    for (int n = 0; n < N_POSTERS * N_EACH; n++) {
        const int *item = mailbox_take(&m, 10 * NS_PER_S);
        assert_non_null(item);
        // Items of one poster arrive in its order.
        for (int i = 0; i < N_POSTERS; i++) {
            if (item >= posters[i].values && item < posters[i].values + N_EACH) {
                assert_int_equal(*item, next[i]);
                next[i]++;
            }
        }
    }
    for (int i = 0; i < N_POSTERS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(next[i], N_EACH);
    }
    assert_null(mailbox_take(&m, 0));
    mailbox_destroy(&m);
}

static void *wake_soon(void *arg)
{
    const struct timespec nap = {.tv_nsec = 3 * (long)NS_PER_MS};
    nanosleep(&nap, NULL);
    mailbox_wake(arg);
    return NULL;
}

static void *close_soon(void *arg)
{
    const struct timespec nap = {.tv_nsec = 3 * (long)NS_PER_MS};
    nanosleep(&nap, NULL);
    mailbox_close(arg);
    return NULL;
}

static void test_mailbox_wake_and_close_end_a_wait(void **state)
{
    (void)state;
    void *(*const enders[])(void *) = {wake_soon, close_soon};
    for (size_t i = 0; i < 2; i++) {
        struct mailbox m;
        assert_status_ok(mailbox_init(&m, 1));
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, enders[i], &m), 0);
        assert_null(mailbox_take(&m, UINT64_MAX));
        pthread_join(thread, NULL);
        mailbox_destroy(&m);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mailbox_keeps_order_round_the_ring),
        cmocka_unit_test(test_mailbox_refuses_when_full),
        cmocka_unit_test(test_mailbox_close_keeps_what_is_queued),
        cmocka_unit_test(test_mailbox_take_times_out),
        cmocka_unit_test(test_mailbox_wake_is_kept_for_the_next_wait),
        cmocka_unit_test(test_mailbox_huge_timeout_does_not_wrap),
        cmocka_unit_test(test_mailbox_many_posters_lose_nothing),
        cmocka_unit_test(test_mailbox_wake_and_close_end_a_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

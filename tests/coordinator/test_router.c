#include "coordinator/router.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/gate.h"
#include "tests/support/test.h"

static void test_router_serves_by_priority_then_arrival(void **state)
{
    (void)state;
    struct router r;
    assert_status_ok(router_init(&r, 8, 1000, 4));
    struct router_item items[4] = {{.priority = 1, .n_tokens = 1, .n_seqs = 1},
                                   {.priority = 0, .n_tokens = 1, .n_seqs = 1},
                                   {.priority = 1, .n_tokens = 1, .n_seqs = 1},
                                   {.priority = -5, .n_tokens = 1, .n_seqs = 1}};
    for (int i = 0; i < 4; i++) {
        assert_status_ok(router_admit(&r, &items[i]));
    }
    int group = -1;
    assert_null(router_next(&r, &group)); // nobody is ready
    router_set_ready(&r, 3, true);
    const int order[] = {3, 1, 0, 2};
    for (int i = 0; i < 4; i++) {
        assert_ptr_equal(router_next(&r, &group), &items[order[i]]);
        assert_int_equal(group, 3);
    }
    assert_int_equal(router_in_flight(&r), 4);
    router_destroy(&r);
}

static void test_router_refuses_past_its_bounds(void **state)
{
    (void)state;
    struct router r;
    assert_status_ok(router_init(&r, 2, 100, 1));
    struct router_item a = {.n_tokens = 60, .n_seqs = 1}, b = {.n_tokens = 41, .n_seqs = 1},
                       c = {.n_tokens = 40, .n_seqs = 1}, d = {.n_tokens = 1, .n_seqs = 1};
    assert_status_ok(router_admit(&r, &a));
    assert_status_says(router_admit(&r, &b), STATUS_RESOURCE_EXHAUSTED,
                       "60 prompt tokens are waiting, with these 41 over 100");
    assert_status_ok(router_admit(&r, &c));
    assert_status_says(router_admit(&r, &d), STATUS_RESOURCE_EXHAUSTED,
                       "2 requests are waiting, at most 2 (--max-num-queued-reqs)");
    assert_int_equal(r.queued_tokens, 100);
    router_remove(&r, &a);
    assert_int_equal(r.queued_tokens, 40);
    assert_status_ok(router_admit(&r, &d));
    router_destroy(&r);
}

static void test_router_takes_one_prompt_of_any_size(void **state)
{
    (void)state;
    struct router r;
    assert_status_ok(router_init(&r, 2, 100, 1));
    struct router_item huge = {.n_tokens = 5000, .n_seqs = 1}, small = {.n_tokens = 1, .n_seqs = 1};
    assert_status_ok(router_admit(&r, &huge));
    assert_status_code(router_admit(&r, &small), STATUS_RESOURCE_EXHAUSTED);
    router_destroy(&r);
}

static void test_router_picks_the_least_loaded_ready_group(void **state)
{
    (void)state;
    struct router r;
    assert_status_ok(router_init(&r, 16, 1000, 2));
    struct router_item items[6];
    for (int i = 0; i < 6; i++) {
        items[i] = (struct router_item){.n_seqs = 1};
    }
    router_set_ready(&r, 0, true);
    router_set_ready(&r, 5, true);
    int n_of[ROUTER_MAX_GROUPS] = {0};
    int group;
    for (int i = 0; i < 4; i++) {
        assert_status_ok(router_admit(&r, &items[i]));
        assert_non_null(router_next(&r, &group));
        n_of[group]++;
    }
    assert_int_equal(n_of[0], 2);
    assert_int_equal(n_of[5], 2);
    assert_status_ok(router_admit(&r, &items[4]));
    assert_null(router_next(&r, &group)); // both are full
    router_done(&r, 5, 1);
    assert_ptr_equal(router_next(&r, &group), &items[4]);
    assert_int_equal(group, 5);
    router_set_ready(&r, 5, false); // lost: what it had is gone
    assert_int_equal(router_in_flight(&r), 2);
    assert_true(router_any_ready(&r));
    router_set_ready(&r, 0, false);
    assert_false(router_any_ready(&r));
    router_destroy(&r);
}

static void test_router_put_back_keeps_the_turn(void **state)
{
    (void)state;
    struct router r;
    assert_status_ok(router_init(&r, 2, 100, 4));
    struct router_item a = {.n_tokens = 3, .n_seqs = 1}, b = {.n_tokens = 4, .n_seqs = 3};
    assert_status_ok(router_admit(&r, &a));
    assert_status_ok(router_admit(&r, &b));
    router_set_ready(&r, 0, true);
    int group;
    assert_ptr_equal(router_next(&r, &group), &a);
    router_put_back(&r, &a, group);
    assert_int_equal(r.queued_tokens, 7);
    assert_int_equal(router_in_flight(&r), 0);
    assert_ptr_equal(router_next(&r, &group), &a);
    router_destroy(&r);
}

static void test_router_counts_the_sequences_of_a_request(void **state)
{
    (void)state;
    struct router r;
    assert_status_ok(router_init(&r, 8, 100, 4));
    struct router_item a = {.n_seqs = 3}, b = {.n_seqs = 8}, c = {.n_seqs = 1};
    router_set_ready(&r, 0, true);
    int group;
    assert_status_ok(router_admit(&r, &a));
    assert_status_ok(router_admit(&r, &b));
    assert_status_ok(router_admit(&r, &c));
    assert_ptr_equal(router_next(&r, &group), &a);
    assert_ptr_equal(router_next(&r, &group), &b); // 3 of 4 are there: the last to go may be larger
    assert_int_equal(router_in_flight(&r), 11);
    assert_null(router_next(&r, &group));
    router_done(&r, 0, 7);
    assert_null(router_next(&r, &group));
    router_done(&r, 0, 1);
    assert_ptr_equal(router_next(&r, &group), &c);
    router_destroy(&r);
}

/* Random admissions, removals and departures against a plain sorted scan. */
static void test_router_order_holds_under_random_use(void **state)
{
    (void)state;

    enum { N = 200 };
    struct router r;
    assert_status_ok(router_init(&r, N, 1000000, 1000000));
    struct router_item items[N];
    bool queued[N] = {false};
    for (int i = 0; i < N; i++) {
        items[i] = (struct router_item){.at = ROUTER_NOT_QUEUED, .n_seqs = 1 + (uint32_t)i % 4};
    }
    router_set_ready(&r, 0, true);
    for (int round = 0; round < 20000; round++) {
        const int i = (int)test_random_below(N);
        if (!queued[i]) {
            items[i].priority = (int32_t)test_random_below(3);
            items[i].n_tokens = (uint32_t)test_random_below(10);
            assert_status_ok(router_admit(&r, &items[i]));
            queued[i] = true;
        } else if (test_random_below(2) == 0) {
            router_remove(&r, &items[i]);
            queued[i] = false;
        } else {
            int best = -1;
            uint64_t tokens = 0;
            for (int k = 0; k < N; k++) {
                tokens += queued[k] ? items[k].n_tokens : 0;
                if (queued[k] && (best < 0 || items[k].priority < items[best].priority ||
                                  (items[k].priority == items[best].priority &&
                                   items[k].arrival < items[best].arrival))) {
                    best = k;
                }
            }
            assert_int_equal(r.queued_tokens, tokens);
            int group;
            assert_ptr_equal(router_next(&r, &group), &items[best]);
            router_done(&r, group, items[best].n_seqs);
            queued[best] = false;
        }
    }
    router_destroy(&r);
}

static void test_gate_counts_and_says_why(void **state)
{
    (void)state;
    struct gate g;
    gate_init(&g, 100);
    assert_status_says(gate_enter(&g), STATUS_UNAVAILABLE, "the model is still loading");
    atomic_store(&g.mode, GATE_DRAINING);
    assert_status_says(gate_enter(&g), STATUS_UNAVAILABLE, "draining");
    atomic_store(&g.mode, GATE_OPEN);
    atomic_store(&g.max_live, 2);
    assert_status_ok(gate_enter(&g));
    assert_status_ok(gate_enter(&g));
    assert_status_says(gate_enter(&g), STATUS_RESOURCE_EXHAUSTED,
                       "2 requests are waiting or running, at most 2");
    gate_leave(&g);
    assert_status_ok(gate_enter(&g));
    assert_status_ok(gate_enter_bytes(&g, 100));
    assert_status_code(gate_enter_bytes(&g, 1), STATUS_RESOURCE_EXHAUSTED);
    gate_leave_bytes(&g, 100);
    assert_status_ok(gate_enter_bytes(&g, 1));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_router_serves_by_priority_then_arrival),
        cmocka_unit_test(test_router_refuses_past_its_bounds),
        cmocka_unit_test(test_router_takes_one_prompt_of_any_size),
        cmocka_unit_test(test_router_picks_the_least_loaded_ready_group),
        cmocka_unit_test(test_router_put_back_keeps_the_turn),
        cmocka_unit_test(test_router_counts_the_sequences_of_a_request),
        cmocka_unit_test(test_router_order_holds_under_random_use),
        cmocka_unit_test(test_gate_counts_and_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

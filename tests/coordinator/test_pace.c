/*
 * How long a request is expected to take, from what was measured.
 */
#include "coordinator/pace.h"
#include "tests/support/test.h"

#define NOW (1000 * NS_PER_S)

static const struct pace_work work = {.prompt_tokens = 100,
                                      .tokens = 51,
                                      .tokens_ahead = 300,
                                      .without_place = 3,
                                      .places = 8,
                                      .batch = 8};

static void test_pace_guesses_nothing(void **state)
{
    (void)state;
    const struct pace none = {0};
    const struct pace_estimate e = pace_estimate(&none, &work, NOW);
    assert_true(pace_total_ns(&e) == 0);
}

static void test_pace_adds_up_what_was_measured(void **state)
{
    (void)state;
    struct pace p = {0};
    pace_prompt(&p, 1000, 2 * NS_PER_S, NOW);
    pace_step(&p, 8, 10 * NS_PER_MS, NOW);
    struct pace_estimate e = pace_estimate(&p, &work, NOW);
    assert_int_equal(e.prefill_ns, 200 * NS_PER_MS);
    assert_int_equal(e.decode_ns, 500 * NS_PER_MS); // the first of 51 comes with the prompt
    assert_int_equal(e.wait_ns, 600 * NS_PER_MS);
    pace_stay(&p, 8 * NS_PER_S, NOW);
    e = pace_estimate(&p, &work, NOW);
    assert_int_equal(e.wait_ns, 3 * NS_PER_S); // places, not prompts, are what it waits for
}

static void test_pace_of_a_batch_is_that_of_a_smaller_one_at_most(void **state)
{
    (void)state;
    struct pace p = {0};
    pace_step(&p, 64, 64 * NS_PER_MS, NOW);
    struct pace_estimate e = pace_estimate(&p, &work, NOW);
    assert_int_equal(e.decode_ns, 0); // only a larger one was measured
    pace_step(&p, 2, 2 * NS_PER_MS, NOW);
    e = pace_estimate(&p, &work, NOW);
    assert_int_equal(e.decode_ns, 100 * NS_PER_MS);
}

/* Whatever the rate was, the present one takes over, and what comes together counts as many. */
static void test_pace_follows(void **state)
{
    (void)state;
    struct pace p = {0};
    uint64_t now_ns = NOW;
    pace_step(&p, 8, NS_PER_S, now_ns);
    for (int i = 0; i < 200; i++) {
        now_ns += 10 * NS_PER_MS;
        pace_step(&p, 8, 10 * NS_PER_MS, now_ns);
        for (uint64_t j = 0; j < 100; j++) {
            pace_stay(&p, j * NS_PER_MS, now_ns);
        }
    }
    const struct pace_estimate e = pace_estimate(&p, &work, now_ns);
    assert_true(e.decode_ns > 499 * NS_PER_MS && e.decode_ns < 501 * NS_PER_MS);
    assert_true(e.wait_ns > 18 * NS_PER_MS && e.wait_ns < 19 * NS_PER_MS); // 49.5 ms x 3 / 8
}

static void test_pace_forgets(void **state)
{
    (void)state;
    struct pace p = {0};
    pace_prompt(&p, 1000, 2 * NS_PER_S, NOW);
    pace_step(&p, 8, 10 * NS_PER_MS, NOW);
    struct pace_estimate e = pace_estimate(&p, &work, NOW + PACE_MAX_AGE_NS);
    assert_true(pace_total_ns(&e) > 0);
    e = pace_estimate(&p, &work, NOW + PACE_MAX_AGE_NS + 1);
    assert_true(pace_total_ns(&e) == 0);
    pace_step(&p, 8, NS_PER_MS, NOW + PACE_MAX_AGE_NS + 1); // what was before does not count
    e = pace_estimate(&p, &work, NOW + PACE_MAX_AGE_NS + 1);
    assert_int_equal(e.decode_ns, 50 * NS_PER_MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pace_guesses_nothing),
        cmocka_unit_test(test_pace_adds_up_what_was_measured),
        cmocka_unit_test(test_pace_of_a_batch_is_that_of_a_smaller_one_at_most),
        cmocka_unit_test(test_pace_follows),
        cmocka_unit_test(test_pace_forgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

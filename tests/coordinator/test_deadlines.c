/*
 * Deadlines and waiting times as reasons to refuse, from a client's side, with a worker whose speed is given.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/coordinator/stream.h"

#define STEP_NS (2 * NS_PER_MS)

/* Ends by length alone. */
static struct wire_generate_request exactly(uint64_t seed, uint32_t n_tokens)
{
    struct wire_generate_request request = stream_request("hello", seed, n_tokens);
    request.stopping.ignore_eos = true;
    return request;
}

static status_t run(struct bench_served *f, const struct wire_generate_request *request,
                    uint64_t timeout_ns, struct stream *s)
{
    stream_start(s, f->channel, request, timeout_ns);
    const status_t status = stream_wait(s);
    stream_free(s);
    return status;
}

static void test_deadlines_reach_the_worker(void **state)
{
    (void)state;
    struct bench_served f;
    struct stream s;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.step_ns = STEP_NS});
    const struct wire_generate_request request = exactly(1, 3);
    assert_status_ok(run(&f, &request, RPC_NO_DEADLINE, &s));
    assert_true(fake_worker_time_left_ns(f.worker) == 0);
    assert_status_ok(run(&f, &request, 60 * NS_PER_S, &s));
    const uint64_t left_ns = fake_worker_time_left_ns(f.worker);
    assert_true(left_ns > 50 * NS_PER_S && left_ns < 61 * NS_PER_S);
    bench_served_end(&f);
}

/* The worker's clock is enough: the client hears of it whatever its own says. */
static void test_deadlines_the_worker_finds_end_the_request(void **state)
{
    (void)state;
    struct bench_served f;
    struct stream s;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.step_ns = STEP_NS, .late_after = 3});
    struct wire_generate_request request = exactly(1, 100);
    assert_status_says(run(&f, &request, 60 * NS_PER_S, &s), STATUS_DEADLINE_EXCEEDED,
                       "and 3 tokens");
    assert_true(s.got_end);
    assert_int_equal(s.reason, WIRE_FINISH_DEADLINE);
    assert_int_equal(s.n_tokens, 3);
    assert_int_equal(s.usage.completion_tokens, 3);
    request.sampling.n = 2; // one that is late is the end of all
    assert_status_says(run(&f, &request, 60 * NS_PER_S, &s), STATUS_DEADLINE_EXCEEDED,
                       "the deadline passed");
    fake_worker_wait_active(f.worker, 0);
    bench_served_end(&f);
}

static void test_deadlines_refuse_nothing_that_was_not_measured(void **state)
{
    (void)state;
    struct bench_served f;
    struct stream s;
    bench_init(&f.bench);
    bench_served_begin(&f,
                       &(struct fake_worker_options){.hold = true, .prompt_token_ns = NS_PER_S});
    const struct wire_generate_request request = exactly(1, 2000);
    assert_status_code(run(&f, &request, NS_PER_S / 5, &s), STATUS_DEADLINE_EXCEEDED);
    fake_worker_wait_submits(f.worker, 1); // it was tried
    bench_served_end(&f);
}

static void test_deadlines_refuse_what_cannot_be_done(void **state)
{
    (void)state;
    struct bench_served f;
    struct stream s;
    bench_init(&f.bench);
    bench_served_begin(&f, &(struct fake_worker_options){.step_ns = STEP_NS});
    const struct wire_generate_request measured = exactly(1, 50);
    assert_status_ok(run(&f, &measured, RPC_NO_DEADLINE, &s));
    struct wire_generate_request request = exactly(1, 2000); // four seconds at least
    assert_status_says(run(&f, &request, NS_PER_S, &s), STATUS_DEADLINE_EXCEEDED, "estimated");
    assert_string_equal(s.retry_after, ""); // coming back is no use
    assert_int_equal(s.n_tokens, 0);
    assert_int_equal(fake_worker_n_submits(f.worker), 1);
    request.stopping.ignore_eos = false; // it may end any time
    stream_start(&s, f.channel, &request, NS_PER_S);
    fake_worker_wait_submits(f.worker, 2);
    stream_free(&s);
    fake_worker_wait_active(f.worker, 0);
    bench_served_end(&f);
}

static void test_deadlines_refuse_what_would_wait_too_long(void **state)
{
    (void)state;
    struct bench_served f;
    struct stream running, s;
    bench_init(&f.bench);
    bench_served_begin(
        &f, &(struct fake_worker_options){.step_ns = STEP_NS, .prompt_token_ns = NS_PER_S / 10});
    const struct wire_generate_request first = exactly(1, 2000), second = exactly(2, 1);
    assert_status_ok(run(&f, &second, RPC_NO_DEADLINE, &s)); // five tokens of a prompt: 0.5 s
    assert_status_says(run(&f, &second, NS_PER_S / 4, &s), STATUS_DEADLINE_EXCEEDED, "estimated");
    stream_start(&running, f.channel, &first, RPC_NO_DEADLINE);
    stream_wait_tokens(&running, 1); // its prompt is ahead of nobody any more
    assert_status_ok(run(&f, &second, 10 * NS_PER_S, &s));
    stream_free(&running);
    fake_worker_wait_active(f.worker, 0);
    bench_served_end(&f);
}

/* One place: how long those before stayed tells how long one must wait. */
static void test_waiting_is_limited(void **state)
{
    (void)state;
    struct bench_served f;
    struct stream live[2], s;
    bench_init(&f.bench);
    f.bench.config.max_num_seqs = 1;
    f.bench.config.max_queue_time_s = 0.1;
    bench_served_begin(&f, &(struct fake_worker_options){.step_ns = STEP_NS});
    const struct wire_generate_request request = exactly(1, 100); // 0.2 s at least
    for (int i = 0; i < 2; i++) {                                 // nothing is known yet
        stream_start(&live[i], f.channel, &request, RPC_NO_DEADLINE);
        stream_wait_tokens(&live[i], 1);
    }
    assert_status_ok(stream_wait(&live[0]));
    assert_status_ok(stream_wait(&live[1]));
    stream_free(&live[0]);
    stream_free(&live[1]);
    const struct wire_generate_request few = exactly(1, 5);
    stream_start(&live[0], f.channel, &request, RPC_NO_DEADLINE);
    stream_wait_tokens(&live[0], 1);
    const uint64_t begin_ns = clock_now_ns(clock_system());
    stream_start(&live[1], f.channel, &few, RPC_NO_DEADLINE);
    assert_status_says(stream_wait(&live[1]), STATUS_RESOURCE_EXHAUSTED, "--max-queue-time");
    assert_true(clock_now_ns(clock_system()) - begin_ns < NS_PER_S);
    assert_true(strtol(live[1].retry_after, NULL, 10) >= 20);
    stream_free(&live[1]);
    assert_status_ok(stream_wait(&live[0]));
    stream_free(&live[0]);
    assert_status_ok(run(&f, &few, RPC_NO_DEADLINE, &s)); // alone it waits for nobody
    bench_served_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deadlines_reach_the_worker),
        cmocka_unit_test(test_deadlines_the_worker_finds_end_the_request),
        cmocka_unit_test(test_deadlines_refuse_nothing_that_was_not_measured),
        cmocka_unit_test(test_deadlines_refuse_what_cannot_be_done),
        cmocka_unit_test(test_deadlines_refuse_what_would_wait_too_long),
        cmocka_unit_test(test_waiting_is_limited),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * test_scheduler_lanes.c - how evenly sequences of many lengths lie on the lanes, and steps on the stages of a pipeline
 *
 * Whatever is drawn is token 1: only lengths matter.
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "worker/scheduler.h"

enum {
    MAX_LEN = 2048,
    MAX_SEQS = 96,
    MAX_LANES = 8,
    MAX_STRIPE = 8,
    N_REQUESTS = 400,
    MAX_STEPS = 8
};

struct load {
    struct scheduler *scheduler;
    struct step_plan plans[MAX_STEPS];
    struct sample_result results[MAX_SEQS];
    struct scheduler_output outputs[MAX_SEQS];
    int32_t n_lanes, n_stages;
    int32_t n_made, n_applied;
    int32_t n_left; /* requests not finished */
    int32_t max_seqs;
    double median; /* of prompts and completions */
};

static void load_open(struct load *l, int32_t n_lanes, int32_t n_stages, int32_t max_seqs,
                      int32_t stripe)
{
    const struct scheduler_config config = {
        .max_seqs = max_seqs,
        .max_rows = 512,
        .max_model_len = MAX_LEN,
        .max_waiting = N_REQUESTS,
        .n_lanes = n_lanes,
        .blocks_per_lane = max_seqs * MAX_LEN / PLAN_BLOCK_TOKENS,
        .stripe = stripe,
        .n_vocab = 10,
        .max_steps = n_stages > 1 ? n_stages + 1 : 1,
        .n_stages = n_stages,
    };
    const struct step_limits limits = {
        .max_seqs = MAX_SEQS,
        .max_rows = 512,
        .max_logits = MAX_SEQS,
        .max_blocks = MAX_SEQS * MAX_LEN / PLAN_BLOCK_TOKENS,
        .n_lanes = n_lanes,
        .n_vocab = 10,
        .blocks_per_lane = config.blocks_per_lane,
    };
    memset(l, 0, sizeof *l);
    l->n_lanes = n_lanes;
    l->n_stages = n_stages;
    l->max_seqs = max_seqs;
    l->median = max_seqs == MAX_SEQS ? 100 : 400;
    assert_status_ok(scheduler_new(&config, &l->scheduler));
    for (int i = 0; i < MAX_STEPS; i++) {
        assert_status_ok(step_plan_init(&l->plans[i], &limits));
    }
    for (int i = 0; i < MAX_SEQS; i++) {
        l->results[i] = (struct sample_result){.id = 1};
    }
}

static void load_close(struct load *l)
{
    for (int i = 0; i < MAX_STEPS; i++) {
        step_plan_destroy(&l->plans[i]);
    }
    scheduler_free(l->scheduler);
}

static int32_t lognormal(double median, double sigma)
{
    const double u = test_random_double(1e-9, 1);
    const double v = test_random_double(0, 1);
    const double z = sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
    const double n = median * exp(sigma * z);
    const int32_t most = MAX_LEN / 2 - 1;
    return n < 1 ? 1 : n > most ? most : (int32_t)n;
}

static void submit(struct load *l, uint64_t id)
{
    int32_t tokens[MAX_LEN];
    const int32_t n = lognormal(1.2 * l->median, 0.9);
    for (int32_t i = 0; i < n; i++) {
        tokens[i] = (int32_t)test_random_below(10);
    }
    const struct scheduler_request request = {
        .seq_id = id,
        .tokens = tokens,
        .n_tokens = n,
        .max_tokens = lognormal(l->median, 0.9),
        .top_p = 1,
        .repetition = 1,
        .n_prompt_top = -1,
        .n_top = -1,
    };
    assert_status_ok(scheduler_submit(l->scheduler, &request));
    l->n_left++;
}

static void apply(struct load *l)
{
    const struct step_plan *plan = &l->plans[l->n_applied++ % MAX_STEPS];
    const int32_t n = scheduler_apply(l->scheduler, plan, l->results, l->outputs);
    for (int32_t i = 0; i < n; i++) {
        l->n_left -= l->outputs[i].finish != SCHEDULER_GOES_ON;
    }
}

/* Most tokens of a lane over the mean, in the sequences of the plan. */
static double lane_imbalance(const struct load *l, const struct step_plan *plan)
{
    int64_t tokens[MAX_LANES] = {0};
    int64_t sum = 0;
    int64_t most = 0;
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *seq = &plan->seqs[i];
        tokens[seq->lane] += seq->n_computed + seq->n_tokens;
    }
    for (int32_t lane = 0; lane < l->n_lanes; lane++) {
        sum += tokens[lane];
        most = tokens[lane] > most ? tokens[lane] : most;
    }
    return (double)most * l->n_lanes / (double)sum;
}

/* Keeps the scheduler full; the mean over the steps that have at least 64 sequences. */
static void test_scheduler_lanes_are_even_by_tokens(void **state)
{
    (void)state;
    static const int32_t lanes[] = {2, 3, 4, 8};
    for (size_t i = 0; i < sizeof lanes / sizeof lanes[0]; i++) {
        struct load l;
        double sum = 0;
        int32_t n = 0;
        load_open(&l, lanes[i], 1, MAX_SEQS, 1);
        for (uint64_t id = 0; id < N_REQUESTS; id++) {
            submit(&l, id);
        }
        while (l.n_left > 0) {
            struct step_plan *plan = &l.plans[l.n_made++ % MAX_STEPS];
            assert_true(scheduler_schedule(l.scheduler, plan) > 0);
            if (plan->n_seqs >= 64) {
                sum += lane_imbalance(&l, plan);
                n++;
            }
            apply(&l);
        }
        assert_true(n > 200);
        print_message("%d lanes: max / mean %.3f over %d steps\n", lanes[i], sum / n, n);
        assert_true(sum / n <= 1.15);
        load_close(&l);
    }
}

/* Most blocks of a place in the stripe over the mean, in the sequences of the plan. */
static double stripe_imbalance(const struct step_plan *plan, int32_t stripe)
{
    int64_t blocks[MAX_STRIPE] = {0};
    int64_t most = 0;
    for (int32_t i = 0; i < plan->n_blocks; i++) {
        const int64_t n = ++blocks[plan->blocks[i] % stripe];
        most = n > most ? n : most;
    }
    return (double)most * stripe / plan->n_blocks;
}

/* Few long sequences, as placement token is for, coming and going: their blocks are even over the ranks that share a head. */
static void test_scheduler_blocks_go_round_the_stripe(void **state)
{
    (void)state;
    static const int32_t stripes[] = {3, 8};
    for (size_t i = 0; i < sizeof stripes / sizeof stripes[0]; i++) {
        struct load l;
        double sum = 0;
        int32_t n = 0;
        load_open(&l, 1, 1, 4, stripes[i]);
        for (uint64_t id = 0; id < 60; id++) {
            submit(&l, id);
        }
        while (l.n_left > 0) {
            struct step_plan *plan = &l.plans[l.n_made++ % MAX_STEPS];
            assert_true(scheduler_schedule(l.scheduler, plan) > 0);
            if (plan->n_blocks >= 64) {
                sum += stripe_imbalance(plan, stripes[i]);
                n++;
            }
            apply(&l);
        }
        assert_true(n > 200);
        print_message("stripes of %d: max / mean %.3f over %d steps\n", stripes[i], sum / n, n);
        assert_true(sum / n <= 1.15);
        load_close(&l);
    }
}

/* Stages: a step has its share of the sequences, and none with a token that is not drawn by the time the step begins. */
static void check_share(const struct load *l, uint64_t last[N_REQUESTS],
                        const struct step_plan *plan)
{
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *seq = &plan->seqs[i];
        uint64_t *const drawn_in = &last[seq->seq_id];
        if (plan->tokens[seq->first_row] < 0) {
            assert_true(plan->step >= *drawn_in + (uint64_t)l->n_stages);
        }
        if (seq->n_logits == 1) {
            *drawn_in = plan->step;
        }
    }
}

/* As many steps under way as there are stages, and one that waits: rows are about equal, and no more than a step's share. */
static void test_scheduler_keeps_stages_busy(void **state)
{
    (void)state;
    for (int32_t n_stages = 2; n_stages <= 5; n_stages++) {
        static uint64_t last[N_REQUESTS];
        struct load l;
        int64_t n_full = 0;
        int64_t n_seen = 0;
        load_open(&l, 2, n_stages, MAX_SEQS, 1);
        for (uint64_t id = 0; id < N_REQUESTS; id++) {
            submit(&l, id);
        }
        while (l.n_left > 0) {
            struct step_plan *plan = &l.plans[l.n_made % MAX_STEPS];
            if (l.n_made - l.n_applied <= n_stages && scheduler_schedule(l.scheduler, plan) > 0) {
                l.n_made++;
                assert_true(plan->n_rows <= (512 + n_stages - 1) / n_stages);
                assert_true(plan->n_seqs <= (MAX_SEQS + n_stages - 1) / n_stages + 8);
                check_share(&l, last, plan);
                assert_status_ok(scheduler_check(l.scheduler));
                continue;
            }
            if (l.n_left > MAX_SEQS) { // else the end is near, and there is less to do
                n_full += l.n_made - l.n_applied == n_stages + 1;
                n_seen++;
            }
            apply(&l);
        }
        print_message("%d stages: all busy in %lld of %lld steps\n", n_stages, (long long)n_full,
                      (long long)n_seen);
        assert_true(n_seen > 100 && n_full * 100 >= n_seen * 95);
        load_close(&l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_lanes_are_even_by_tokens),
        cmocka_unit_test(test_scheduler_blocks_go_round_the_stripe),
        cmocka_unit_test(test_scheduler_keeps_stages_busy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

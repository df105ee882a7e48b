/*
 * test_scheduler_deadline.c - sequences with deadlines, steps of any length
 *
 * A simulation whose clock is a number: nothing out of time is in a step that is made later, what is in time ends with all its
 * tokens, and nothing is lost or kept. Plans are made up to four before the first is applied. A failing seed prints itself.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "tests/support/test.h"
#include "worker/scheduler.h"

enum { MAX_SEQS = 6, MAX_LEN = 96, N_REQUESTS = 60, MAX_AHEAD = 4, N_SEEDS = 200 };

struct shadow {
    uint64_t deadline_ns;
    int32_t max_tokens, n_tokens;
    bool ended, late;
};

struct simulation {
    uint64_t random, now_ns;
    struct scheduler *scheduler;
    struct step_plan plans[MAX_AHEAD];
    int32_t max_ahead, n_made, n_applied, n_submitted;
    struct shadow shadows[N_REQUESTS];
};

static int32_t below(struct simulation *sim, int32_t n)
{
    sim->random = sim->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((sim->random >> 33) % (uint64_t)n);
}

static void open_simulation(struct simulation *sim, uint64_t seed)
{
    memset(sim, 0, sizeof *sim);
    sim->random = seed;
    sim->now_ns = 1;
    const struct scheduler_config config = {
        .max_seqs = MAX_SEQS,
        .max_rows = 24,
        .max_model_len = MAX_LEN,
        .max_waiting = N_REQUESTS,
        .n_lanes = 1 + below(sim, 3),
        .blocks_per_lane = 8, // so few that some are preempted
        .n_vocab = 10,
        .max_steps = 1 + below(sim, MAX_AHEAD),
        .prefix_caching = below(sim, 2) == 0,
    };
    const struct step_limits limits = {.max_seqs = MAX_SEQS,
                                       .max_rows = 24,
                                       .max_logits = MAX_SEQS,
                                       .max_blocks = MAX_SEQS * MAX_LEN / PLAN_BLOCK_TOKENS,
                                       .n_lanes = config.n_lanes,
                                       .n_vocab = 10,
                                       .blocks_per_lane = 8};
    sim->max_ahead = config.max_steps;
    assert_status_ok(scheduler_new(&config, &sim->scheduler));
    for (int i = 0; i < MAX_AHEAD; i++) {
        assert_status_ok(step_plan_init(&sim->plans[i], &limits));
    }
}

static void close_simulation(struct simulation *sim)
{
    scheduler_free(sim->scheduler);
    for (int i = 0; i < MAX_AHEAD; i++) {
        step_plan_destroy(&sim->plans[i]);
    }
}

static void submit(struct simulation *sim)
{
    struct shadow *shadow = &sim->shadows[sim->n_submitted];
    int32_t tokens[MAX_LEN];
    const int32_t n_prompt = 1 + below(sim, MAX_LEN / 2);
    for (int32_t i = 0; i < n_prompt; i++) {
        tokens[i] = below(sim, 10);
    }
    shadow->max_tokens = 1 + below(sim, MAX_LEN - n_prompt);
    shadow->deadline_ns = below(sim, 3) > 0 ? sim->now_ns + (uint64_t)below(sim, 2000) : 0;
    const struct scheduler_request request = {
        .seq_id = (uint64_t)sim->n_submitted++,
        .tokens = tokens,
        .n_tokens = n_prompt,
        .max_tokens = shadow->max_tokens,
        .priority = below(sim, 3),
        .top_p = 1,
        .n_top = -1,
        .n_prompt_top = -1,
        .repetition = 1,
        .deadline_ns = shadow->deadline_ns,
    };
    assert_status_ok(scheduler_submit(sim->scheduler, &request));
}

/* Two at a time, as often as there are more. */
static void expire(struct simulation *sim)
{
    uint64_t ids[2];
    int32_t n;
    do {
        n = scheduler_expire(sim->scheduler, sim->now_ns, ids, 2);
        for (int32_t i = 0; i < n; i++) {
            struct shadow *shadow = &sim->shadows[ids[i]];
            assert_false(shadow->ended || shadow->late);
            assert_true(shadow->deadline_ns > 0 && shadow->deadline_ns <= sim->now_ns);
            shadow->late = true;
        }
    } while (n == 2);
}

static bool make_step(struct simulation *sim)
{
    struct step_plan *plan = &sim->plans[sim->n_made % MAX_AHEAD];
    if (scheduler_schedule(sim->scheduler, plan) == 0) {
        return false;
    }
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        const struct shadow *shadow = &sim->shadows[plan->seqs[i].seq_id];
        assert_true(shadow->deadline_ns == 0 || shadow->deadline_ns > sim->now_ns);
    }
    static struct sample_row rows[MAX_SEQS];
    static struct sample_token tokens[MAX_SEQS * 64];
    (void)scheduler_sample_rows(sim->scheduler, plan, rows, tokens);
    sim->n_made++;
    return true;
}

static void apply_step(struct simulation *sim)
{
    struct sample_result results[MAX_SEQS] = {{.id = 0}};
    struct scheduler_output outputs[MAX_SEQS];
    const struct step_plan *plan = &sim->plans[sim->n_applied++ % MAX_AHEAD];
    const int32_t n = scheduler_apply(sim->scheduler, plan, results, outputs);
    for (int32_t i = 0; i < n; i++) {
        struct shadow *shadow = &sim->shadows[outputs[i].seq_id];
        assert_false(shadow->ended || shadow->late); // nothing comes out of what is gone
        shadow->n_tokens += outputs[i].result != NULL ? 1 : 0;
        shadow->ended = outputs[i].finish != SCHEDULER_GOES_ON;
    }
}

/* False when there was nothing to do. */
static bool act(struct simulation *sim)
{
    const int32_t n_ahead = sim->n_made - sim->n_applied;
    sim->now_ns += (uint64_t)below(sim, 40);
    if (sim->n_submitted < N_REQUESTS && below(sim, 3) == 0) {
        submit(sim);
        return true;
    }
    expire(sim);
    const bool made = n_ahead < sim->max_ahead && below(sim, 3) > 0 && make_step(sim);
    if (!made && n_ahead > 0) {
        apply_step(sim);
    }
    assert_status_ok(scheduler_check(sim->scheduler));
    return made || n_ahead > 0 || sim->n_submitted < N_REQUESTS;
}

static void simulate(uint64_t seed, int32_t *n_late, int32_t *n_ended)
{
    struct simulation sim;
    open_simulation(&sim, seed);
    for (int32_t n_idle = 0; n_idle < 50;) {
        n_idle = act(&sim) ? 0 : n_idle + 1;
    }
    for (int32_t i = 0; i < N_REQUESTS; i++) {
        const struct shadow *shadow = &sim.shadows[i];
        assert_true(shadow->late != shadow->ended);
        assert_true(!shadow->ended || shadow->n_tokens == shadow->max_tokens);
        *n_late += shadow->late;
        *n_ended += shadow->ended;
    }
    const struct scheduler_load load = scheduler_load(sim.scheduler);
    assert_int_equal(load.n_running + load.n_waiting, 0);
    assert_int_equal(load.blocks_used, 0);
    close_simulation(&sim);
}

static uint64_t current_seed;

static int print_seed(void **state)
{
    (void)state;
    fprintf(stderr, "the last seed was %llu\n", (unsigned long long)current_seed);
    return 0;
}

static void test_scheduler_expires_what_is_late(void **state)
{
    (void)state;
    const char *seed = getenv("KVASIR_SCHEDULER_SEED");
    const uint64_t first = seed != NULL ? strtoull(seed, NULL, 10) : 0;
    const uint64_t n_seeds = seed != NULL ? 1 : N_SEEDS;
    int32_t n_late = 0, n_ended = 0;
    for (current_seed = first; current_seed < first + n_seeds; current_seed++) {
        simulate(current_seed, &n_late, &n_ended);
    }
    assert_true(seed != NULL || (n_late > N_SEEDS && n_ended > N_SEEDS));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_scheduler_expires_what_is_late, print_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

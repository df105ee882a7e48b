/*
 * test_scheduler.c - deterministic simulation of the scheduler against a shadow KV cache
 *
 * The "model" is a function of a sequence's tokens alone. The shadow cache records which sequence's token
 * each (lane, block, offset) holds, as the kernels would write it, and every step checks that what a sequence would
 * read back is its own. So a lost block, a block lent twice or a wrong recompute shows as a wrong token.
 */
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "tests/support/test.h"

#include "worker/scheduler.h"
#include <math.h>

enum { N_VOCAB = 97, MAX_REQUESTS = 200, MAX_LEN = 160 };

struct shadow_request {
    struct scheduler_request request;
    int32_t tokens[MAX_LEN]; /* prompt and what came out so far */
    int32_t n_tokens;
    int32_t n_prompt;
    int32_t stop_id;
    bool cancelled, finished;
};

struct simulation {
    struct scheduler *scheduler;
    struct scheduler_config config;
    struct step_plan plan;
    struct shadow_request requests[MAX_REQUESTS];
    int32_t n_requests;
    uint64_t *cache; /* [n_lanes][blocks_per_lane][PLAN_BLOCK_TOKENS]: seq_id << 32 | token */
};

static int32_t model(uint64_t seed, const int32_t *tokens, int32_t n)
{
    uint64_t h = seed * 0x9e3779b97f4a7c15u + 1;
    for (int32_t i = 0; i < n; i++) {
        h = (h ^ (uint64_t)tokens[i]) * 0x100000001b3u;
        h ^= h >> 29;
    }
    return (int32_t)(h % N_VOCAB);
}

static uint64_t *cell(struct simulation *sim, const struct step_seq *seq, int32_t position)
{
    const int32_t block = sim->plan.blocks[seq->first_block + position / PLAN_BLOCK_TOKENS];
    assert_true(block >= 0 && block < sim->config.blocks_per_lane);
    const int64_t at = (int64_t)seq->lane * sim->config.blocks_per_lane + block;
    return &sim->cache[at * PLAN_BLOCK_TOKENS + position % PLAN_BLOCK_TOKENS];
}

static uint64_t mark(uint64_t seq_id, int32_t token)
{
    return seq_id << 32 | (uint32_t)token;
}

static void check_step(struct simulation *sim)
{
    int32_t row = 0;
    for (int32_t i = 0; i < sim->plan.n_seqs; i++) {
        const struct step_seq *seq = &sim->plan.seqs[i];
        assert_true(i == 0 || sim->plan.seqs[i - 1].lane <= seq->lane);
        assert_int_equal(seq->first_row, row);
        row += seq->n_tokens;
        const struct shadow_request *shadow = &sim->requests[seq->seq_id];
        assert_false(shadow->finished || shadow->cancelled);
        for (int32_t p = 0; p < seq->n_computed; p++) {
            assert_true(*cell(sim, seq, p) == mark(seq->seq_id, shadow->tokens[p]));
        }
        for (int32_t t = 0; t < seq->n_tokens; t++) {
            const int32_t position = seq->n_computed + t;
            assert_int_equal(sim->plan.tokens[seq->first_row + t], shadow->tokens[position]);
            assert_int_equal(sim->plan.positions[seq->first_row + t], position);
            *cell(sim, seq, position) = mark(seq->seq_id, shadow->tokens[position]);
        }
        assert_int_equal(seq->wants_logits, seq->n_computed + seq->n_tokens == shadow->n_tokens);
    }
    assert_int_equal(row, sim->plan.n_rows);
    assert_true(row <= sim->config.max_rows);
}

static void take_output(struct simulation *sim, const struct scheduler_output *output)
{
    struct shadow_request *shadow = &sim->requests[output->seq_id];
    assert_int_equal(output->position,
                     shadow->n_tokens - shadow->n_prompt); // none lost, none repeated
    shadow->tokens[shadow->n_tokens++] = output->result->id;
    const int32_t generated = shadow->n_tokens - shadow->n_prompt;
    int want = SCHEDULER_GOES_ON;
    if (output->result->id == shadow->stop_id) {
        want = SCHEDULER_STOP;
    } else if (generated == shadow->request.max_tokens) {
        want = SCHEDULER_LENGTH;
    }
    assert_int_equal(output->finish, want);
    shadow->finished = want != SCHEDULER_GOES_ON;
}

static void run_step(struct simulation *sim)
{
    struct sample_row rows[64];
    struct sample_result results[64];
    struct scheduler_output outputs[64];
    struct sample_token tokens[64 * SCHEDULER_MAX_STOP_IDS];
    check_step(sim);
    memset(results, 0, sizeof results);
    scheduler_sample_rows(sim->scheduler, &sim->plan, rows, tokens);
    int32_t n = 0;
    for (int32_t i = 0; i < sim->plan.n_seqs; i++) {
        if (sim->plan.seqs[i].wants_logits) {
            const struct shadow_request *shadow = &sim->requests[sim->plan.seqs[i].seq_id];
            assert_int_equal(rows[n].logits, n * N_VOCAB);
            assert_int_equal(rows[n].position, shadow->n_tokens - shadow->n_prompt);
            assert_true(rows[n].seed == shadow->request.seed);
            results[n++].id = model(shadow->request.seed, shadow->tokens, shadow->n_tokens);
        }
    }
    assert_int_equal(n, sim->plan.n_logits);
    assert_int_equal(scheduler_apply(sim->scheduler, &sim->plan, results, outputs), n);
    for (int32_t i = 0; i < n; i++) {
        take_output(sim, &outputs[i]);
    }
}

static void submit_random(struct simulation *sim)
{
    struct shadow_request *shadow = &sim->requests[sim->n_requests];
    const int32_t max_len = sim->config.max_model_len;
    shadow->n_prompt = 1 + (int32_t)test_random_below((uint64_t)max_len / 2);
    shadow->n_tokens = shadow->n_prompt;
    for (int32_t i = 0; i < shadow->n_prompt; i++) {
        shadow->tokens[i] = (int32_t)test_random_below(N_VOCAB);
    }
    shadow->stop_id = (int32_t)test_random_below(N_VOCAB);
    shadow->request = (struct scheduler_request){
        .seq_id = (uint64_t)sim->n_requests,
        .tokens = shadow->tokens,
        .n_tokens = shadow->n_tokens,
        .max_tokens = 1 + (int32_t)test_random_below((uint64_t)(max_len - shadow->n_prompt)),
        .stop_ids = &shadow->stop_id,
        .n_stop_ids = 1,
        .priority = (int32_t)test_random_below(3),
        .temperature = 1,
        .top_p = 1,
        .seed = test_random_u64(),
        .n_top = -1,
    };
    assert_status_ok(scheduler_submit(sim->scheduler, &shadow->request));
    sim->n_requests++;
}

static void cancel_random(struct simulation *sim)
{
    const uint64_t id = test_random_below((uint64_t)sim->n_requests);
    struct shadow_request *shadow = &sim->requests[id];
    const bool known = scheduler_cancel(sim->scheduler, id);
    assert_int_equal(known, !shadow->finished && !shadow->cancelled);
    shadow->cancelled = shadow->cancelled || known;
}

static void simulation_open(struct simulation *sim)
{
    const int32_t max_seqs = 1 + (int32_t)test_random_below(12);
    const int32_t max_len = 20 + (int32_t)test_random_below(MAX_LEN - 20);
    const int64_t least = (max_len + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    memset(sim, 0, sizeof *sim);
    sim->config = (struct scheduler_config){
        .max_seqs = max_seqs,
        .max_rows = max_seqs + (int32_t)test_random_below(40),
        .max_model_len = max_len,
        .max_waiting = MAX_REQUESTS,
        .n_lanes = 1 + (int32_t)test_random_below(4),
        .blocks_per_lane = least + (int64_t)test_random_below(8), // tight: preemptions happen
        .n_vocab = N_VOCAB,
    };
    const struct step_limits limits = {.max_seqs = max_seqs,
                                       .max_rows = sim->config.max_rows,
                                       .max_blocks = max_seqs * (int32_t)least,
                                       .n_lanes = sim->config.n_lanes,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = sim->config.blocks_per_lane};
    assert_status_ok(scheduler_new(&sim->config, &sim->scheduler));
    assert_status_ok(step_plan_init(&sim->plan, &limits));
    const size_t n_cells =
        (size_t)sim->config.n_lanes * (size_t)sim->config.blocks_per_lane * PLAN_BLOCK_TOKENS;
    sim->cache = calloc(n_cells, sizeof *sim->cache);
    assert_non_null(sim->cache);
}

static void test_scheduler_random_schedules(void **state)
{
    (void)state;
    struct simulation *sim = malloc(sizeof *sim);
    assert_non_null(sim);
    uint64_t preemptions = 0;
    for (int round = 0; round < 150; round++) {
        simulation_open(sim);
        const int32_t n_requests = 1 + (int32_t)test_random_below(40);
        for (int steps = 0;; steps++) {
            assert_true(steps < 100000); // everything ends
            while (sim->n_requests < n_requests && test_random_below(3) == 0) {
                submit_random(sim);
            }
            if (sim->n_requests > 0 && test_random_below(50) == 0) {
                cancel_random(sim);
            }
            const int32_t n_rows = scheduler_schedule(sim->scheduler, &sim->plan);
            if (n_rows > 0) {
                run_step(sim);
            } else if (sim->n_requests == n_requests) {
                break;
            }
            assert_status_ok(scheduler_check(sim->scheduler));
        }
        for (int32_t i = 0; i < sim->n_requests; i++) {
            assert_true(sim->requests[i].finished || sim->requests[i].cancelled);
        }
        const struct scheduler_load load = scheduler_load(sim->scheduler);
        assert_int_equal(load.blocks_used, 0);
        assert_int_equal(load.n_running + load.n_waiting, 0);
        preemptions += load.n_preemptions;
        scheduler_free(sim->scheduler);
        step_plan_destroy(&sim->plan);
        free(sim->cache);
    }
    assert_true(preemptions > 100); // the simulation does reach the hard case
    free(sim);
}

static struct scheduler_config small_config(void)
{
    return (struct scheduler_config){.max_seqs = 4,
                                     .max_rows = 16,
                                     .max_model_len = 64,
                                     .max_waiting = 3,
                                     .n_lanes = 1,
                                     .blocks_per_lane = 8,
                                     .n_vocab = N_VOCAB};
}

static struct scheduler_request small_request(uint64_t id, const int32_t *tokens, int32_t n)
{
    return (struct scheduler_request){.seq_id = id,
                                      .tokens = tokens,
                                      .n_tokens = n,
                                      .max_tokens = 8,
                                      .temperature = 0,
                                      .top_p = 1,
                                      .n_top = -1};
}

static void test_scheduler_refuses_bad_requests(void **state)
{
    (void)state;
    struct scheduler *s = NULL;
    const struct scheduler_config config = small_config();
    assert_status_ok(scheduler_new(&config, &s));
    const int32_t tokens[64] = {1, 2, 3, [40] = N_VOCAB, [41] = -1};
    struct scheduler_request r = small_request(1, tokens, 57);
    assert_status_says(scheduler_submit(s, &r), STATUS_INVALID_ARGUMENT, "tokens[40]");
    r = small_request(1, tokens + 41, 2);
    assert_status_says(scheduler_submit(s, &r), STATUS_INVALID_ARGUMENT, "tokens[0]: id -1");
    r = small_request(1, tokens, 0);
    assert_status_code(scheduler_submit(s, &r), STATUS_INVALID_ARGUMENT);
    r = small_request(1, tokens, 30);
    r.max_tokens = 35;
    assert_status_says(scheduler_submit(s, &r), STATUS_INVALID_ARGUMENT, "65");
    r.max_tokens = 34;
    assert_status_ok(scheduler_submit(s, &r));
    assert_status_code(scheduler_submit(s, &r), STATUS_ALREADY_EXISTS);
    r.seq_id = 2;
    assert_status_ok(scheduler_submit(s, &r));
    r.seq_id = 3;
    assert_status_ok(scheduler_submit(s, &r));
    r.seq_id = 4;
    assert_status_says(scheduler_submit(s, &r), STATUS_RESOURCE_EXHAUSTED, "limit is 3");
    scheduler_free(s);
}

static void test_scheduler_refuses_bad_configs(void **state)
{
    (void)state;
    struct scheduler *s = NULL;
    struct scheduler_config config = small_config();
    config.max_rows = 3;
    assert_status_says(scheduler_new(&config, &s), STATUS_FAILED_PRECONDITION,
                       "max-num-batched-tokens");
    config = small_config();
    config.max_model_len = 8 * PLAN_BLOCK_TOKENS + 1;
    assert_status_says(scheduler_new(&config, &s), STATUS_FAILED_PRECONDITION, "9 KV blocks");
}

/* A resumed sequence keeps counting where it was: positions and the length limit include what was generated. */
static void test_scheduler_resumes_at_position(void **state)
{
    (void)state;
    struct scheduler *s = NULL;
    const struct scheduler_config config = small_config();
    const struct step_limits limits = {.max_seqs = 4,
                                       .max_rows = 16,
                                       .max_blocks = 16,
                                       .n_lanes = 1,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = 8};
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    assert_status_ok(scheduler_new(&config, &s));
    const int32_t tokens[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    struct scheduler_request r = small_request(7, tokens, 10);
    r.n_generated = 6;
    assert_status_ok(scheduler_submit(s, &r));
    for (int32_t want = 6; want < 8; want++) {
        struct sample_row row;
        struct sample_result result = {.id = 50};
        struct scheduler_output output;
        assert_int_equal(scheduler_schedule(s, &plan), want == 6 ? 10 : 1);
        assert_int_equal(scheduler_sample_rows(s, &plan, &row, NULL), 0);
        assert_int_equal(row.position, want);
        assert_int_equal(scheduler_apply(s, &plan, &result, &output), 1);
        assert_int_equal(output.position, want);
        assert_int_equal(output.finish, want == 7 ? SCHEDULER_LENGTH : SCHEDULER_GOES_ON);
    }
    assert_int_equal(scheduler_schedule(s, &plan), 0);
    step_plan_destroy(&plan);
    scheduler_free(s);
}

/* Until min_tokens are there the stop ids are out, and a NaN row ends its sequence alone. */
static void test_scheduler_bans_stops_and_isolates_nan(void **state)
{
    (void)state;
    struct scheduler *s = NULL;
    const struct scheduler_config config = small_config();
    const struct step_limits limits = {.max_seqs = 4,
                                       .max_rows = 16,
                                       .max_blocks = 16,
                                       .n_lanes = 1,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = 8};
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    assert_status_ok(scheduler_new(&config, &s));
    const int32_t tokens[2] = {1, 2}, stops[2] = {5, 6};
    struct scheduler_request r = small_request(1, tokens, 2);
    r.min_tokens = 1;
    r.stop_ids = stops;
    r.n_stop_ids = 2;
    assert_status_ok(scheduler_submit(s, &r));
    r.seq_id = 2;
    assert_status_ok(scheduler_submit(s, &r));
    struct sample_token row_tokens[2 * SCHEDULER_MAX_STOP_IDS];
    struct sample_row rows[2];
    struct sample_result results[2] = {{.id = -1, .nan = 1}, {.id = 9}};
    struct scheduler_output outputs[2];
    assert_int_equal(scheduler_schedule(s, &plan), 4);
    assert_int_equal(scheduler_sample_rows(s, &plan, rows, row_tokens), 4);
    assert_int_equal(rows[1].first_token, 2);
    assert_int_equal(rows[1].n_tokens, 2);
    assert_int_equal(row_tokens[3].id, 6);
    assert_true(row_tokens[3].bias == -INFINITY);
    assert_int_equal(scheduler_apply(s, &plan, results, outputs), 2);
    assert_int_equal(outputs[0].finish, SCHEDULER_ERROR);
    assert_int_equal(outputs[1].finish, SCHEDULER_GOES_ON);
    assert_int_equal(scheduler_schedule(s, &plan), 1);
    assert_int_equal(scheduler_sample_rows(s, &plan, rows, row_tokens), 0);
    assert_int_equal(rows[0].n_tokens, 0);
    assert_int_equal(scheduler_load(s).n_running, 1);
    step_plan_destroy(&plan);
    scheduler_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_random_schedules),
        cmocka_unit_test(test_scheduler_refuses_bad_requests),
        cmocka_unit_test(test_scheduler_refuses_bad_configs),
        cmocka_unit_test(test_scheduler_resumes_at_position),
        cmocka_unit_test(test_scheduler_bans_stops_and_isolates_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

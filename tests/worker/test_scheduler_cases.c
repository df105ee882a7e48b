/*
 * test_scheduler_cases.c - what the scheduler refuses, and single cases the simulation of test_scheduler.c does not look at
 */
#include "tests/support/test.h"

#include <math.h>
#include <string.h>

#include "parallel/plan.h"
#include "worker/block_pool.h"
#include "worker/scheduler.h"

enum { N_VOCAB = 97 };

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
                                      .repetition = 1,
                                      .n_prompt_top = -1,
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
    struct scheduler_request bad = r;
    bad.repetition = 0;
    assert_status_says(scheduler_submit(s, &bad), STATUS_INVALID_ARGUMENT, "out of range");
    bad = r;
    bad.frequency = NAN;
    assert_status_says(scheduler_submit(s, &bad), STATUS_INVALID_ARGUMENT, "out of range");
    bad = r;
    bad.n_prompt_top = 0;
    bad.n_generated = 1;
    assert_status_says(scheduler_submit(s, &bad), STATUS_INVALID_ARGUMENT, "1 tokens generated");
    const struct sample_bias bias[2] = {{.id = 1, .bias = 2}, {.id = N_VOCAB, .bias = 2}};
    bad = r;
    bad.bias = bias;
    bad.n_bias = 2;
    assert_status_says(scheduler_submit(s, &bad), STATUS_INVALID_ARGUMENT,
                       "logit_bias[1]: 2 to id 97");
    const int32_t allowed[2] = {4, -1};
    bad = r;
    bad.allowed = allowed;
    bad.n_allowed = 2;
    assert_status_says(scheduler_submit(s, &bad), STATUS_INVALID_ARGUMENT,
                       "allowed_token_ids[1]: id -1");
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
                                       .max_logits = 4,
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

/* Lists that have grown beyond what a step takes: the newest sequence makes room, and comes back. */
static void test_scheduler_makes_room_for_lists(void **state)
{
    (void)state;

    enum { VOCAB = 300, TOKENS = 200, PROMPT = 12 };

    struct scheduler *s = NULL;
    struct scheduler_config config = small_config();
    config.n_vocab = config.max_sample_tokens = VOCAB;
    config.max_model_len = 16 * PLAN_BLOCK_TOKENS;
    config.blocks_per_lane = 64;
    config.max_rows = 256;
    const struct step_limits limits = {.max_seqs = 4,
                                       .max_logits = 4,
                                       .max_rows = 256,
                                       .max_blocks = 64,
                                       .n_lanes = 1,
                                       .n_vocab = VOCAB,
                                       .blocks_per_lane = 64};
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    assert_status_ok(scheduler_new(&config, &s));
    int32_t tokens[PROMPT];
    for (int32_t i = 0; i < PROMPT; i++) {
        tokens[i] = i;
    }
    for (uint64_t id = 0; id < 2; id++) {
        struct scheduler_request r = small_request(id, tokens, PROMPT);
        r.repetition = 1.2f;
        r.max_tokens = TOKENS;
        assert_status_ok(scheduler_submit(s, &r));
    }
    int32_t n_steps = 0;
    int32_t n_of[2] = {0};
    for (; n_of[0] < TOKENS || n_of[1] < TOKENS; n_steps++) {
        struct sample_row rows[4];
        struct sample_token listed[VOCAB];
        struct sample_result results[4] = {{0}};
        struct scheduler_output outputs[4];
        assert_true(scheduler_schedule(s, &plan) > 0 && n_steps < 3 * TOKENS);
        assert_true(scheduler_sample_rows(s, &plan, rows, listed) <= VOCAB);
        for (int32_t i = 0; i < plan.n_seqs; i++) { // another id each time
            results[i].id = PROMPT + n_of[plan.seqs[i].seq_id];
        }
        const int32_t n = scheduler_apply(s, &plan, results, outputs);
        for (int32_t i = 0; i < n; i++) {
            assert_int_equal(outputs[i].position, n_of[outputs[i].seq_id]++);
        }
        assert_status_ok(scheduler_check(s));
    }
    assert_true(n_steps > TOKENS + 10); // not side by side all the time
    assert_int_equal(scheduler_load(s).n_preemptions, 1);
    assert_int_equal(scheduler_load(s).n_running, 0);
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
                                       .max_logits = 4,
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
    struct sample_token row_tokens[2 * N_VOCAB];
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

enum { PREFIX_SEQS = 16, PREFIX_ROWS = 1024, PREFIX_BLOCKS = 64 };

/* A scheduler of two lanes and its plan, for requests of `tokens`. */
struct prefix_fixture {
    struct scheduler *s;
    struct step_plan plan;
    struct scheduler_config config;
    int32_t tokens[64];
};

static void prefix_open(struct prefix_fixture *f)
{
    f->config = small_config();
    f->config.max_seqs = PREFIX_SEQS;
    f->config.max_rows = PREFIX_ROWS;
    f->config.max_waiting = PREFIX_SEQS;
    f->config.n_lanes = 2;
    f->config.blocks_per_lane = PREFIX_BLOCKS;
    f->config.prefix_caching = true;
    const struct step_limits limits = {.max_seqs = PREFIX_SEQS,
                                       .max_logits = PREFIX_SEQS,
                                       .max_rows = PREFIX_ROWS,
                                       .max_blocks = PREFIX_BLOCKS,
                                       .n_lanes = 2,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = PREFIX_BLOCKS};
    assert_status_ok(scheduler_new(&f->config, &f->s));
    assert_status_ok(step_plan_init(&f->plan, &limits));
    for (int32_t i = 0; i < 64; i++) {
        f->tokens[i] = (int32_t)test_random_below(N_VOCAB);
    }
}

static void prefix_close(struct prefix_fixture *f)
{
    assert_status_ok(scheduler_check(f->s));
    step_plan_destroy(&f->plan);
    scheduler_free(f->s);
}

static void prefix_submit(struct prefix_fixture *f, uint64_t id, int32_t n, const char *salt)
{
    struct scheduler_request r = small_request(id, f->tokens, n);
    r.max_tokens = 1;
    r.salt = salt;
    assert_status_ok(scheduler_submit(f->s, &r));
}

static void prefix_apply(struct prefix_fixture *f, struct scheduler_output *outputs)
{
    const struct sample_result results[PREFIX_SEQS] = {{.id = 1}, {.id = 1}, {.id = 1}, {.id = 1}};
    assert_int_equal(scheduler_apply(f->s, &f->plan, results, outputs), f->plan.n_logits);
}

/* Samples of one prompt: the first computes it, the others begin behind it in the very same step. */
static void test_scheduler_shares_prefixes_within_a_step(void **state)
{
    (void)state;
    struct prefix_fixture f;
    struct scheduler_output outputs[4];
    prefix_open(&f);
    for (uint64_t id = 0; id < 3; id++) {
        prefix_submit(&f, id, 40, "");
    }
    assert_int_equal(scheduler_schedule(f.s, &f.plan), 40 + 8 + 8);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(f.plan.seqs[i].lane, f.plan.seqs[0].lane);
        assert_int_equal(f.plan.seqs[i].n_computed, i == 0 ? 0 : 32);
    }
    assert_int_equal(scheduler_load(f.s).blocks_used, 2 + 3);
    assert_status_ok(scheduler_check(f.s));
    prefix_apply(&f, outputs);
    assert_int_equal(outputs[0].n_cached, 0);
    assert_int_equal(outputs[2].n_cached, 32);
    const struct scheduler_load load = scheduler_load(f.s);
    assert_int_equal(load.n_prefix_queries, 120);
    assert_int_equal(load.n_prefix_hits, 64);
    assert_int_equal(load.blocks_used, 0);
    prefix_close(&f);
}

/* A prompt that is there whole still has its last token computed; another salt finds nothing. */
static void test_scheduler_finds_past_prompts(void **state)
{
    (void)state;
    struct prefix_fixture f;
    struct scheduler_output outputs[4];
    prefix_open(&f);
    prefix_submit(&f, 0, 48, "one");
    assert_int_equal(scheduler_schedule(f.s, &f.plan), 48);
    prefix_apply(&f, outputs);
    prefix_submit(&f, 1, 48, "one");
    assert_int_equal(scheduler_schedule(f.s, &f.plan), 16);
    prefix_apply(&f, outputs);
    assert_int_equal(outputs[0].n_cached, 32);
    prefix_submit(&f, 2, 48, "other");
    assert_int_equal(scheduler_schedule(f.s, &f.plan), 48);
    prefix_apply(&f, outputs);
    f.tokens[20]++;
    prefix_submit(&f, 3, 48, "one");
    assert_int_equal(scheduler_schedule(f.s, &f.plan), 32);
    prefix_apply(&f, outputs);
    char salt[BLOCK_POOL_SALT_BYTES + 1];
    memset(salt, 's', sizeof salt - 1);
    salt[sizeof salt - 1] = '\0';
    struct scheduler_request r = small_request(4, f.tokens, 4);
    r.salt = salt;
    assert_status_says(scheduler_submit(f.s, &r), STATUS_INVALID_ARGUMENT, "cache_salt: 128 bytes");
    prefix_close(&f);
}

/* A prefix draws sequences to its lane until the other is much emptier; then both lanes have it. */
static void test_scheduler_spreads_a_hot_prefix(void **state)
{
    (void)state;
    struct prefix_fixture f;
    struct scheduler_output outputs[PREFIX_SEQS];
    prefix_open(&f);
    prefix_submit(&f, 0, 16, "");
    assert_int_equal(scheduler_schedule(f.s, &f.plan), 16);
    prefix_apply(&f, outputs);
    for (int32_t id = 1; id <= PREFIX_SEQS; id++) {
        f.tokens[17] = id; // 16 tokens alike, then a block of its own
        prefix_submit(&f, (uint64_t)id, 32, "");
    }
    (void)scheduler_schedule(f.s, &f.plan);
    assert_int_equal(f.plan.n_seqs, PREFIX_SEQS);
    int32_t n_in_lane[2] = {0, 0};
    int32_t n_computing[2] = {0, 0}; // the prefix
    for (int32_t i = 0; i < PREFIX_SEQS; i++) {
        const struct step_seq *seq = &f.plan.seqs[i];
        n_in_lane[seq->lane]++;
        n_computing[seq->lane] += seq->n_computed == 0;
    }
    assert_true(n_in_lane[0] >= 6 && n_in_lane[1] >= 3);
    assert_int_equal(n_computing[0], 0);
    assert_int_equal(n_computing[1], 1);
    prefix_close(&f);
}

/* Two sequences in a lane that has room for one and three quarters; the second one, the last, is preempted at 48 tokens. */
enum { SWAP_PROMPT = 40, SWAP_TOKENS = 24, SWAP_BLOCKS = 7, SWAP_SLOTS = 4 };

struct swap_fixture {
    struct scheduler *s;
    struct step_plan plan;
    int32_t tokens[SWAP_PROMPT];
    int32_t n_moves[3]; /* of each kind, in all plans */
};

static void swap_open(struct swap_fixture *f, const struct scheduler_config *changes)
{
    struct scheduler_config config = small_config();
    config.max_rows = 64;
    config.blocks_per_lane = changes->blocks_per_lane > 0 ? changes->blocks_per_lane : SWAP_BLOCKS;
    config.max_moves = 2 * SWAP_SLOTS;
    config.host_blocks_per_lane = changes->host_blocks_per_lane;
    config.swap_block_s = changes->swap_block_s;
    config.recompute_token_s = 1;
    config.prefix_caching = changes->prefix_caching;
    const struct step_limits limits = {.max_seqs = 4,
                                       .max_logits = 4,
                                       .max_rows = 64,
                                       .max_blocks = 16,
                                       .max_moves = config.max_moves,
                                       .n_lanes = 1,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = config.blocks_per_lane,
                                       .host_blocks_per_lane = config.host_blocks_per_lane};
    memset(f, 0, sizeof *f);
    assert_status_ok(scheduler_new(&config, &f->s));
    assert_status_ok(step_plan_init(&f->plan, &limits));
}

static void swap_close(struct swap_fixture *f)
{
    assert_status_ok(scheduler_check(f->s));
    assert_int_equal(scheduler_load(f->s).host_blocks_used, 0);
    step_plan_destroy(&f->plan);
    scheduler_free(f->s);
}

/* Ids are all different where nothing is to be shared. */
static void swap_submit(struct swap_fixture *f, uint64_t id, int32_t n, int32_t first_token)
{
    for (int32_t i = 0; i < n; i++) {
        f->tokens[i] = (first_token + i) % N_VOCAB;
    }
    struct scheduler_request r = small_request(id, f->tokens, n);
    r.max_tokens = SWAP_TOKENS;
    assert_status_ok(scheduler_submit(f->s, &r));
}

static void swap_step(struct swap_fixture *f)
{
    struct scheduler_output outputs[4];
    struct sample_result results[4] = {{0}};
    assert_true(scheduler_schedule(f->s, &f->plan) > 0);
    int32_t n = 0;
    for (int32_t i = 0; i < f->plan.n_seqs; i++) { // each draws an id of its own
        results[n].id = 1 + (int32_t)f->plan.seqs[i].seq_id;
        n += f->plan.seqs[i].n_logits;
    }
    for (int32_t i = 0; i < f->plan.n_moves; i++) {
        f->n_moves[f->plan.moves[i].kind]++;
    }
    assert_status_ok(scheduler_check(f->s));
    assert_int_equal(scheduler_apply(f->s, &f->plan, results, outputs), f->plan.n_logits);
}

static void swap_until_preemption(struct swap_fixture *f)
{
    while (scheduler_load(f->s).n_preemptions == 0) {
        swap_step(f);
    }
    assert_int_equal(scheduler_load(f->s).n_running, 1);
}

static void swap_to_the_end(struct swap_fixture *f)
{
    while (scheduler_load(f->s).n_running + scheduler_load(f->s).n_waiting > 0) {
        swap_step(f);
    }
}

/* The sequence goes out, comes back before who came after it, and goes on where it was. */
static void test_scheduler_swaps(void **state)
{
    (void)state;
    struct swap_fixture f;
    swap_open(&f,
              &(struct scheduler_config){.host_blocks_per_lane = SWAP_SLOTS, .swap_block_s = 15});
    swap_submit(&f, 0, SWAP_PROMPT, 0);
    swap_submit(&f, 1, SWAP_PROMPT, 5);
    swap_until_preemption(&f);
    assert_int_equal(f.n_moves[STEP_MOVE_OUT], 3);
    assert_int_equal(scheduler_load(f.s).host_blocks_used, 3);
    swap_submit(&f, 2, 2, 9);
    while (f.n_moves[STEP_MOVE_IN] == 0) {
        for (int32_t i = 0; i < f.plan.n_seqs; i++) {
            assert_int_equal(f.plan.seqs[i].seq_id, 0); // nobody overtakes
        }
        swap_step(&f);
    }
    assert_int_equal(f.n_moves[STEP_MOVE_IN], 3);
    assert_int_equal(f.plan.n_seqs, 2);
    assert_int_equal(f.plan.seqs[0].seq_id, 1);
    assert_int_equal(f.plan.seqs[0].n_computed, 48);
    assert_int_equal(f.plan.seqs[0].n_tokens, 1);
    for (int32_t i = 0; i < 3; i++) {
        assert_int_equal(f.plan.moves[i].to, f.plan.blocks[i]);
    }
    assert_int_equal(f.plan.seqs[1].seq_id, 2);
    swap_to_the_end(&f);
    const struct scheduler_load load = scheduler_load(f.s);
    assert_int_equal(load.n_swapped_out, 3);
    assert_int_equal(load.n_swapped_in, 3);
    assert_int_equal(load.n_recomputed, 0);
    swap_close(&f);
}

/* Where it costs more than 48 tokens do, or slots are missing, all is computed again. */
static void test_scheduler_recomputes_what_does_not_pay(void **state)
{
    (void)state;
    static const struct scheduler_config changes[] = {
        {.host_blocks_per_lane = SWAP_SLOTS, .swap_block_s = 17},
        {.host_blocks_per_lane = 2, .swap_block_s = 1},
        {.host_blocks_per_lane = 0, .swap_block_s = 1},
    };
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        struct swap_fixture f;
        swap_open(&f, &changes[i]);
        swap_submit(&f, 0, SWAP_PROMPT, 0);
        swap_submit(&f, 1, SWAP_PROMPT, 5);
        swap_until_preemption(&f);
        swap_to_the_end(&f);
        assert_int_equal(f.n_moves[STEP_MOVE_OUT] + f.n_moves[STEP_MOVE_IN], 0);
        assert_int_equal(scheduler_load(f.s).n_recomputed, 48);
        swap_close(&f);
    }
}

/* A cancelled one's slots are free at once. */
static void test_scheduler_cancels_swapped(void **state)
{
    (void)state;
    struct swap_fixture f;
    swap_open(&f,
              &(struct scheduler_config){.host_blocks_per_lane = SWAP_SLOTS, .swap_block_s = 1});
    swap_submit(&f, 0, SWAP_PROMPT, 0);
    swap_submit(&f, 1, SWAP_PROMPT, 5);
    swap_until_preemption(&f);
    assert_int_equal(scheduler_load(f.s).host_blocks_used, 3);
    assert_true(scheduler_cancel(f.s, 1));
    assert_int_equal(scheduler_load(f.s).host_blocks_used, 0);
    assert_false(scheduler_cancel(f.s, 1));
    swap_to_the_end(&f);
    assert_int_equal(f.n_moves[STEP_MOVE_IN], 0);
    swap_close(&f);
}

/* Blocks that the other sequence holds too stay where they are. Nobody needed the third one's either: it is found, too. */
static void test_scheduler_swaps_no_shared_blocks(void **state)
{
    (void)state;
    struct swap_fixture f;
    swap_open(&f, &(struct scheduler_config){.host_blocks_per_lane = SWAP_SLOTS,
                                             .swap_block_s = 1,
                                             .blocks_per_lane = 5,
                                             .prefix_caching = true});
    swap_submit(&f, 0, SWAP_PROMPT, 0);
    swap_submit(&f, 1, SWAP_PROMPT, 0);
    swap_until_preemption(&f);
    assert_int_equal(f.n_moves[STEP_MOVE_OUT], 1); // of three
    while (scheduler_load(f.s).n_waiting > 0) {
        swap_step(&f);
    }
    assert_int_equal(f.plan.seqs[0].seq_id, 1);
    assert_int_equal(f.plan.seqs[0].n_computed, 48);
    swap_to_the_end(&f);
    assert_int_equal(f.n_moves[STEP_MOVE_IN], 0);
    assert_int_equal(scheduler_load(f.s).n_recomputed, 0);
    swap_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_refuses_bad_requests),
        cmocka_unit_test(test_scheduler_refuses_bad_configs),
        cmocka_unit_test(test_scheduler_resumes_at_position),
        cmocka_unit_test(test_scheduler_bans_stops_and_isolates_nan),
        cmocka_unit_test(test_scheduler_makes_room_for_lists),
        cmocka_unit_test(test_scheduler_shares_prefixes_within_a_step),
        cmocka_unit_test(test_scheduler_finds_past_prompts),
        cmocka_unit_test(test_scheduler_spreads_a_hot_prefix),
        cmocka_unit_test(test_scheduler_swaps),
        cmocka_unit_test(test_scheduler_recomputes_what_does_not_pay),
        cmocka_unit_test(test_scheduler_cancels_swapped),
        cmocka_unit_test(test_scheduler_swaps_no_shared_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

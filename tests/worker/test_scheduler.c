/*
 * test_scheduler.c - simulation of the scheduler against a shadow KV cache and a sequential model
 *
 * The "model" is a function of a sequence's tokens alone. The shadow cache records what each (lane, block, offset)
 * holds, a hash of its token and all before it and of the salt, as the kernels would write it, and every step checks that what
 * a sequence would read back is what itself would have written. So a lost block, a block lent twice, a wrong recompute or a
 * prefix that is another's shows as a wrong mark. Many requests begin like others. Plans are made up to
 * four before the first is applied, and computed in their order at any time between; slots are kept as the device keeps them.
 *
 * KVASIR_SCHEDULER_SEED=N runs the simulations of one seed, KVASIR_SCHEDULER_SEEDS=N those of N seeds (300).
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "worker/scheduler.h"

enum {
    N_VOCAB = 97,
    MAX_REQUESTS = 200,
    MAX_LEN = 160,
    MAX_SEQS = 13,
    MAX_LOGITS = MAX_SEQS + 12,
    MAX_AHEAD = 4,
    MAX_STOPS = 4
};

struct shadow_request {
    struct scheduler_request request;
    int32_t tokens[MAX_LEN + MAX_AHEAD]; /* prompt, and what the device drew */
    uint64_t marks[MAX_LEN + MAX_AHEAD]; /* what the cache holds for each of them */
    const char *salt;
    int32_t n_drawn; /* of tokens, with the prompt */
    int32_t n_known; /* of them: what came out */
    int32_t n_prompt;
    int32_t n_pending; /* planned to be drawn and not applied */
    int32_t
        n_scored; /* tokens of the prompt whose log probabilities came out, the first one included */
    int32_t stop_ids[MAX_STOPS];
    bool cancelled, finished;
};

/* A plan, what is to be drawn, and what was. */
struct shadow_step {
    struct step_plan plan;
    struct sample_row rows[MAX_LOGITS];
    struct sample_token tokens[MAX_SEQS * N_VOCAB];
    struct sample_result results[MAX_LOGITS];
    int32_t n_known[MAX_SEQS]; /* of each sequence when the plan was made */
    bool drew[MAX_SEQS];
};

struct simulation {
    uint64_t random;
    struct scheduler *scheduler;
    struct scheduler_config config;
    struct shadow_step steps[MAX_AHEAD]; /* a ring: applied <= computed <= made */
    int32_t n_made, n_computed, n_applied;
    struct shadow_request requests[MAX_REQUESTS];
    int32_t n_requests;
    int32_t drawn[MAX_SEQS]; /* by slot */
    uint64_t *cache;         /* [n_lanes][blocks_per_lane][PLAN_BLOCK_TOKENS]: marks */
    int64_t n_dropped;       /* draws for sequences that were gone */
};

/* What a failing test prints. */
static struct {
    uint64_t seed;
    int32_t max_steps;
} current;

static int32_t below(struct simulation *sim, int32_t n)
{
    sim->random = sim->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((sim->random >> 33) % (uint64_t)n);
}

// ---- the model ----

static bool is_banned(int32_t id, const int32_t *banned, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (banned[i] == id) {
            return true;
        }
    }
    return false;
}

/* -1: a row without a distribution, one of some hundreds. */
static int32_t model(uint64_t seed, const int32_t *tokens, int32_t n, const int32_t *banned,
                     int32_t n_banned)
{
    uint64_t h = seed * 0x9e3779b97f4a7c15u + 1;
    for (int32_t i = 0; i < n; i++) {
        h = (h ^ (uint64_t)tokens[i]) * 0x100000001b3u;
        h ^= h >> 29;
    }
    int32_t id = (int32_t)(h % N_VOCAB);
    while (is_banned(id, banned, n_banned)) {
        id = (id + 1) % N_VOCAB;
    }
    return h / N_VOCAB % 600 == 0 ? -1 : id;
}

/* The whole sequence, one token after the other; returns how many tokens there are at its end. */
static int32_t run_alone(const struct shadow_request *shadow, int32_t *tokens)
{
    const struct scheduler_request *r = &shadow->request;
    int32_t n = shadow->n_prompt;
    memcpy(tokens, shadow->tokens, (size_t)n * sizeof *tokens);
    for (;;) {
        const int32_t n_banned = n - shadow->n_prompt < r->min_tokens ? r->n_stop_ids : 0;
        const int32_t id = model(r->seed, tokens, n, shadow->stop_ids, n_banned);
        if (id < 0) {
            return n;
        }
        tokens[n++] = id;
        if (is_banned(id, shadow->stop_ids, r->n_stop_ids) ||
            n - shadow->n_prompt == r->max_tokens) {
            return n;
        }
    }
}

// ---- the device ----

static uint64_t *cell(struct simulation *sim, const struct step_plan *plan,
                      const struct step_seq *seq, int32_t position)
{
    const int32_t block = plan->blocks[seq->first_block + position / PLAN_BLOCK_TOKENS];
    assert_true(block >= 0 && block < sim->config.blocks_per_lane);
    const int64_t at = (int64_t)seq->lane * sim->config.blocks_per_lane + block;
    return &sim->cache[at * PLAN_BLOCK_TOKENS + position % PLAN_BLOCK_TOKENS];
}

/* The token at `at` is known: what it and those before it leave in the cache. */
static void set_mark(struct shadow_request *shadow, int32_t at)
{
    const uint64_t before = at > 0 ? shadow->marks[at - 1] : (uint64_t)shadow->salt[0] + 1;
    uint64_t h = (before ^ (uint64_t)(uint32_t)shadow->tokens[at]) * 0x9e3779b97f4a7c15u;
    shadow->marks[at] = h ^ h >> 32;
}

/* Reads what was computed before, in this step too: keys of all rows are there before any is read. */
static void read_rows(struct simulation *sim, const struct step_plan *plan,
                      const struct step_seq *seq)
{
    const struct shadow_request *shadow = &sim->requests[seq->seq_id];
    for (int32_t p = 0; p < seq->n_computed; p++) {
        assert_true(*cell(sim, plan, seq, p) == shadow->marks[p]);
    }
}

static void compute_rows(struct simulation *sim, const struct step_plan *plan,
                         const struct step_seq *seq)
{
    const struct shadow_request *shadow = &sim->requests[seq->seq_id];
    for (int32_t t = 0; t < seq->n_tokens; t++) {
        const int32_t position = seq->n_computed + t;
        const int32_t named = plan->tokens[seq->first_row + t];
        const int32_t token = named < 0 ? sim->drawn[-1 - named] : named;
        assert_true(position < shadow->n_drawn);
        assert_int_equal(token, shadow->tokens[position]);
        assert_int_equal(plan->positions[seq->first_row + t], position);
        *cell(sim, plan, seq, position) = shadow->marks[position];
    }
}

static bool draws(const struct shadow_request *shadow, const struct step_seq *seq)
{
    return seq->n_computed + seq->n_tokens == shadow->n_drawn;
}

/* Rows of a prompt: the token that comes next, and nothing is drawn. Results carry the place, for take_scored. */
static void score(struct simulation *sim, struct shadow_step *step, const struct step_seq *seq,
                  int32_t n)
{
    const struct shadow_request *shadow = &sim->requests[seq->seq_id];
    const int32_t n_scored = seq->n_logits - (draws(shadow, seq) ? 1 : 0);
    const int32_t first = seq->n_computed + seq->n_tokens - seq->n_logits;
    assert_true(n_scored == 0 || shadow->request.n_prompt_top >= 0);
    for (int32_t i = 0; i < n_scored; i++) {
        const struct sample_row *row = &step->rows[n + i];
        const int32_t place = first + i + 1;
        assert_true(place < shadow->n_prompt);
        assert_int_equal(row->logits, (n + i) * N_VOCAB);
        assert_int_equal(row->forced, 1);
        assert_int_equal(row->forced_id, shadow->tokens[place]);
        assert_int_equal(row->n_top, shadow->request.n_prompt_top);
        assert_int_equal(row->n_tokens, 0);
        assert_int_equal(row->slot, -1);
        assert_int_equal(row->pending_slot, -1);
        step->results[n + i] = (struct sample_result){.id = row->forced_id, .rank = place};
    }
}

/* The listed tokens and the pending one say how often each id was generated, and whether the prompt has it. */
static void check_counts(const struct shadow_request *shadow, const struct sample_row *row,
                         const struct sample_token *tokens)
{
    int32_t n_generated[N_VOCAB] = {0}, listed[N_VOCAB] = {0};
    bool in_prompt[N_VOCAB] = {false};
    const int32_t n_listed = shadow->n_drawn - (row->pending_slot >= 0 ? 1 : 0);
    for (int32_t i = 0; i < n_listed; i++) {
        if (i < shadow->n_prompt) {
            in_prompt[shadow->tokens[i]] = true;
        } else {
            n_generated[shadow->tokens[i]]++;
        }
    }
    for (int32_t i = 0; i < row->n_tokens; i++) {
        assert_int_equal(listed[tokens[i].id]++, 0);
        assert_int_equal(tokens[i].n_generated, n_generated[tokens[i].id]);
        assert_int_equal(tokens[i].in_prompt, in_prompt[tokens[i].id] && row->repetition != 1.0f);
    }
    for (int32_t id = 0; id < N_VOCAB; id++) {
        const bool needed = n_generated[id] > 0 || (in_prompt[id] && row->repetition != 1.0f);
        assert_true(!needed || listed[id] == 1);
    }
}

static void draw(struct simulation *sim, struct shadow_step *step, const struct step_seq *seq,
                 int32_t n)
{
    struct shadow_request *shadow = &sim->requests[seq->seq_id];
    const struct sample_row *row = &step->rows[n];
    int32_t banned[N_VOCAB];
    int32_t n_banned = 0;
    assert_int_equal(row->logits, n * N_VOCAB);
    assert_int_equal(row->forced, 0);
    assert_int_equal(row->position, shadow->n_drawn - shadow->n_prompt);
    assert_true(row->seed == shadow->request.seed);
    // Ends by length are foreseen.
    assert_true(shadow->n_drawn - shadow->n_prompt < shadow->request.max_tokens);
    assert_int_equal(row->slot, seq->slot);
    assert_true(row->pending_slot == -1 || row->pending_slot == seq->slot);
    // What the leader knew, and the pending one, are all that was drawn before.
    assert_int_equal(step->n_known[seq - step->plan.seqs] + (row->pending_slot >= 0),
                     shadow->n_drawn);
    const struct sample_token *tokens = step->tokens + row->first_token;
    for (int32_t i = 0; i < row->n_tokens; i++) {
        if (tokens[i].bias < 0.0f) {
            assert_true(tokens[i].bias == -INFINITY);
            banned[n_banned++] = tokens[i].id;
        }
    }
    if (shadow->request.presence != 0.0f) {
        check_counts(shadow, row, tokens);
    } else {
        assert_true(row->n_tokens <= MAX_STOPS && n_banned == row->n_tokens);
    }
    const int32_t id =
        model(shadow->request.seed, shadow->tokens, shadow->n_drawn, banned, n_banned);
    step->results[n] = (struct sample_result){.id = id, .nan = id < 0};
    sim->drawn[row->slot] = id;
    shadow->tokens[shadow->n_drawn] = id;
    set_mark(shadow, shadow->n_drawn++);
}

static void compute_step(struct simulation *sim)
{
    struct shadow_step *step = &sim->steps[sim->n_computed++ % MAX_AHEAD];
    int32_t n = 0;
    for (int32_t i = 0; i < step->plan.n_seqs; i++) {
        compute_rows(sim, &step->plan, &step->plan.seqs[i]);
    }
    for (int32_t i = 0; i < step->plan.n_seqs; i++) {
        read_rows(sim, &step->plan, &step->plan.seqs[i]);
    }
    for (int32_t i = 0; i < step->plan.n_seqs; i++) {
        const struct step_seq *seq = &step->plan.seqs[i];
        score(sim, step, seq, n);
        n += seq->n_logits;
        step->drew[i] = draws(&sim->requests[seq->seq_id], seq);
        if (step->drew[i]) {
            draw(sim, step, seq, n - 1);
        }
    }
    assert_int_equal(n, step->plan.n_logits);
}

// ---- the leader ----

/* Tokens that are known or pending are computed to the end. */
static int32_t draws_when_planned(const struct shadow_request *shadow, const struct step_seq *seq)
{
    return seq->n_computed + seq->n_tokens == shadow->n_known + shadow->n_pending ? 1 : 0;
}

/* False when there is nothing to do. */
static bool make_step(struct simulation *sim)
{
    struct shadow_step *step = &sim->steps[sim->n_made % MAX_AHEAD];
    const struct step_plan *plan = &step->plan;
    if (scheduler_schedule(sim->scheduler, &step->plan) == 0) {
        return false;
    }
    sim->n_made++;
    int32_t row = 0;
    bool taken[MAX_SEQS] = {false};
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *seq = &plan->seqs[i];
        struct shadow_request *shadow = &sim->requests[seq->seq_id];
        assert_true(i == 0 || plan->seqs[i - 1].lane <= seq->lane);
        assert_int_equal(seq->first_row, row);
        assert_false(shadow->finished || shadow->cancelled);
        assert_true(seq->n_computed > 0 || shadow->n_pending == 0); // admitted when all is known
        assert_false(taken[seq->slot]);
        taken[seq->slot] = true;
        row += seq->n_tokens;
        step->n_known[i] = shadow->n_known;
        shadow->n_pending += draws_when_planned(shadow, seq);
    }
    assert_int_equal(row, plan->n_rows);
    assert_true(row <= sim->config.max_rows);
    assert_true(plan->n_logits <= sim->config.max_logits);
    memset(step->rows, 0x55, sizeof step->rows);
    assert_true(scheduler_sample_rows(sim->scheduler, plan, step->rows, step->tokens) <=
                sim->config.max_sample_tokens);
    return true;
}

/* None lost, none repeated, and all of them before the first token. */
static void take_scored(struct shadow_request *shadow, const struct scheduler_output *output)
{
    assert_true(output->n_scored == 0 || output->first_scored == shadow->n_scored);
    assert_int_equal(output->n_prompt_top, shadow->request.n_prompt_top);
    for (int32_t i = 0; i < output->n_scored; i++) {
        assert_int_equal(output->scored[i].rank, shadow->n_scored);
        assert_int_equal(output->scored[i].id, shadow->tokens[shadow->n_scored]);
        shadow->n_scored++;
    }
    const bool wanted = shadow->request.n_prompt_top >= 0;
    assert_true(output->result == NULL || !wanted || shadow->n_scored == shadow->n_prompt);
}

static void take_output(struct simulation *sim, const struct scheduler_output *output)
{
    struct shadow_request *shadow = &sim->requests[output->seq_id];
    assert_false(shadow->finished || shadow->cancelled);
    assert_int_equal(output->position, shadow->n_known - shadow->n_prompt);
    int want = SCHEDULER_GOES_ON;
    if (output->finish == SCHEDULER_ERROR) {
        assert_null(output->result);
        want = shadow->tokens[shadow->n_known] < 0 ? SCHEDULER_ERROR : SCHEDULER_GOES_ON;
        assert_int_equal(output->finish, want);
        shadow->finished = true;
        return;
    }
    take_scored(shadow, output);
    if (output->result != NULL) {
        const int32_t id = output->result->id;
        assert_int_equal(id, shadow->tokens[shadow->n_known]); // none lost, none repeated
        shadow->n_known++;
        const bool stops = is_banned(id, shadow->stop_ids, shadow->request.n_stop_ids);
        const bool last = shadow->n_known - shadow->n_prompt == shadow->request.max_tokens;
        want = stops ? SCHEDULER_STOP : last ? SCHEDULER_LENGTH : SCHEDULER_GOES_ON;
    }
    assert_int_equal(output->finish, want);
    shadow->finished = want != SCHEDULER_GOES_ON;
}

static void apply_step(struct simulation *sim)
{
    struct scheduler_output outputs[MAX_SEQS];
    const struct shadow_step *step = &sim->steps[sim->n_applied++ % MAX_AHEAD];
    const int32_t n = scheduler_apply(sim->scheduler, &step->plan, step->results, outputs);
    assert_true(n <= step->plan.n_seqs);
    for (int32_t i = 0; i < step->plan.n_seqs; i++) {
        struct shadow_request *shadow = &sim->requests[step->plan.seqs[i].seq_id];
        const int32_t n_drawn = step->drew[i] ? 1 : 0;
        shadow->n_pending -= n_drawn;
        sim->n_dropped += shadow->finished || shadow->cancelled ? n_drawn : 0;
    }
    for (int32_t i = 0; i < n; i++) {
        take_output(sim, &outputs[i]);
    }
}

/* The beginning of what another request has come to so far. */
static void begin_like_another(struct simulation *sim, struct shadow_request *shadow)
{
    const struct shadow_request *other = &sim->requests[below(sim, sim->n_requests)];
    const int32_t most = shadow->n_prompt < other->n_known ? shadow->n_prompt : other->n_known;
    memcpy(shadow->tokens, other->tokens, (size_t)(1 + below(sim, most)) * sizeof *other->tokens);
}

static void submit_random(struct simulation *sim)
{
    struct shadow_request *shadow = &sim->requests[sim->n_requests];
    const int32_t max_len = sim->config.max_model_len;
    shadow->n_prompt = 1 + below(sim, max_len / 2);
    shadow->n_drawn = shadow->n_known = shadow->n_prompt;
    for (int32_t i = 0; i < shadow->n_prompt; i++) {
        shadow->tokens[i] = below(sim, N_VOCAB);
    }
    if (sim->n_requests > 0 && below(sim, 3) > 0) {
        begin_like_another(sim, shadow);
    }
    shadow->salt = below(sim, 4) > 0 ? "" : "another tenant";
    for (int32_t i = 0; i < shadow->n_prompt; i++) {
        set_mark(shadow, i);
    }
    for (int32_t i = 0; i < MAX_STOPS; i++) {
        shadow->stop_ids[i] = below(sim, N_VOCAB);
    }
    shadow->request = (struct scheduler_request){
        .seq_id = (uint64_t)sim->n_requests,
        .tokens = shadow->tokens,
        .n_tokens = shadow->n_prompt,
        .max_tokens = 1 + below(sim, max_len - shadow->n_prompt),
        .min_tokens = below(sim, 3) == 0 ? below(sim, max_len / 2) : 0,
        .stop_ids = shadow->stop_ids,
        .n_stop_ids = below(sim, MAX_STOPS + 1),
        .priority = below(sim, 3),
        .temperature = 1,
        .top_p = 1,
        .seed = sim->random,
        .n_top = -1,
        .salt = shadow->salt,
        .computes_all = below(sim, 8) == 0,
        .repetition = below(sim, 4) == 0 ? 1.5f : 1.0f,
        .presence = 0.5f, // or none, below
        .n_prompt_top = below(sim, 6) == 0 ? below(sim, 4) : -1,
    };
    if (shadow->request.repetition == 1.0f && below(sim, 3) > 0) {
        shadow->request.presence = 0.0f;
    }
    shadow->n_scored = 1;
    assert_status_ok(scheduler_submit(sim->scheduler, &shadow->request));
    sim->n_requests++;
}

static void cancel_random(struct simulation *sim)
{
    const int32_t id = below(sim, sim->n_requests);
    struct shadow_request *shadow = &sim->requests[id];
    const bool known = scheduler_cancel(sim->scheduler, (uint64_t)id);
    assert_int_equal(known, !shadow->finished && !shadow->cancelled);
    shadow->cancelled = shadow->cancelled || known;
}

// ---- a simulation ----

static void simulation_open(struct simulation *sim, uint64_t seed, int32_t max_steps)
{
    memset(sim, 0, sizeof *sim);
    sim->random = seed * 0x9e3779b97f4a7c15u;
    const int32_t max_seqs = 1 + below(sim, MAX_SEQS - 1);
    const int32_t max_len = 20 + below(sim, MAX_LEN - 20);
    const int64_t least = (max_len + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    sim->config = (struct scheduler_config){
        .max_seqs = max_seqs,
        .max_rows = max_seqs + below(sim, 40),
        .max_model_len = max_len,
        .max_waiting = MAX_REQUESTS,
        .n_lanes = 1 + below(sim, 4),
        .blocks_per_lane = least + below(sim, 8), // tight: preemptions happen
        .n_vocab = N_VOCAB,
        .max_steps = max_steps,
        .prefix_caching = below(sim, 3) > 0,
        .max_logits = max_seqs + below(sim, MAX_LOGITS - MAX_SEQS),
        .max_sample_tokens = N_VOCAB + below(sim, 3 * N_VOCAB),
    };
    const struct step_limits limits = {.max_seqs = max_seqs,
                                       .max_logits = sim->config.max_logits,
                                       .max_rows = sim->config.max_rows,
                                       .max_blocks = max_seqs * (int32_t)least,
                                       .n_lanes = sim->config.n_lanes,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = sim->config.blocks_per_lane};
    assert_status_ok(scheduler_new(&sim->config, &sim->scheduler));
    for (int32_t i = 0; i < MAX_AHEAD; i++) {
        assert_status_ok(step_plan_init(&sim->steps[i].plan, &limits));
    }
    const size_t n_cells =
        (size_t)sim->config.n_lanes * (size_t)sim->config.blocks_per_lane * PLAN_BLOCK_TOKENS;
    sim->cache = calloc(n_cells, sizeof *sim->cache);
    assert_non_null(sim->cache);
}

/* Everybody got what a model alone would have given, and nothing is left. */
static void check_end(struct simulation *sim)
{
    for (int32_t i = 0; i < sim->n_requests; i++) {
        const struct shadow_request *shadow = &sim->requests[i];
        int32_t want[MAX_LEN + 1];
        const int32_t n = run_alone(shadow, want);
        assert_true(shadow->finished || shadow->cancelled);
        assert_true(shadow->cancelled ? shadow->n_known <= n : shadow->n_known == n);
        assert_memory_equal(shadow->tokens, want, (size_t)shadow->n_known * sizeof *want);
    }
    const struct scheduler_load load = scheduler_load(sim->scheduler);
    assert_int_equal(load.blocks_used, 0);
    assert_int_equal(load.n_running + load.n_waiting, 0);
}

static void simulation_close(struct simulation *sim)
{
    scheduler_free(sim->scheduler);
    for (int32_t i = 0; i < MAX_AHEAD; i++) {
        step_plan_destroy(&sim->steps[i].plan);
    }
    free(sim->cache);
}

/* One thing after the other, as chance has it: a plan, a step computed, one applied. */
static void simulate(struct simulation *sim)
{
    const int32_t n_requests = 1 + below(sim, 40);
    for (int turns = 0;; turns++) {
        assert_true(turns < 100000); // everything ends
        while (sim->n_requests < n_requests && below(sim, 3) == 0) {
            submit_random(sim);
        }
        if (sim->n_requests > 0 && below(sim, 50) == 0) {
            cancel_random(sim);
        }
        const bool room = sim->n_made - sim->n_applied < sim->config.max_steps;
        const bool made = room && below(sim, 5) > 0 && make_step(sim);
        if (sim->n_computed < sim->n_made && below(sim, 2) == 0) {
            compute_step(sim);
        }
        if (sim->n_applied < sim->n_computed && (!room || below(sim, 2) == 0)) {
            apply_step(sim);
        }
        assert_status_ok(scheduler_check(sim->scheduler));
        const struct scheduler_load load = scheduler_load(sim->scheduler);
        if (!made && sim->n_requests == n_requests && sim->n_applied == sim->n_made &&
            load.n_running + load.n_waiting == 0) {
            return;
        }
    }
}

struct totals {
    uint64_t preemptions, prefix_hits;
    int64_t dropped;
};

static void run_seed(struct simulation *sim, uint64_t seed, int32_t max_steps,
                     struct totals *totals)
{
    current.seed = seed;
    current.max_steps = max_steps;
    simulation_open(sim, seed, max_steps);
    simulate(sim);
    check_end(sim);
    totals->preemptions += scheduler_load(sim->scheduler).n_preemptions;
    totals->prefix_hits += scheduler_load(sim->scheduler).n_prefix_hits;
    totals->dropped += sim->n_dropped;
    simulation_close(sim);
}

static int print_seed(void **state)
{
    (void)state;
    if (current.max_steps > 0) {
        fprintf(stderr, "failed with KVASIR_SCHEDULER_SEED=%llu, %d plans at once\n",
                (unsigned long long)current.seed, current.max_steps);
    }
    return 0;
}

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

static void test_scheduler_random_schedules(void **state)
{
    (void)state;
    struct simulation *sim = malloc(sizeof *sim);
    assert_non_null(sim);
    const uint64_t n_seeds = environment_number("KVASIR_SCHEDULER_SEEDS", 300);
    const uint64_t one = environment_number("KVASIR_SCHEDULER_SEED", 0);
    for (int32_t max_steps = 1; max_steps <= MAX_AHEAD; max_steps++) {
        struct totals totals = {0};
        for (uint64_t seed = one > 0 ? one : 1; seed <= (one > 0 ? one : n_seeds); seed++) {
            run_seed(sim, seed, max_steps, &totals);
        }
        // The simulation does reach the hard cases.
        assert_true(one > 0 || totals.preemptions > n_seeds / 2);
        assert_true(one > 0 || totals.prefix_hits > n_seeds * 4);
        assert_true(one > 0 || totals.dropped > (max_steps > 1 ? (int64_t)n_seeds : 0));
    }
    current.max_steps = 0;
    free(sim);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_scheduler_random_schedules, print_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * test_scheduler.c - simulation of the scheduler against a shadow KV cache and a sequential model
 *
 * The "model" is a function of a sequence's tokens alone. The shadow cache records what each (lane, block, offset)
 * holds, a hash of its token and all before it and of the salt, as the kernels would write it, and every step checks that what
 * a sequence would read back is what itself would have written. So a lost block, a block lent twice, a wrong recompute or a
 * prefix that is another's shows as a wrong mark. So does a block that was swapped to the wrong place or too late. Many requests
 * begin like others. Plans are made up to
 * four before the first is applied, and computed in their order at any time between; slots are kept as the device keeps them.
 *
 * A seed is a simulation. KVASIR_SCHEDULER_SEEDS=N runs N of them, KVASIR_SCHEDULER_SEED=N the one of a seed: the command that a failure
 * prints.
 */
#include "tests/support/test.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "worker/scheduler.h"

enum {
    N_VOCAB = 97,
    MAX_REQUESTS = 40,
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
    uint64_t text;                       /* all drawn ones folded together, for the model */
    const char *salt;
    int32_t n_drawn; /* of tokens, with the prompt */
    int32_t n_known; /* of them: what came out */
    int32_t n_prompt;
    int32_t n_pending; /* planned to be drawn and not applied */
    int32_t
        n_scored; /* tokens of the prompt whose log probabilities came out, the first one included */
    int32_t stop_ids[MAX_STOPS];
    int32_t n_there; /* tokens that were in the cache at some time, when plans made are computed */
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
    uint64_t *host;          /* [n_lanes][host_blocks_per_lane][PLAN_BLOCK_TOKENS] */
    uint64_t n_recomputed;   /* tokens in plans that had been in plans before */
    bool cancels;            /* a request was */
    int64_t n_dropped;       /* draws for sequences that were gone */
};

/* The one that runs, for a failing test to print; 0: none. */
static uint64_t current_seed;

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

/* Of tokens: of those before, and the next one. */
static uint64_t fold(uint64_t text, int32_t token)
{
    const uint64_t h = (text ^ (uint64_t)(uint32_t)token) * 0x100000001b3u;
    return h ^ h >> 29;
}

/* The token that follows a text. -1: a row without a distribution, one of some hundreds. */
static int32_t model(uint64_t seed, uint64_t text, const int32_t *banned, int32_t n_banned)
{
    uint64_t h = (text ^ seed) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
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
    uint64_t text = 1;
    memcpy(tokens, shadow->tokens, (size_t)n * sizeof *tokens);
    for (int32_t i = 0; i < n; i++) {
        text = fold(text, tokens[i]);
    }
    for (;;) {
        const int32_t n_banned = n - shadow->n_prompt < r->min_tokens ? r->n_stop_ids : 0;
        const int32_t id = model(r->seed, text, shadow->stop_ids, n_banned);
        if (id < 0) {
            return n;
        }
        text = fold(text, id);
        tokens[n++] = id;
        if (is_banned(id, shadow->stop_ids, r->n_stop_ids) ||
            n - shadow->n_prompt == r->max_tokens) {
            return n;
        }
    }
}

// ---- the device ----

static uint64_t *block_at(uint64_t *marks, int64_t blocks_per_lane, int32_t lane, int32_t block)
{
    assert_true(block >= 0 && block < blocks_per_lane);
    return marks + (lane * blocks_per_lane + block) * PLAN_BLOCK_TOKENS;
}

/* The sequence's block number `at` in the cache. */
static uint64_t *cells(struct simulation *sim, const struct step_plan *plan,
                       const struct step_seq *seq, int32_t at)
{
    return block_at(sim->cache, sim->config.blocks_per_lane, seq->lane,
                    plan->blocks[seq->first_block + at]);
}

/* The token at `at` is known: what it and those before it leave in the cache. */
static void set_mark(struct shadow_request *shadow, int32_t at)
{
    const uint64_t before = at > 0 ? shadow->marks[at - 1] : (uint64_t)shadow->salt[0] + 1;
    uint64_t h = (before ^ (uint64_t)(uint32_t)shadow->tokens[at]) * 0x9e3779b97f4a7c15u;
    shadow->marks[at] = h ^ h >> 32;
    shadow->text = fold(at > 0 ? shadow->text : 1, shadow->tokens[at]);
}

/* Reads what was computed before, in this step too: keys of all rows are there before any is read. */
static void read_rows(struct simulation *sim, const struct step_plan *plan,
                      const struct step_seq *seq)
{
    const struct shadow_request *shadow = &sim->requests[seq->seq_id];
    for (int32_t p = 0; p < seq->n_computed; p += PLAN_BLOCK_TOKENS) {
        const int32_t left = seq->n_computed - p;
        const int32_t n = left < PLAN_BLOCK_TOKENS ? left : PLAN_BLOCK_TOKENS;
        const uint64_t *have = cells(sim, plan, seq, p / PLAN_BLOCK_TOKENS);
        assert_int_equal(memcmp(have, shadow->marks + p, (size_t)n * sizeof *have), 0);
    }
}

static void compute_rows(struct simulation *sim, const struct step_plan *plan,
                         const struct step_seq *seq)
{
    const struct shadow_request *shadow = &sim->requests[seq->seq_id];
    assert_true(seq->n_computed + seq->n_tokens <= shadow->n_drawn);
    for (int32_t t = 0; t < seq->n_tokens; t++) {
        const int32_t position = seq->n_computed + t;
        const int32_t named = plan->tokens[seq->first_row + t];
        const int32_t token = named < 0 ? sim->drawn[-1 - named] : named;
        const int32_t offset = position % PLAN_BLOCK_TOKENS;
        if (token != shadow->tokens[position] || plan->positions[seq->first_row + t] != position) {
            fail_msg("token %d at position %d, not %d at %d", token,
                     plan->positions[seq->first_row + t], shadow->tokens[position], position);
        }
        cells(sim, plan, seq, position / PLAN_BLOCK_TOKENS)[offset] = shadow->marks[position];
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
    uint8_t n_generated[N_VOCAB] = {0};
    bool in_prompt[N_VOCAB] = {false}, listed[N_VOCAB] = {false};
    const int32_t n_known = shadow->n_drawn - (row->pending_slot >= 0 ? 1 : 0);
    const int32_t n_prompt =
        row->repetition != 1.0f ? shadow->n_prompt : 0; // else it does not count
    int32_t n_missing = 0;
    for (int32_t i = 0; i < n_prompt; i++) {
        n_missing += !in_prompt[shadow->tokens[i]];
        in_prompt[shadow->tokens[i]] = true;
    }
    for (int32_t i = shadow->n_prompt; i < n_known; i++) {
        const int32_t id = shadow->tokens[i];
        n_missing += n_generated[id] == 0 && !in_prompt[id];
        n_generated[id]++;
    }
    for (int32_t i = 0; i < row->n_tokens; i++) {
        const int32_t id = tokens[i].id;
        if (listed[id] || tokens[i].n_generated != n_generated[id] ||
            tokens[i].in_prompt != in_prompt[id]) {
            fail_msg("id %d is listed with %d in the completion and %d in the prompt", id,
                     tokens[i].n_generated, tokens[i].in_prompt);
        }
        listed[id] = true;
        n_missing -= n_generated[id] > 0 || in_prompt[id];
    }
    assert_int_equal(n_missing, 0);
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
    const int32_t id = model(shadow->request.seed, shadow->text, banned, n_banned);
    step->results[n] = (struct sample_result){.id = id, .nan = id < 0};
    sim->drawn[row->slot] = id;
    shadow->tokens[shadow->n_drawn] = id;
    set_mark(shadow, shadow->n_drawn++);
}

static void make_moves(struct simulation *sim, const struct step_plan *plan)
{
    const int64_t n_blocks = sim->config.blocks_per_lane;
    const int64_t n_slots = sim->config.host_blocks_per_lane;
    for (int32_t i = 0; i < plan->n_moves; i++) {
        const struct step_move *move = &plan->moves[i];
        const bool in = move->kind == STEP_MOVE_IN, out = move->kind == STEP_MOVE_OUT;
        const uint64_t *from =
            block_at(in ? sim->host : sim->cache, in ? n_slots : n_blocks, move->lane, move->from);
        uint64_t *to =
            block_at(out ? sim->host : sim->cache, out ? n_slots : n_blocks, move->lane, move->to);
        memcpy(to, from, PLAN_BLOCK_TOKENS * sizeof *to);
    }
}

static void compute_step(struct simulation *sim)
{
    struct shadow_step *step = &sim->steps[sim->n_computed++ % MAX_AHEAD];
    int32_t n = 0;
    make_moves(sim, &step->plan);
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

/* Tokens that were there once and are computed again. */
static void count_again(struct simulation *sim, const struct step_seq *seq)
{
    struct shadow_request *shadow = &sim->requests[seq->seq_id];
    const int32_t end = seq->n_computed + seq->n_tokens;
    const int32_t again = (end < shadow->n_there ? end : shadow->n_there) - seq->n_computed;
    sim->n_recomputed += again > 0 ? (uint64_t)again : 0;
    shadow->n_there = end > shadow->n_there ? end : shadow->n_there;
}

static void make_step(struct simulation *sim)
{
    struct shadow_step *step = &sim->steps[sim->n_made % MAX_AHEAD];
    const struct step_plan *plan = &step->plan;
    if (scheduler_schedule(sim->scheduler, &step->plan) == 0) {
        return; // there is nothing to do
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
        count_again(sim, seq);
        step->n_known[i] = shadow->n_known;
        shadow->n_pending += draws_when_planned(shadow, seq);
    }
    assert_int_equal(row, plan->n_rows);
    assert_true(row <= sim->config.max_rows);
    assert_true(plan->n_logits <= sim->config.max_logits);
    memset(step->rows, 0x55, (size_t)plan->n_logits * sizeof *step->rows);
    assert_true(scheduler_sample_rows(sim->scheduler, plan, step->rows, step->tokens) <=
                sim->config.max_sample_tokens);
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
    memset(shadow, 0, sizeof *shadow);
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
    sim->cancels = sim->cancels || known;
}

// ---- a simulation ----

static void simulation_open(struct simulation *sim, uint64_t seed)
{
    sim->n_made = sim->n_computed = sim->n_applied = sim->n_requests = 0;
    sim->n_dropped = 0;
    sim->n_recomputed = 0;
    sim->cancels = false;
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
        .blocks_per_lane = least + below(sim, 1 + below(sim, 8)), // tight: preemptions happen
        .n_vocab = N_VOCAB,
        .max_steps = 1 + below(sim, MAX_AHEAD),
        .prefix_caching = below(sim, 3) > 0,
        .max_logits = max_seqs + below(sim, MAX_LOGITS - MAX_SEQS),
        .max_sample_tokens = N_VOCAB + below(sim, 3 * N_VOCAB),
        .host_blocks_per_lane = below(sim, 2) > 0 ? below(sim, 30) : 0,
        .swap_block_s = 1 + below(sim, 20),
        .recompute_token_s = 1 + below(sim, 4),
    };
    sim->config.n_stages = below(sim, 3) > 0 ? 1 : 1 + below(sim, sim->config.max_steps);
    sim->config.max_moves = sim->config.n_lanes * 2 * (int32_t)sim->config.host_blocks_per_lane;
    const struct step_limits limits = {.max_seqs = max_seqs,
                                       .max_logits = sim->config.max_logits,
                                       .max_rows = sim->config.max_rows,
                                       .max_blocks = max_seqs * (int32_t)least,
                                       .n_lanes = sim->config.n_lanes,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = sim->config.blocks_per_lane,
                                       .max_moves = sim->config.max_moves,
                                       .host_blocks_per_lane = sim->config.host_blocks_per_lane};
    assert_status_ok(scheduler_new(&sim->config, &sim->scheduler));
    for (int32_t i = 0; i < MAX_AHEAD; i++) {
        assert_status_ok(step_plan_init(&sim->steps[i].plan, &limits));
    }
    const size_t n_cells =
        (size_t)sim->config.n_lanes * (size_t)sim->config.blocks_per_lane * PLAN_BLOCK_TOKENS;
    sim->cache = calloc(n_cells, sizeof *sim->cache);
    const size_t n_slots =
        (size_t)(sim->config.n_lanes * sim->config.host_blocks_per_lane * PLAN_BLOCK_TOKENS);
    sim->host = calloc(n_slots > 0 ? n_slots : 1, sizeof *sim->host);
    assert_non_null(sim->cache);
    assert_non_null(sim->host);
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
    assert_int_equal(load.host_blocks_used, 0);
    // The recompute tax: counted when a sequence is admitted again, and paid unless it is cancelled then.
    assert_true(load.n_recomputed >= sim->n_recomputed);
    assert_true(sim->cancels || load.n_recomputed == sim->n_recomputed);
    assert_true(load.n_swapped_in <= load.n_swapped_out);
}

static void simulation_close(struct simulation *sim)
{
    scheduler_free(sim->scheduler);
    for (int32_t i = 0; i < MAX_AHEAD; i++) {
        step_plan_destroy(&sim->steps[i].plan);
    }
    free(sim->cache);
    free(sim->host);
}

/* Requests that come, and one that goes; false: neither did. */
static bool change_requests(struct simulation *sim, int32_t n_requests)
{
    bool changed = false;
    while (sim->n_requests < n_requests && below(sim, 3) == 0) {
        submit_random(sim);
        changed = true;
    }
    if (sim->n_requests > 0 && below(sim, 50) == 0) {
        cancel_random(sim);
        changed = true;
    }
    return changed;
}

static bool is_over(const struct simulation *sim, int32_t n_requests)
{
    if (sim->n_requests < n_requests || sim->n_applied < sim->n_made) {
        return false;
    }
    const struct scheduler_load load = scheduler_load(sim->scheduler);
    return load.n_running + load.n_waiting == 0;
}

/* One thing after the other, as chance has it: a plan, a step computed, one applied. */
static void simulate(struct simulation *sim)
{
    const int32_t n_requests = 1 + below(sim, MAX_REQUESTS);
    for (int turns = 0; !is_over(sim, n_requests); turns++) {
        assert_true(turns < 100000); // everything ends
        bool changed = change_requests(sim, n_requests);
        const bool room = sim->n_made - sim->n_applied < sim->config.max_steps;
        if (room && below(sim, 5) > 0) {
            make_step(sim);
            changed = true;
        }
        if (sim->n_computed < sim->n_made && below(sim, 2) == 0) {
            compute_step(sim);
        }
        if (sim->n_applied < sim->n_computed && (!room || below(sim, 2) == 0)) {
            apply_step(sim);
            changed = true;
        }
        if (changed) {
            assert_status_ok(scheduler_check(sim->scheduler));
        }
    }
}

struct totals {
    uint64_t preemptions, prefix_hits, recomputed, swapped_in, given_up;
    int64_t dropped;
};

static void run_seed(struct simulation *sim, uint64_t seed, struct totals *totals)
{
    current_seed = seed;
    simulation_open(sim, seed);
    simulate(sim);
    check_end(sim);
    const struct scheduler_load load = scheduler_load(sim->scheduler);
    totals->preemptions += load.n_preemptions;
    totals->prefix_hits += load.n_prefix_hits;
    totals->recomputed += load.n_recomputed;
    totals->swapped_in += load.n_swapped_in;
    totals->given_up += load.n_swapped_out - load.n_swapped_in;
    totals->dropped += sim->n_dropped;
    simulation_close(sim);
    current_seed = 0;
}

static int print_seed(void **state)
{
    (void)state;
    if (current_seed > 0) {
        fprintf(stderr, "replay: KVASIR_SCHEDULER_SEED=%llu %s\n", (unsigned long long)current_seed,
                program_invocation_name);
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
    struct totals totals = {0};
    assert_non_null(sim);
    const uint64_t n_seeds = environment_number("KVASIR_SCHEDULER_SEEDS", SCHEDULER_SEEDS);
    const uint64_t one = environment_number("KVASIR_SCHEDULER_SEED", 0);
    for (uint64_t seed = one > 0 ? one : 1; seed <= (one > 0 ? one : n_seeds); seed++) {
        run_seed(sim, seed, &totals);
    }
    free(sim);
    if (one > 0) {
        return;
    }
    // The simulation does reach the hard cases.
    print_message(
        "%llu seeds: %llu preemptions, %llu tokens computed again, %llu blocks swapped in, %llu given up\n",
        (unsigned long long)n_seeds, (unsigned long long)totals.preemptions,
        (unsigned long long)totals.recomputed, (unsigned long long)totals.swapped_in,
        (unsigned long long)totals.given_up);
    assert_true(totals.preemptions > n_seeds / 2);
    assert_true(totals.prefix_hits > n_seeds * 4);
    assert_true(totals.recomputed > n_seeds * 4);
    assert_true(totals.swapped_in > n_seeds / 4);
    assert_true(totals.given_up > n_seeds / 8);
    assert_true(totals.dropped > (int64_t)(n_seeds / 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_scheduler_random_schedules, print_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * test_scheduler_beams.c - simulation of the scheduler with beam searches among sampled requests
 *
 * The device is cells of (token, mark), a mark standing for a token and all before it; what follows a row is a function of the
 * mark that the row leaves. So a block that is copied too late, shared too long, lent twice or computed wrongly gives a chain
 * of marks that is none, or other answers than those of the request alone. Plans are made up to four before the first is
 * applied, and computed in their order at any time between.
 *
 * KVASIR_SCHEDULER_SEED=N runs one simulation, KVASIR_SCHEDULER_SEEDS=N those of N seeds.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "tests/support/test.h"
#include "worker/scheduler.h"

#ifndef SCHEDULER_BEAM_SEEDS
#    define SCHEDULER_BEAM_SEEDS 300
#endif

enum {
    N_VOCAB = 29,
    MAX_REQUESTS = 24,
    MAX_PROMPT = 60,
    MAX_NEW = 40,
    MAX_LEN = MAX_PROMPT + MAX_NEW,
    MAX_WIDTH = 6,
    MAX_SEQS = 12,
    MAX_LOGITS = MAX_SEQS + 8,
    MAX_AHEAD = 4,
    MAX_STOPS = 3
};

struct cell {
    uint64_t mark;
    int32_t token;
};

struct shadow {
    struct scheduler_request request;
    int32_t tokens[MAX_LEN]; /* what came out, behind the prompt */
    int32_t stop_ids[MAX_STOPS];
    int32_t n_prompt, n_known, n_scored;
    bool over, cancelled;
};

struct step {
    struct step_plan plan;
    struct sample_row rows[MAX_LOGITS];
    struct sample_token tokens[MAX_SEQS * N_VOCAB];
    struct sample_result results[MAX_LOGITS];
};

struct simulation {
    uint64_t random;
    struct scheduler *scheduler;
    struct scheduler_config config;
    struct step steps[MAX_AHEAD];
    int32_t n_made, n_computed, n_applied;
    struct shadow requests[MAX_REQUESTS];
    int32_t n_requests;
    int32_t drawn[MAX_SEQS];
    uint64_t now_ns;           /* of deadlines */
    struct cell *cells, *host; /* [n_lanes][blocks or slots of a lane][PLAN_BLOCK_TOKENS] */
};

/* Over all seeds: what must have happened for the test to be worth something. */
static struct {
    uint64_t seed;
    int64_t n_copies, n_preemptions, n_searches, n_errors, n_cancelled, n_expired;
} seen;

static int32_t below(struct simulation *sim, int32_t n)
{
    sim->random = sim->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((sim->random >> 33) % (uint64_t)n);
}

static int32_t between(struct simulation *sim, int32_t low, int32_t high)
{
    return low + below(sim, high - low + 1);
}

// ---- the model ----

static uint64_t mark_after(uint64_t before, int32_t token)
{
    const uint64_t h = (before ^ (uint64_t)(uint32_t)(token + 1)) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 31;
}

/* What is known of the tokens before a row. */
struct context {
    uint64_t mark;
    int32_t n_generated[N_VOCAB];
    int32_t position;
};

static void add_generated(struct context *c, int32_t token)
{
    c->mark = mark_after(c->mark, token);
    c->n_generated[token]++;
    c->position++;
}

static bool is_nan_row(const struct context *c)
{
    return c->mark % 701 == 0;
}

static bool is_stop(const struct shadow *shadow, int32_t id)
{
    bool found = false;
    for (int32_t i = 0; i < shadow->request.n_stop_ids; i++) {
        found = found || shadow->stop_ids[i] == id;
    }
    return found;
}

static float logprob_of(const struct shadow *shadow, const struct context *c, int32_t id)
{
    const uint64_t h = mark_after(c->mark, 1000 + id);
    const float penalty = c->n_generated[id] > 0 ? shadow->request.presence : 0.0f;
    const bool is_held = c->position < shadow->request.min_tokens && is_stop(shadow, id);
    return is_held ? -INFINITY : -(float)(h >> 40) / (float)(1 << 22) - penalty;
}

static struct sample_result row_of(const struct shadow *shadow, const struct context *c,
                                   int32_t n_top)
{
    struct sample_result row = {.id = -1, .nan = 1};
    bool taken[N_VOCAB] = {false};
    for (int32_t i = 0; i < (n_top > 0 ? n_top : 1) && !is_nan_row(c); i++) {
        int32_t best = -1;
        for (int32_t id = 0; id < N_VOCAB; id++) {
            if (!taken[id] &&
                (best < 0 || logprob_of(shadow, c, id) > logprob_of(shadow, c, best))) {
                best = id;
            }
        }
        taken[best] = true;
        row.top_ids[i] = best;
        row.top_logprobs[i] = logprob_of(shadow, c, best);
        row.id = row.top_ids[0];
        row.nan = 0;
    }
    return row;
}

static struct context context_of_prompt(const struct shadow *shadow)
{
    struct context c = {.mark = (uint64_t)shadow->request.salt[0]};
    for (int32_t i = 0; i < shadow->n_prompt; i++) {
        c.mark = mark_after(c.mark, shadow->tokens[i]);
    }
    return c;
}

// ---- the request alone ----

static void check_sampled_alone(const struct shadow *shadow, int finish)
{
    struct context c = context_of_prompt(shadow);
    int want = SCHEDULER_GOES_ON;
    int32_t n = 0;
    while (want == SCHEDULER_GOES_ON) {
        const struct sample_result row = row_of(shadow, &c, 0);
        if (row.nan) {
            want = SCHEDULER_ERROR;
            break;
        }
        assert_true(n < shadow->n_known);
        assert_int_equal(shadow->tokens[shadow->n_prompt + n], row.id);
        n++;
        add_generated(&c, row.id);
        want = is_stop(shadow, row.id)           ? SCHEDULER_STOP
               : n == shadow->request.max_tokens ? SCHEDULER_LENGTH
                                                 : SCHEDULER_GOES_ON;
    }
    assert_int_equal(n, shadow->n_known);
    assert_int_equal(finish, want);
}

static struct beam_params params_of(const struct shadow *shadow)
{
    const struct scheduler_request *r = &shadow->request;
    return (struct beam_params){.width = r->beam_width,
                                .max_tokens = r->max_tokens,
                                .length_penalty = r->length_penalty,
                                .early_stopping = r->early_stopping,
                                .n_vocab = N_VOCAB,
                                .stop_ids = shadow->stop_ids,
                                .n_stop_ids = r->n_stop_ids,
                                .n_top = r->n_top > 0 ? r->n_top : 0};
}

/* False where a row has no distribution. */
static bool search_alone(const struct shadow *shadow, struct beam_search *search)
{
    const struct beam_params params = params_of(shadow);
    struct context contexts[MAX_WIDTH] = {context_of_prompt(shadow)}, before[MAX_WIDTH];
    struct sample_result rows[MAX_WIDTH];
    struct beam_next next[MAX_WIDTH];
    const int32_t n_top =
        beam_candidates(&params) > params.n_top ? beam_candidates(&params) : params.n_top;
    assert_status_ok(beam_search_init(search, &params));
    for (int32_t n = 1; n > 0;) {
        for (int32_t i = 0; i < n; i++) {
            rows[i] = row_of(shadow, &contexts[i], n_top);
            if (rows[i].nan) {
                return false;
            }
        }
        n = beam_search_step(search, rows, next);
        memcpy(before, contexts, sizeof before);
        for (int32_t i = 0; i < n; i++) {
            contexts[i] = before[next[i].parent];
            add_generated(&contexts[i], next[i].id);
        }
    }
    return true;
}

static void check_search_alone(const struct shadow *shadow, const struct scheduler_output *output)
{
    struct beam_search want;
    if (!search_alone(shadow, &want)) {
        assert_int_equal(output->finish, SCHEDULER_ERROR);
        assert_null(output->beams);
        beam_search_destroy(&want);
        seen.n_errors++;
        return;
    }
    const struct beam_search *got = output->beams;
    assert_non_null(got);
    assert_int_equal(got->n_ended, want.n_ended);
    assert_int_equal(output->n_best, shadow->request.n_best);
    for (int32_t i = 0; i < want.n_ended; i++) {
        struct beam_token tokens[MAX_NEW], same[MAX_NEW];
        assert_int_equal(got->ended[i].length, want.ended[i].length);
        assert_true(got->ended[i].sum == want.ended[i].sum &&
                    got->ended[i].score == want.ended[i].score);
        beam_search_read(got, i, tokens);
        beam_search_read(&want, i, same);
        for (int32_t t = 0; t < want.ended[i].length; t++) {
            assert_int_equal(tokens[t].id, same[t].id);
            assert_true(tokens[t].logprob == same[t].logprob && tokens[t].rank == same[t].rank);
            assert_true(shadow->request.n_top <= 0 || tokens[t].top[0].id == same[t].top[0].id);
        }
    }
    assert_int_equal(shadow->n_scored,
                     shadow->request.n_prompt_top >= 0 ? shadow->n_prompt - 1 : 0);
    beam_search_destroy(&want);
    seen.n_searches++;
}

// ---- the device ----

static struct cell *cells_of(struct simulation *sim, int32_t lane, int32_t block)
{
    assert_in_range(block, 0, sim->config.blocks_per_lane - 1);
    return &sim->cells[(lane * sim->config.blocks_per_lane + block) * PLAN_BLOCK_TOKENS];
}

static struct cell *slot_of(struct simulation *sim, int32_t lane, int32_t slot)
{
    assert_in_range(slot, 0, sim->config.host_blocks_per_lane - 1);
    return &sim->host[(lane * sim->config.host_blocks_per_lane + slot) * PLAN_BLOCK_TOKENS];
}

static void move_blocks(struct simulation *sim, const struct step_plan *plan)
{
    for (int32_t i = 0; i < plan->n_moves; i++) {
        const struct step_move *m = &plan->moves[i];
        const struct cell *from = m->kind == STEP_MOVE_IN ? slot_of(sim, m->lane, m->from)
                                                          : cells_of(sim, m->lane, m->from);
        struct cell *to =
            m->kind == STEP_MOVE_OUT ? slot_of(sim, m->lane, m->to) : cells_of(sim, m->lane, m->to);
        memcpy(to, from, PLAN_BLOCK_TOKENS * sizeof *to);
        assert_true(m->kind != STEP_MOVE_COPY || sim->config.stripe <= 1);
        seen.n_copies += m->kind == STEP_MOVE_COPY;
    }
}

static struct cell *cell_at(struct simulation *sim, const struct step_plan *plan,
                            const struct step_seq *seq, int32_t position)
{
    const int32_t block = plan->blocks[seq->first_block + position / PLAN_BLOCK_TOKENS];
    return cells_of(sim, seq->lane, block) + position % PLAN_BLOCK_TOKENS;
}

/* What a row reads is one chain from the salt on, and begins like the prompt. */
static struct context read_chain(struct simulation *sim, const struct step_plan *plan,
                                 const struct step_seq *seq, int32_t n)
{
    const struct shadow *shadow = &sim->requests[seq->seq_id];
    struct context c = {.mark = (uint64_t)shadow->request.salt[0]};
    for (int32_t p = 0; p < n; p++) {
        const struct cell *cell = cell_at(sim, plan, seq, p);
        const uint64_t mark = mark_after(c.mark, cell->token);
        assert_true(cell->mark == mark);
        assert_true(p >= shadow->n_prompt || cell->token == shadow->tokens[p]);
        if (p >= shadow->n_prompt) {
            add_generated(&c, cell->token);
        } else {
            c.mark = mark;
        }
    }
    return c;
}

static void write_rows(struct simulation *sim, const struct step_plan *plan,
                       const struct step_seq *seq)
{
    uint64_t mark = (uint64_t)sim->requests[seq->seq_id].request.salt[0];
    if (seq->n_computed > 0) {
        mark = cell_at(sim, plan, seq, seq->n_computed - 1)->mark;
    }
    for (int32_t t = 0; t < seq->n_tokens; t++) {
        const int32_t named = plan->tokens[seq->first_row + t];
        const int32_t token = named < 0 ? sim->drawn[-1 - named] : named;
        mark = mark_after(mark, token);
        *cell_at(sim, plan, seq, seq->n_computed + t) = (struct cell){mark, token};
    }
}

/* The row names each generated token as often as it was generated, and holds the stop ids back as long as it must. */
static void check_row(const struct simulation *sim, const struct step *step,
                      const struct step_seq *seq, const struct sample_row *row,
                      const struct context *c)
{
    const struct shadow *shadow = &sim->requests[seq->seq_id];
    const struct sample_token *tokens = step->tokens + row->first_token;
    int32_t n_listed[N_VOCAB] = {0};
    for (int32_t i = 0; i < row->n_tokens; i++) {
        const bool pending =
            row->pending_slot >= 0 && sim->drawn[row->pending_slot] == tokens[i].id;
        n_listed[tokens[i].id]++;
        assert_int_equal(tokens[i].bias == -INFINITY,
                         c->position < shadow->request.min_tokens && is_stop(shadow, tokens[i].id));
        assert_true(shadow->request.presence == 0.0f ||
                    tokens[i].n_generated + pending == c->n_generated[tokens[i].id]);
    }
    for (int32_t id = 0; id < N_VOCAB; id++) {
        const bool pending = row->pending_slot >= 0 && sim->drawn[row->pending_slot] == id;
        const bool needed = shadow->request.presence != 0.0f && c->n_generated[id] > pending;
        assert_true(n_listed[id] == 1 || (n_listed[id] == 0 && !needed));
    }
    assert_int_equal(row->position, c->position);
    assert_int_equal(row->of_logprobs, shadow->request.beam_width > 0);
}

static void compute_step(struct simulation *sim)
{
    struct step *step = &sim->steps[sim->n_computed % MAX_AHEAD];
    const struct step_plan *plan = &step->plan;
    move_blocks(sim, plan);
    for (int32_t i = 0; i < plan->n_seqs; i++) { // all keys are stored before any is read
        (void)read_chain(sim, plan, &plan->seqs[i], plan->seqs[i].n_computed);
        write_rows(sim, plan, &plan->seqs[i]);
    }
    int32_t at = 0;
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        const struct step_seq *seq = &plan->seqs[i];
        const struct shadow *shadow = &sim->requests[seq->seq_id];
        const int32_t end = seq->n_computed + seq->n_tokens;
        for (int32_t l = 0; l < seq->n_logits; l++, at++) {
            const struct context c = read_chain(sim, plan, seq, end - seq->n_logits + l + 1);
            const struct sample_row *row = &step->rows[at];
            if (row->forced) {
                step->results[at] = (struct sample_result){.id = row->forced_id};
                continue;
            }
            check_row(sim, step, seq, row, &c);
            step->results[at] = row_of(shadow, &c, row->n_top);
            if (row->slot >= 0) {
                sim->drawn[row->slot] = step->results[at].id < 0 ? 0 : step->results[at].id;
            }
        }
    }
    assert_int_equal(at, plan->n_logits);
    sim->n_computed++;
}

// ---- the leader ----

static bool make_step(struct simulation *sim)
{
    struct step *step = &sim->steps[sim->n_made % MAX_AHEAD];
    if (scheduler_schedule(sim->scheduler, &step->plan) == 0) {
        return false;
    }
    (void)scheduler_sample_rows(sim->scheduler, &step->plan, step->rows, step->tokens);
    sim->n_made++;
    return true;
}

static void take_output(struct simulation *sim, const struct scheduler_output *output)
{
    struct shadow *shadow = &sim->requests[output->seq_id];
    assert_false(shadow->over);
    for (int32_t i = 0; i < output->n_scored; i++) {
        assert_int_equal(output->first_scored + i, shadow->n_scored + 1);
        assert_int_equal(output->scored[i].id, shadow->tokens[output->first_scored + i]);
        shadow->n_scored++;
    }
    shadow->over = output->finish != SCHEDULER_GOES_ON;
    if (shadow->request.beam_width > 0) {
        assert_null(output->result);
        if (shadow->over) {
            check_search_alone(shadow, output);
        }
        return;
    }
    if (output->result != NULL) {
        shadow->tokens[shadow->n_prompt + shadow->n_known++] = output->result->id;
    }
    if (shadow->over) {
        check_sampled_alone(shadow, output->finish);
    }
}

static void apply_step(struct simulation *sim)
{
    struct scheduler_output outputs[MAX_SEQS];
    struct step *step = &sim->steps[sim->n_applied++ % MAX_AHEAD];
    const int32_t n = scheduler_apply(sim->scheduler, &step->plan, step->results, outputs);
    for (int32_t i = 0; i < n; i++) {
        take_output(sim, &outputs[i]);
    }
    memset(step->results, 0x7f, sizeof step->results); // nothing keeps pointers to them
}

static void fill_tokens(struct simulation *sim, struct shadow *shadow)
{
    shadow->n_prompt = between(sim, 1, MAX_PROMPT);
    for (int32_t i = 0; i < shadow->n_prompt; i++) {
        shadow->tokens[i] = below(sim, N_VOCAB);
    }
    if (sim->n_requests > 0 && below(sim, 2) == 0) { // begins like another one
        const struct shadow *other = &sim->requests[below(sim, sim->n_requests)];
        const int32_t n = other->n_prompt < shadow->n_prompt ? other->n_prompt : shadow->n_prompt;
        memcpy(shadow->tokens, other->tokens, (size_t)n * sizeof(int32_t));
    }
}

/* As many beams as a lane, the slots and the lists always have room for. */
static int32_t widest(const struct simulation *sim, int32_t n_prompt, int32_t max_tokens)
{
    const int32_t common = n_prompt / PLAN_BLOCK_TOKENS;
    const int32_t own =
        (n_prompt + max_tokens + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS - common;
    const int32_t n_in_lane =
        own > 0 ? ((int32_t)sim->config.blocks_per_lane - common) / own : MAX_WIDTH;
    const int32_t n = n_in_lane < MAX_WIDTH ? n_in_lane : MAX_WIDTH;
    return n < sim->config.max_seqs ? n : sim->config.max_seqs;
}

static void submit_random(struct simulation *sim)
{
    struct shadow *shadow = &sim->requests[sim->n_requests];
    const bool beams = below(sim, 5) < 3;
    *shadow = (struct shadow){.n_known = 0};
    fill_tokens(sim, shadow);
    for (int32_t i = 0; i < MAX_STOPS; i++) {
        shadow->stop_ids[i] = below(sim, N_VOCAB);
    }
    const int32_t max_tokens = between(sim, 1, MAX_NEW);
    const int32_t width = beams ? between(sim, 1, widest(sim, shadow->n_prompt, max_tokens)) : 0;
    shadow->request = (struct scheduler_request){
        .seq_id = (uint64_t)sim->n_requests,
        .tokens = shadow->tokens,
        .n_tokens = shadow->n_prompt,
        .max_tokens = max_tokens,
        .min_tokens = below(sim, 3) == 0 ? below(sim, max_tokens) : 0,
        .stop_ids = shadow->stop_ids,
        .n_stop_ids = below(sim, MAX_STOPS + 1),
        .priority = below(sim, 2),
        .top_p = 1.0f,
        .n_top = beams ? between(sim, -1, 3) : -1,
        .salt = below(sim, 4) == 0 ? "b" : "a",
        .computes_all = below(sim, 8) == 0,
        .repetition = 1.0f,
        .presence = below(sim, 3) == 0 ? 0.75f : 0.0f,
        .n_prompt_top = beams && below(sim, 4) == 0 ? 0 : -1,
        .deadline_ns = below(sim, 8) == 0 ? sim->now_ns + (uint64_t)below(sim, 60) : 0,
        .beam_width = width,
        .n_best = beams ? between(sim, 1, width) : 0,
        .length_penalty = (float)between(sim, -2, 3) * 0.5f,
        .early_stopping = below(sim, 3),
    };
    assert_status_ok(scheduler_submit(sim->scheduler, &shadow->request));
    sim->n_requests++;
}

static void cancel_random(struct simulation *sim)
{
    struct shadow *shadow = &sim->requests[below(sim, sim->n_requests)];
    if (!shadow->over) {
        assert_true(scheduler_cancel(sim->scheduler, shadow->request.seq_id));
        shadow->over = shadow->cancelled = true;
        seen.n_cancelled++;
    }
}

/* Each of those that are too late, once. */
static void expire(struct simulation *sim)
{
    uint64_t seq_ids[MAX_REQUESTS];
    sim->now_ns += (uint64_t)below(sim, 20);
    const int32_t n = scheduler_expire(sim->scheduler, sim->now_ns, seq_ids, MAX_REQUESTS);
    for (int32_t i = 0; i < n; i++) {
        struct shadow *shadow = &sim->requests[seq_ids[i]];
        assert_true(!shadow->over && shadow->request.deadline_ns <= sim->now_ns);
        shadow->over = true;
        seen.n_expired++;
    }
}

static void simulation_open(struct simulation *sim, uint64_t seed)
{
    *sim = (struct simulation){.random = seed * 0x9e3779b97f4a7c15u + 7};
    const int32_t max_seqs = between(sim, 2, MAX_SEQS);
    const int32_t n_lanes = between(sim, 1, 3);
    const int32_t needed = (MAX_LEN + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    const int32_t stripe = below(sim, 4) > 0 ? 1 : 2;
    const int64_t n_blocks = needed + below(sim, needed);
    const int64_t host_blocks = stripe == 1 && below(sim, 2) > 0 ? between(sim, 1, 20) : 0;
    sim->config = (struct scheduler_config){
        .max_seqs = max_seqs,
        .max_rows = max_seqs + between(sim, 0, 40),
        .max_model_len = MAX_LEN,
        .max_waiting = MAX_REQUESTS,
        .n_lanes = n_lanes,
        .blocks_per_lane = n_blocks + n_blocks % stripe,
        .stripe = stripe,
        .n_vocab = N_VOCAB,
        .max_steps = between(sim, 1, MAX_AHEAD),
        .prefix_caching = below(sim, 4) > 0,
        .max_logits = max_seqs + between(sim, 0, 8),
        .max_sample_tokens = MAX_WIDTH * N_VOCAB + below(sim, N_VOCAB),
        .host_blocks_per_lane = host_blocks,
        .max_moves = max_seqs + n_lanes * 2 * (int32_t)host_blocks,
        .swap_block_s = below(sim, 2) ? 1e-6 : 1.0,
        .recompute_token_s = 1e-3,
    };
    if (sim->config.max_steps > 1 && below(sim, 3) == 0) {
        sim->config.n_stages = sim->config.max_steps;
    }
    assert_status_ok(scheduler_new(&sim->config, &sim->scheduler));
    const struct step_limits limits = {.max_seqs = max_seqs,
                                       .max_rows = sim->config.max_rows,
                                       .max_blocks = max_seqs * MAX_LEN,
                                       .max_moves = sim->config.max_moves,
                                       .n_lanes = n_lanes,
                                       .n_vocab = N_VOCAB,
                                       .blocks_per_lane = sim->config.blocks_per_lane,
                                       .host_blocks_per_lane = host_blocks,
                                       .max_logits = sim->config.max_logits,
                                       .max_sample_tokens = sim->config.max_sample_tokens};
    for (int32_t i = 0; i < MAX_AHEAD; i++) {
        assert_status_ok(step_plan_init(&sim->steps[i].plan, &limits));
    }
    const size_t n_cells = (size_t)(n_lanes * sim->config.blocks_per_lane) * PLAN_BLOCK_TOKENS;
    const size_t n_host = (size_t)(n_lanes * host_blocks) * PLAN_BLOCK_TOKENS;
    sim->cells = calloc(n_cells, sizeof *sim->cells);
    sim->host = calloc(n_host + 1, sizeof *sim->host);
    assert_true(sim->cells != NULL && sim->host != NULL);
}

static void simulation_close(struct simulation *sim)
{
    const struct scheduler_load load = scheduler_load(sim->scheduler);
    seen.n_preemptions += (int64_t)load.n_preemptions;
    scheduler_free(sim->scheduler);
    for (int32_t i = 0; i < MAX_AHEAD; i++) {
        step_plan_destroy(&sim->steps[i].plan);
    }
    free(sim->cells);
    free(sim->host);
}

/* Any of the things that can happen next; false: nothing can. */
static bool do_something(struct simulation *sim, int32_t n_wanted)
{
    const int32_t what = below(sim, 10);
    if (what <= 1 && sim->n_requests < n_wanted) {
        submit_random(sim);
        return true;
    }
    if (what == 2 && sim->n_requests > 0 && below(sim, 40) == 0) {
        cancel_random(sim);
        return true;
    }
    if (what == 3 && below(sim, 20) == 0) {
        expire(sim);
        return true;
    }
    if (what < 7 && sim->n_made - sim->n_applied < sim->config.max_steps && make_step(sim)) {
        return true;
    }
    if (sim->n_computed < sim->n_made) {
        compute_step(sim);
        return true;
    }
    if (sim->n_applied < sim->n_computed) {
        apply_step(sim);
        return true;
    }
    return make_step(sim) || sim->n_requests < n_wanted;
}

static void simulate(struct simulation *sim)
{
    const int32_t n_wanted = between(sim, 1, MAX_REQUESTS);
    const bool stops_half_way = below(sim, 10) == 0;
    while (do_something(sim, n_wanted)) {
        assert_status_ok(scheduler_check(sim->scheduler));
        if (stops_half_way && sim->n_applied == 30) {
            return; // scheduler_free finds all of it
        }
    }
    const struct scheduler_load load = scheduler_load(sim->scheduler);
    assert_int_equal(load.blocks_used, 0);
    assert_int_equal(load.n_running + load.n_waiting, 0);
    for (int32_t i = 0; i < sim->n_requests; i++) {
        assert_true(sim->requests[i].over);
    }
}

static uint64_t environment_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 10) : otherwise;
}

static void test_scheduler_beams_random_schedules(void **state)
{
    (void)state;
    const uint64_t one = environment_number("KVASIR_SCHEDULER_SEED", UINT64_MAX);
    const uint64_t n = environment_number("KVASIR_SCHEDULER_SEEDS", SCHEDULER_BEAM_SEEDS);
    struct simulation *sim = malloc(sizeof *sim);
    assert_non_null(sim);
    for (uint64_t i = 0; i < (one == UINT64_MAX ? n : 1); i++) {
        seen.seed = one == UINT64_MAX ? test_seed() + i : one;
        simulation_open(sim, seen.seed);
        simulate(sim);
        simulation_close(sim);
    }
    free(sim);
    if (one == UINT64_MAX) {
        print_message(
            "%lld searches, %lld with an error, %lld cancelled, %lld late, %lld blocks copied, "
            "%lld preemptions\n",
            (long long)seen.n_searches, (long long)seen.n_errors, (long long)seen.n_cancelled,
            (long long)seen.n_expired, (long long)seen.n_copies, (long long)seen.n_preemptions);
        assert_true(seen.n_searches > (int64_t)n && seen.n_copies > (int64_t)n &&
                    seen.n_preemptions > (int64_t)n / 4 && seen.n_errors > 0);
    }
}

static int print_seed(void **state)
{
    (void)state;
    printf("repeat with KVASIR_SCHEDULER_SEED=%llu if it failed\n", (unsigned long long)seen.seed);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_scheduler_beams_random_schedules, print_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

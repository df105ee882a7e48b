/*
 * test_engine_ahead.c - decoding a step ahead of the known tokens gives what decoding step by step gives
 *
 * Every rank runs the same program: the CPU's backend with 1 to 4 ranks, CUDA's on the simulator with 1 and 2. Sequences
 * are given slots, drawn from with every setting there is, penalties included, and leave one after the other.
 *
 *     plain   each step waits for the tokens of the one before, and names and counts them
 *     ahead   steps name the pending token by its slot; two are under way; penalties count it on the device; and before two
 *             of three steps all sequences move, each to the KV blocks that the one before it has just left: one time they are
 *             copied, the other time by way of host memory
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "tests/worker/ahead_backend.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "worker/step_queue.h"

enum {
    N_SEQS = 7,
    N_STEPS = 14,
    MAX_PROMPT = 11,
    MAX_TOKENS = MAX_PROMPT + N_STEPS,
    HOME_BLOCKS = 2 /* of a sequence */
};

static const struct test_model_shape shape = {.n_hidden = 64,
                                              .n_heads = 8,
                                              .head_dim = 32,
                                              .n_vocab = 61,
                                              .n_layers = 2,
                                              .kv_heads = {4, 8},
                                              .n_ff = {96, 160},
                                              .max_positions = 128,
                                              .dtype = DTYPE_BF16,
                                              .seed = 21};

struct ahead_seq {
    struct sample_row set; /* what it is drawn with */
    struct sample_result results[N_STEPS];
    int32_t n_results;
    int32_t prompt[MAX_PROMPT];
    int32_t n_prompt;
    int32_t n_steps; /* tokens to draw */
    int32_t slot, lane;
    int32_t home; /* its blocks are HOME_BLOCKS * home and on */
};

struct fixture {
    struct group *group;
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    struct engine_driver driver;
    struct ahead_seq seqs[N_SEQS];
    int32_t free_home[N_SEQS]; /* of each lane */
    bool moves;
};

static void make_sequences(struct fixture *f)
{
    memset(f->seqs, 0, sizeof f->seqs);
    for (int32_t i = 0; i < N_SEQS; i++) {
        struct ahead_seq *seq = &f->seqs[i];
        seq->n_prompt = 1 + i * 3 % MAX_PROMPT;
        for (int32_t t = 0; t < seq->n_prompt; t++) {
            seq->prompt[t] = (i * 17 + t * 5 + 3) % shape.n_vocab;
        }
        seq->n_steps = N_STEPS - i % 4 * 3;
        seq->slot = (i * 5 + 2) % N_SEQS;
        seq->lane = i * f->driver.plan.n_lanes / N_SEQS;
        seq->home = i;
        f->free_home[seq->lane] = N_SEQS;
        seq->set = (struct sample_row){.seed = (uint64_t)i + 100,
                                       .temperature = i % 3 == 0 ? 0.0f : 0.9f,
                                       .top_k = i % 2 == 0 ? 20 : 0,
                                       .top_p = i % 3 == 1 ? 0.9f : 1.0f,
                                       .min_p = 0.0f,
                                       .repetition = i % 2 == 0 ? 1.3f : 1.0f,
                                       .presence = i % 4 == 1 ? 0.8f : 0.0f,
                                       .frequency = i % 4 == 2 ? 0.6f : 0.0f,
                                       .n_top = i % 4};
    }
}

/* The tokens of the completion that are known, each once, with how often it came. */
static int32_t list_known(const struct ahead_seq *seq, struct sample_token *tokens)
{
    int32_t n = 0;
    for (int32_t i = 0; i < seq->n_results; i++) {
        int32_t at = 0;
        while (at < n && tokens[at].id != seq->results[i].id) {
            at++;
        }
        if (at == n) {
            tokens[n++] = (struct sample_token){.id = seq->results[i].id};
        }
        tokens[at].n_generated++;
    }
    return n;
}

/* What every rank adds of one sequence to step number `step`. */
static void add_to_plan(struct fixture *f, const struct ahead_seq *seq, int32_t index, int32_t step)
{
    struct step_plan *plan = &f->driver.step;
    int32_t blocks[HOME_BLOCKS];
    const int32_t n_computed = step == 0 ? 0 : seq->n_prompt + step - 1;
    const int32_t token = seq->n_results == step && step > 0 ? seq->results[step - 1].id
                                                             : step_placeholder(seq->slot);
    const struct step_seq entry = {
        .seq_id = (uint64_t)index,
        .lane = seq->lane,
        .slot = seq->slot,
        .n_computed = n_computed,
        .n_tokens = step == 0 ? seq->n_prompt : 1,
        .n_blocks = (seq->n_prompt + step + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS,
        .n_logits = 1,
    };
    for (int32_t b = 0; b < entry.n_blocks; b++) {
        blocks[b] = seq->home * HOME_BLOCKS + b;
    }
    assert_status_ok(step_plan_add(plan, &entry, step == 0 ? seq->prompt : &token, blocks));
}

static void add_move(struct fixture *f, int32_t kind, int32_t lane, int32_t from, int32_t to)
{
    const struct step_move move = {.kind = kind, .lane = lane, .from = from, .to = to};
    assert_status_ok(step_plan_add_move(&f->driver.step, &move));
}

/* To the home that is free in its lane; its own is then the free one. All use the same slots. */
static void move_home(struct fixture *f, struct ahead_seq *seq, int32_t step)
{
    const int32_t from = seq->home * HOME_BLOCKS;
    const int32_t to = f->free_home[seq->lane] * HOME_BLOCKS;
    for (int32_t b = 0; b < HOME_BLOCKS && step % 3 == 1; b++) {
        add_move(f, STEP_MOVE_COPY, seq->lane, from + b, to + b);
    }
    for (int32_t b = 0; b < HOME_BLOCKS && step % 3 == 2; b++) {
        add_move(f, STEP_MOVE_OUT, seq->lane, from + b, HOME_BLOCKS - 1 - b);
        add_move(f, STEP_MOVE_IN, seq->lane, HOME_BLOCKS - 1 - b, to + b);
    }
    f->free_home[seq->lane] = seq->home;
    seq->home = to / HOME_BLOCKS;
}

static void submit(struct fixture *f, int32_t first, int32_t end, int32_t step)
{
    struct step_plan *plan = &f->driver.step;
    struct sample_row rows[N_SEQS];
    struct sample_token tokens[N_SEQS * N_STEPS];
    struct step_sampling sampling = {.rows = rows, .tokens = tokens};
    step_plan_clear(plan);
    plan->step = (uint64_t)step;
    for (int32_t i = first; i < end; i++) {
        const struct ahead_seq *seq = &f->seqs[i];
        if (step >= seq->n_steps) {
            continue;
        }
        if (f->moves && step % 3 > 0) {
            move_home(f, &f->seqs[i], step);
        }
        struct sample_row *row = &rows[plan->n_logits];
        *row = seq->set;
        row->logits = (int64_t)plan->n_logits * shape.n_vocab;
        row->position = (uint32_t)step;
        row->first_token = sampling.n_tokens;
        row->n_tokens = list_known(seq, tokens + sampling.n_tokens);
        row->slot = seq->slot;
        row->pending_slot = seq->n_results < step ? seq->slot : -1;
        sampling.n_tokens += row->n_tokens;
        add_to_plan(f, seq, i, step);
    }
    const bool leads = group_rank(f->group) == 0;
    assert_status_ok(engine_submit(f->driver.engine, plan, leads ? &sampling : NULL));
    // What was handed over may change.
    memset(rows, 0x55, sizeof rows);
    memset(tokens, 0x55, sizeof tokens);
    step_plan_clear(plan);
}

/* Every rank learns the results here, for the plain steps of the others; the engine's own ranks need nobody to tell them. */
static void collect(struct fixture *f, int32_t first, int32_t end, int32_t step)
{
    struct sample_result results[N_SEQS];
    struct comm *comm = group_comm(f->group);
    int32_t at = 0;
    memset(results, 0x7f, sizeof results);
    assert_status_ok(engine_collect(f->driver.engine, results));
    assert_status_ok(comm->ops->broadcast(comm, results, sizeof results, 0));
    for (int32_t i = first; i < end; i++) {
        struct ahead_seq *seq = &f->seqs[i];
        if (step < seq->n_steps) {
            assert_int_equal(seq->n_results, step);
            assert_in_range(results[at].id, 0, shape.n_vocab - 1);
            seq->results[seq->n_results++] = results[at++];
        }
    }
}

/* Sequences [first, end), with so many steps under way. */
static void decode(struct fixture *f, int32_t first, int32_t end, int32_t n_under_way)
{
    int32_t n_submitted = 0;
    make_sequences(f);
    f->moves = n_under_way > 1;
    engine_rest(f->driver.engine);
    for (int32_t step = 0; step < N_STEPS; step++) {
        while (n_submitted < N_STEPS && n_submitted < step + n_under_way) {
            submit(f, first, end, n_submitted++);
        }
        collect(f, first, end, step);
    }
}

static void check_same(const struct fixture *f, const struct ahead_seq *want, int32_t first,
                       int32_t end)
{
    for (int32_t i = first; i < end; i++) {
        assert_int_equal(f->seqs[i].n_results, want[i].n_results);
        for (int32_t t = 0; t < want[i].n_results; t++) {
            assert_int_equal(f->seqs[i].results[t].id, want[i].results[t].id);
            assert_memory_equal(&f->seqs[i].results[t], &want[i].results[t],
                                sizeof want[i].results[t]);
        }
    }
}

static void open_driver(struct fixture *f, int placement, int kv_dtype)
{
    const struct driver_options options = {.placement = placement,
                                           .dtype = DTYPE_BF16,
                                           .kv_dtype = kv_dtype,
                                           .max_rows = 60,
                                           .max_steps = 2,
                                           .swap_bytes = 1 << 20,
                                           .backend = ahead_backend()};
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
}

static void check_placement(struct fixture *f, int placement, int kv_dtype)
{
    static struct ahead_seq want[N_SEQS];
    open_driver(f, placement, kv_dtype);
    decode(f, 0, N_SEQS, 1);
    memcpy(want, f->seqs, sizeof want);
    // The simulator is slow: its first steps of a size are computed as they come, the others are recorded, all the same.
    const int n_rounds = ahead_backend() == backend_cpu() ? 2 : 1;
    for (int round = 0; round < n_rounds; round++) {
        decode(f, 0, N_SEQS, 2);
        check_same(f, want, 0, N_SEQS);
    }
    for (int32_t i = 0; ahead_backend() == backend_cpu() && i < N_SEQS; i++) {
        decode(f, i, i + 1, 2);
        check_same(f, want, i, i + 1);
    }
    const struct step_times *times = engine_times(f->driver.engine);
    assert_true(times->n_steps >= (uint64_t)2 * N_STEPS);
    assert_true(times->busy_ns > 0);
    engine_driver_close(&f->driver);
}

static struct fixture *open_fixture(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->group = engine_driver_group(state);
    engine_driver_dir(f->group, f->dir);
    model_writer_make(&shape, &f->model);
    if (group_rank(f->group) == 0) {
        model_writer_write(&f->model, f->dir, NULL);
    }
    assert_status_ok(group_agree(f->group, status_ok())); // written
    return f;
}

static void close_fixture(struct fixture *f)
{
    engine_driver_dir_end(f->group, f->dir);
    model_writer_free(&f->model);
    free(f);
}

static void test_engine_ahead_equals_step_by_step(void **state)
{
    struct fixture *f = open_fixture(state);
    check_placement(f, PLAN_SHARE, DTYPE_BF16);
    if (ahead_backend() == backend_cpu()) {
        check_placement(f, PLAN_REPLICATE, DTYPE_I8);
    }
    close_fixture(f);
}

/* More than max_steps are refused, and so is a result of nothing. */
static void test_engine_ahead_keeps_its_limits(void **state)
{
    struct fixture *f = open_fixture(state);
    open_driver(f, PLAN_SHARE, DTYPE_BF16);
    struct engine *engine = f->driver.engine;
    assert_status_says(engine_collect(engine, NULL), STATUS_INTERNAL, "no step is under way");
    assert_false(engine_ready(engine));
    make_sequences(f);
    submit(f, 0, N_SEQS, 0);
    assert_false(engine_full(engine));
    submit(f, 0, N_SEQS, 1);
    assert_true(engine_full(engine));
    assert_status_says(engine_submit(engine, &f->driver.step, NULL), STATUS_INTERNAL,
                       "2 steps are under way");
    while (!engine_ready(engine)) { // a look makes progress on the simulator
    }
    collect(f, 0, N_SEQS, 0);
    collect(f, 0, N_SEQS, 1);
    if (group_rank(f->group) == 0) {
        // What sampling cannot do is refused before anything is sent to the device.
        struct sample_row row = {.top_p = 2.0f, .repetition = 1.0f};
        const struct step_sampling sampling = {.rows = &row};
        const int32_t token = 1, block = 0;
        const struct step_seq seq = {.n_tokens = 1, .n_blocks = 1, .n_logits = 1};
        assert_status_ok(step_plan_add(&f->driver.step, &seq, &token, &block));
        if (group_size(f->group) == 1) {
            assert_status_says(engine_submit(engine, &f->driver.step, &sampling),
                               STATUS_INVALID_ARGUMENT, "top_p 2");
        }
    }
    engine_driver_close(&f->driver);
    close_fixture(f);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_ahead_equals_step_by_step),
        cmocka_unit_test(test_engine_ahead_keeps_its_limits),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

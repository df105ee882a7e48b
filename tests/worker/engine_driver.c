#include "tests/worker/engine_driver.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"

#define MAX_SEQS      24
#define MAX_MODEL_LEN 96

int engine_driver_main(const struct CMUnitTest *tests, size_t n_tests)
{
    struct group *group;
    assert_status_ok(group_open("test", &group));
    for (size_t i = 0; i < n_tests; i++) {
        struct CMUnitTest test = tests[i];
        test.initial_state = &group;
        if (_cmocka_run_group_tests(test.name, &test, 1, NULL, NULL) != 0) {
            group_abort(group, 1);
        }
    }
    group_close(group);
    return 0;
}

struct group *engine_driver_group(void **state)
{
    return *(struct group **)*state;
}

void engine_driver_dir(struct group *group, char *dir)
{
    memset(dir, 0, TEST_PATH_BYTES);
    if (group_rank(group) == 0) {
        test_tmpdir(dir);
    }
    struct comm *comm = group_comm(group);
    assert_status_ok(comm->ops->broadcast(comm, dir, TEST_PATH_BYTES, 0));
}

void engine_driver_dir_end(struct group *group, const char *dir)
{
    assert_status_ok(group_agree(group, status_ok())); // nobody reads any more
    if (group_rank(group) == 0) {
        test_tmpdir_remove(dir);
    }
}

/* What placement auto stands for in tests: all of them, one layer after the other. */
static int in_turn(const void *user, int32_t layer)
{
    static const int placements[] = {PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN};
    (void)user;
    return placements[layer % 3];
}

void engine_driver_open(struct engine_driver *driver, struct group *group,
                        const struct test_model *model, const char *dir,
                        const struct driver_options *options)
{
    memset(driver, 0, sizeof *driver);
    driver->group = group;
    driver->all_logits = options->all_logits;
    model_writer_spec(model, dir, &driver->spec);
    const int32_t pp = options->pp > 0 ? options->pp : 1;
    const struct plan_request request = {
        .tp = group_size(group) / pp,
        .pp = pp,
        .placement = options->placement,
        .placer = {.place = in_turn},
    };
    assert_status_ok(plan_make(&driver->spec, &request, &driver->plan));
    const struct engine_options engine_options = {
        .model_dir = dir,
        .backend = options->backend != NULL ? options->backend : backend_cpu(),
        .device_memory_share = 0.9,
        .determinism = options->determinism,
        .comm_choice = options->comm_choice,
        .comm_peers = options->comm_peers,
        .dtype = options->dtype,
        .quantization = options->quantization,
        .kv_dtype = options->kv_dtype,
        .max_num_seqs = MAX_SEQS,
        .max_num_batched_tokens = options->max_rows,
        .max_model_len = MAX_MODEL_LEN,
        .max_steps = options->max_steps,
        .swap_bytes = options->swap_bytes,
        .threads = group_size(group) > 1 ? 1 : 2,
        .load = options->load,
        .weights_seed = options->weights_seed,
        .log = {.fd = options->log_fd > 0 ? options->log_fd : -1, .level = LOG_WARN},
    };
    assert_status_ok(
        engine_new(group, &driver->spec, &driver->plan, &engine_options, &driver->engine));
    assert_status_ok(step_plan_init(&driver->step, engine_limits(driver->engine)));
    driver->moved = calloc((size_t)driver->step.limits.max_logits * (size_t)driver->spec.n_vocab,
                           sizeof *driver->moved);
    assert_non_null(driver->moved);
}

void engine_driver_close(struct engine_driver *driver)
{
    free(driver->moved);
    step_plan_destroy(&driver->step);
    engine_free(driver->engine);
    plan_destroy(&driver->plan);
    spec_destroy(&driver->spec);
    memset(driver, 0, sizeof *driver);
}

/* Block ids go round through the pool with a stride, so that a sequence's are neither in order nor together. */
static void give_blocks(struct engine_driver *driver, struct driver_seq *seq)
{
    const int64_t n_pool = driver->step.limits.blocks_per_lane;
    const int32_t n = (seq->n_tokens + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    assert_true(n <= 64);
    for (int32_t i = 0; i < n; i++) {
        seq->blocks[i] = driver->next_block;
        driver->next_block = (int32_t)((driver->next_block + 5) % n_pool);
    }
    seq->n_done = 0;
}

/* Some chunks want no logits and some those of several rows, so that rows with and without stand side by side. */
static int32_t wanted_logits(const struct engine_driver *driver, const struct driver_seq *seq,
                             int32_t i, int32_t n_tokens)
{
    const struct step_plan *step = &driver->step;
    const bool last = seq->n_done + n_tokens == seq->n_tokens;
    if (driver->all_logits) {
        return 1;
    }
    if (!last && (i + seq->n_done) % 3 == 0) {
        return 0;
    }
    const int32_t n = 1 + (i + 2 * seq->n_done) % n_tokens;
    const int32_t room = step->limits.max_logits - step->n_logits - MAX_SEQS;
    return n < room ? n : 1;
}

/* Adds the next chunk of each unfinished sequence that fits; returns how many. */
static int32_t pack_step(struct engine_driver *driver, struct driver_seq *seqs, int32_t n_seqs,
                         int32_t chunk, int32_t *added)
{
    struct step_plan *step = &driver->step;
    int32_t n = 0;
    step_plan_clear(step);
    for (int32_t i = 0; i < n_seqs; i++) {
        struct driver_seq *seq = &seqs[i];
        const int32_t room = step->limits.max_rows - step->n_rows;
        int32_t n_tokens = seq->n_tokens - seq->n_done;
        n_tokens = n_tokens < chunk ? n_tokens : chunk;
        n_tokens = n_tokens < room ? n_tokens : room;
        if (n_tokens == 0) {
            continue;
        }
        const struct step_seq entry = {
            .seq_id = (uint64_t)i,
            .lane = seq->lane,
            .n_computed = seq->n_done,
            .n_tokens = n_tokens,
            .n_blocks = (seq->n_done + n_tokens + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS,
            .n_logits = wanted_logits(driver, seq, i, n_tokens),
        };
        assert_status_ok(step_plan_add(step, &entry, seq->tokens + seq->n_done, seq->blocks));
        added[n++] = i;
    }
    return n;
}

static void take_logits(struct engine_driver *driver, struct driver_seq *seqs, const int32_t *added,
                        const float *logits)
{
    const struct step_plan *step = &driver->step;
    const size_t n_vocab = (size_t)step->limits.n_vocab;
    size_t row = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        struct driver_seq *seq = &seqs[added[i]];
        const size_t n = (size_t)step->seqs[i].n_logits;
        seq->n_done += step->seqs[i].n_tokens;
        if (n > 0 && logits != NULL) {
            memcpy(seq->logits + ((size_t)seq->n_done - n) * n_vocab, logits + row * n_vocab,
                   n * n_vocab * sizeof *logits);
            row += n;
        }
    }
}

/* The step's logits on rank 0, whoever has them; NULL elsewhere. */
static const float *on_rank_0(struct engine_driver *driver, const float *logits)
{
    enum { TAG = 7 };
    struct comm *comm = group_comm(driver->group);
    const size_t size =
        (size_t)driver->step.n_logits * (size_t)driver->spec.n_vocab * sizeof *logits;
    if (driver->plan.pp == 1 || size == 0) {
        return logits;
    }
    if (logits != NULL) {
        assert_status_ok(comm->ops->send(comm, logits, size, 0, TAG));
        return NULL;
    }
    if (comm->rank != 0) {
        return NULL;
    }
    const int32_t from = driver->plan.tp * (driver->plan.pp - 1);
    assert_status_ok(comm->ops->recv(comm, driver->moved, size, from, TAG));
    return driver->moved;
}

void engine_driver_run(struct engine_driver *driver, struct driver_seq *seqs, int32_t n_seqs,
                       int32_t chunk)
{
    assert_true(n_seqs <= MAX_SEQS);
    for (int32_t i = 0; i < n_seqs; i++) {
        give_blocks(driver, &seqs[i]);
    }
    int32_t added[MAX_SEQS] = {0};
    while (pack_step(driver, seqs, n_seqs, chunk, added) > 0) {
        const float *logits = (const float *)driver; // must be set
        assert_status_ok(engine_step(driver->engine, &driver->step, &logits));
        assert_true((logits != NULL) == engine_draws(driver->engine));
        logits = on_rank_0(driver, logits);
        take_logits(driver, seqs, added, logits);
        driver->step.step++;
    }
}

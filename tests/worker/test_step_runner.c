/*
 * test_step_runner.c - a leader's thread makes steps while the main thread computes them
 *
 * The leader is the scheduler with requests of its own, as in the worker, but without a coordinator. What comes out does not
 * depend on how many steps are made ahead.
 */
#include "tests/support/test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/mailbox.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "worker/scheduler.h"
#include "worker/step_queue.h"
#include "worker/step_runner.h"

enum { N_REQUESTS = 11, MAX_TOKENS = 20, MAX_JOBS = 3 };

static const struct test_model_shape shape = {.n_hidden = 32,
                                              .n_heads = 4,
                                              .head_dim = 8,
                                              .n_vocab = 61,
                                              .n_layers = 2,
                                              .kv_heads = {2, 4},
                                              .n_ff = {64, 64},
                                              .max_positions = 128,
                                              .dtype = DTYPE_F32,
                                              .seed = 31};

struct answer {
    int32_t ids[MAX_TOKENS];
    int32_t n;
    bool finished;
};

struct leader {
    struct step_runner runner;
    struct scheduler *scheduler;
    struct mailbox wakes;
    int32_t n_jobs;
    int32_t max_posted; /* at once */
    struct answer answers[N_REQUESTS];
    status_t status;
};

static void wake(void *user)
{
    struct leader *l = user;
    mailbox_wake(&l->wakes);
}

static void submit_all(struct leader *l)
{
    for (int32_t i = 0; i < N_REQUESTS && status_is_ok(&l->status); i++) {
        const int32_t tokens[3] = {i, 2 * i + 1, 7};
        const int32_t stop = 5;
        const struct scheduler_request request = {.seq_id = (uint64_t)i,
                                                  .tokens = tokens,
                                                  .n_tokens = 1 + i % 3,
                                                  .max_tokens = MAX_TOKENS - i,
                                                  .stop_ids = &stop,
                                                  .n_stop_ids = 1,
                                                  .temperature = i % 2 == 0 ? 0.0f : 1.0f,
                                                  .top_p = 1.0f,
                                                  .repetition = 1.0f,
                                                  .seed = (uint64_t)i,
                                                  .n_top = -1,
                                                  .n_prompt_top = -1};
        l->status = scheduler_submit(l->scheduler, &request);
    }
}

static void take(struct leader *l, struct step_job *job)
{
    struct scheduler_output outputs[N_REQUESTS];
    l->status = job->status;
    if (!status_is_ok(&l->status)) {
        return;
    }
    const int32_t n = scheduler_apply(l->scheduler, &job->plan, job->results, outputs);
    for (int32_t i = 0; i < n; i++) {
        struct answer *answer = &l->answers[outputs[i].seq_id];
        answer->ids[answer->n++] = outputs[i].result->id;
        answer->finished = outputs[i].finish != SCHEDULER_GOES_ON;
    }
}

/* As the worker's leader: assertions are for the main thread. */
static void *lead(void *arg)
{
    struct leader *l = arg;
    struct step_job *free_jobs[MAX_JOBS];
    int32_t n_free = 0;
    while (n_free < l->n_jobs) {
        free_jobs[n_free] = &l->runner.jobs[n_free];
        n_free++;
    }
    submit_all(l);
    while (status_is_ok(&l->status)) {
        while (n_free > 0 && status_is_ok(&l->status)) {
            struct step_job *job = free_jobs[n_free - 1];
            if (scheduler_schedule(l->scheduler, &job->plan) == 0) {
                break;
            }
            job->n_tokens = scheduler_sample_rows(l->scheduler, &job->plan, job->rows, job->tokens);
            n_free--;
            l->status = step_runner_post(&l->runner, job);
        }
        const int32_t posted = l->n_jobs - n_free;
        l->max_posted = posted > l->max_posted ? posted : l->max_posted;
        if (posted == 0) {
            break;
        }
        (void)mailbox_take(&l->wakes, UINT64_MAX);
        for (struct step_job *job; (job = step_runner_take(&l->runner)) != NULL;) {
            take(l, job);
            free_jobs[n_free++] = job;
        }
    }
    step_runner_close(&l->runner);
    return NULL;
}

static void init_leader(struct leader *l, struct engine_driver *driver, struct bytes *frame,
                        int32_t n_jobs)
{
    const struct step_limits *limits = engine_limits(driver->engine);
    const struct scheduler_config config = {.max_seqs = 8,
                                            .max_rows = 12,
                                            .max_model_len = 96,
                                            .max_waiting = N_REQUESTS,
                                            .n_lanes = limits->n_lanes,
                                            .blocks_per_lane = limits->blocks_per_lane,
                                            .n_vocab = limits->n_vocab,
                                            .max_steps = n_jobs};
    const struct step_runner_parts parts = {.group = driver->group,
                                            .engine = driver->engine,
                                            .frame = frame,
                                            .n_jobs = n_jobs,
                                            .log = {.fd = -1},
                                            .wake = wake,
                                            .user = l};
    memset(l, 0, sizeof *l);
    l->n_jobs = n_jobs;
    l->status = status_ok();
    assert_status_ok(mailbox_init(&l->wakes, 1));
    assert_status_ok(scheduler_new(&config, &l->scheduler));
    assert_status_ok(step_runner_init(&l->runner, &parts));
}

static void destroy_leader(struct leader *l)
{
    step_runner_destroy(&l->runner);
    scheduler_free(l->scheduler);
    mailbox_destroy(&l->wakes);
}

static status_t run_leader(struct leader *l)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, lead, l), 0);
    const status_t s = step_runner_run(&l->runner);
    assert_int_equal(pthread_join(thread, NULL), 0);
    return s;
}

static void open_driver(struct group *group, struct engine_driver *driver, char *dir)
{
    struct test_model model;
    engine_driver_dir(group, dir);
    model_writer_make(&shape, &model);
    model_writer_write(&model, dir, NULL);
    const struct driver_options options = {.placement = PLAN_SHARE,
                                           .dtype = DTYPE_F32,
                                           .kv_dtype = DTYPE_F32,
                                           .max_rows = 24,
                                           .max_steps = MAX_JOBS};
    engine_driver_open(driver, group, &model, dir, &options);
    model_writer_free(&model);
}

static void test_step_runner_gives_the_same_however_far_ahead(void **state)
{
    static struct leader l;
    struct group *group = engine_driver_group(state);
    struct engine_driver driver;
    struct answer want[N_REQUESTS];
    char dir[TEST_PATH_BYTES];
    struct bytes frame;
    bytes_init(&frame, 1 << 20);
    open_driver(group, &driver, dir);
    for (int32_t n_jobs = 1; n_jobs <= MAX_JOBS; n_jobs++) {
        init_leader(&l, &driver, &frame, n_jobs);
        assert_status_ok(run_leader(&l));
        assert_status_ok(l.status);
        assert_int_equal(l.max_posted, n_jobs);
        for (int32_t i = 0; i < N_REQUESTS; i++) {
            assert_true(l.answers[i].finished);
        }
        if (n_jobs == 1) {
            memcpy(want, l.answers, sizeof want);
        }
        assert_memory_equal(l.answers, want, sizeof want);
        destroy_leader(&l);
    }
    bytes_destroy(&frame);
    engine_driver_close(&driver);
    engine_driver_dir_end(group, dir);
}

/* A step that fails ends the runner, and its leader hears why. */
static void test_step_runner_hands_a_failure_back(void **state)
{
    static struct leader l;
    struct group *group = engine_driver_group(state);
    struct engine_driver driver;
    char dir[TEST_PATH_BYTES];
    struct bytes frame;
    bytes_init(&frame, 8); // no step plan fits
    open_driver(group, &driver, dir);
    init_leader(&l, &driver, &frame, 2);
    assert_status_code(run_leader(&l), STATUS_RESOURCE_EXHAUSTED);
    assert_status_code(l.status, STATUS_RESOURCE_EXHAUSTED);
    destroy_leader(&l);
    bytes_destroy(&frame);
    engine_driver_close(&driver);
    engine_driver_dir_end(group, dir);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_runner_gives_the_same_however_far_ahead),
        cmocka_unit_test(test_step_runner_hands_a_failure_back),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

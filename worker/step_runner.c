#include "worker/step_runner.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/member.h"
#include "worker/step_queue.h"

/* Between two looks at a step that a device computes, while a new one may be posted. */
#define LOOK_NS 50000

// ---- jobs ----

static status_t job_init(struct step_job *job, const struct step_limits *limits)
{
    TRY(step_plan_init(&job->plan, limits));
    job->rows = calloc((size_t)limits->max_logits, sizeof *job->rows);
    job->tokens = calloc((size_t)limits->max_sample_tokens, sizeof *job->tokens);
    job->results = calloc((size_t)limits->max_logits, sizeof *job->results);
    if (job->rows == NULL || job->tokens == NULL || job->results == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for steps of %d sequences",
                             limits->max_seqs);
    }
    return status_ok();
}

static void job_destroy(struct step_job *job)
{
    step_plan_destroy(&job->plan);
    free(job->rows);
    free(job->tokens);
    free(job->results);
}

static status_t init(struct step_runner *r)
{
    const size_t n_jobs = (size_t)r->parts.n_jobs;
    r->jobs = calloc(n_jobs, sizeof *r->jobs);
    if (r->jobs == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d steps", r->parts.n_jobs);
    }
    for (size_t i = 0; i < n_jobs; i++) {
        TRY(job_init(&r->jobs[i], engine_limits(r->parts.engine)));
    }
    TRY(mailbox_init(&r->todo, n_jobs));
    return mailbox_init(&r->done, n_jobs);
}

status_t step_runner_init(struct step_runner *runner, const struct step_runner_parts *parts)
{
    memset(runner, 0, sizeof *runner);
    runner->parts = *parts;
    const status_t s = init(runner);
    if (!status_is_ok(&s)) {
        step_runner_destroy(runner);
    }
    return s;
}

void step_runner_destroy(struct step_runner *runner)
{
    for (int32_t i = 0; runner->jobs != NULL && i < runner->parts.n_jobs; i++) {
        job_destroy(&runner->jobs[i]);
    }
    free(runner->jobs);
    mailbox_destroy(&runner->todo);
    mailbox_destroy(&runner->done);
    memset(runner, 0, sizeof *runner);
}

// ---- the leader's side ----

status_t step_runner_post(struct step_runner *runner, struct step_job *job)
{
    return mailbox_post(&runner->todo, job);
}

struct step_job *step_runner_take(struct step_runner *runner)
{
    return mailbox_take(&runner->done, 0);
}

void step_runner_close(struct step_runner *runner)
{
    mailbox_close(&runner->todo);
}

// ---- the main thread's side ----

/* Jobs that were submitted and not collected, oldest first; never more than there are. */
struct under_way {
    struct step_job *jobs[STEP_QUEUE_MAX];
    int32_t n;
};

static status_t submit(struct step_runner *r, const struct step_job *job)
{
    struct bytes *frame = r->parts.frame;
    if (job->after_rest) {
        engine_rest(r->parts.engine);
    }
    const struct step_sampling sampling = {
        .rows = job->rows, .tokens = job->tokens, .n_tokens = job->n_tokens};
    const bool draws = engine_draws(r->parts.engine);
    bytes_clear(frame);
    TRY(bytes_append_u32(frame, CONTROL_STEP));
    TRY(step_draw_pack(&sampling, draws ? 0 : job->plan.n_logits, frame));
    TRY(step_plan_pack(&job->plan, frame));
    TRY(group_post(r->parts.group, frame, engine_stage_size(r->parts.engine), 0));
    return engine_submit(r->parts.engine, &job->plan, &sampling);
}

/* There are as many jobs as the mailbox has room for. */
static status_t hand_back(struct step_runner *r, struct step_job *job, status_t s)
{
    job->status = s;
    const status_t posted = mailbox_post(&r->done, job);
    r->parts.wake(r->parts.user);
    return status_is_ok(&s) ? posted : s;
}

static status_t collect(struct step_runner *r, struct under_way *steps)
{
    struct step_job *job = steps->jobs[0];
    const status_t s = engine_collect(r->parts.engine, job->results);
    job->step_ns = engine_times(r->parts.engine)->last_ns;
    steps->n--;
    memmove(steps->jobs, steps->jobs + 1, (size_t)steps->n * sizeof(struct step_job *));
    return hand_back(r, job, s);
}

/* How long to wait for a new job: not at all when there is something to collect, for ever when nothing is under way. */
static uint64_t patience_ns(const struct step_runner *r, const struct under_way *steps)
{
    if (steps->n == 0) {
        return UINT64_MAX;
    }
    return engine_ready(r->parts.engine) ? 0 : LOOK_NS;
}

static status_t run(struct step_runner *r, struct under_way *steps)
{
    for (;;) {
        struct step_job *job = mailbox_take(&r->todo, patience_ns(r, steps));
        if (job == NULL && steps->n == 0) { // closed: nobody wakes this mailbox
            return status_ok();
        }
        if (job != NULL) {
            const status_t s = submit(r, job);
            if (!status_is_ok(&s)) {
                return hand_back(r, job, s);
            }
            steps->jobs[steps->n++] = job;
        }
        if (engine_ready(r->parts.engine)) {
            TRY(collect(r, steps));
        }
    }
}

status_t step_runner_run(struct step_runner *runner)
{
    struct under_way steps = {.n = 0};
    const status_t s = run(runner, &steps);
    const struct step_times *times = engine_times(runner->parts.engine);
    log_write(&runner->parts.log, LOG_DEBUG, "steps", "steps=%llu busy_ms=%llu gap_ms=%llu",
              (unsigned long long)times->n_steps, (unsigned long long)(times->busy_ns / NS_PER_MS),
              (unsigned long long)(times->gap_ns / NS_PER_MS));
    return s;
}

/*
 * step_runner.h - runs the steps that the leader makes, on the thread that may speak MPI
 *
 * What:      the leader's thread takes events, schedules and talks to the coordinator; the main thread broadcasts, computes and
 *            samples. A job is a step with room for its results and goes round between the two:
 *
 *              leader   free job -> schedule -> post ....................... take -> apply, say -> free job
 *              main                          -> broadcast, submit, collect ->
 *
 *            There are as many jobs as steps may be made ahead, so while step n is computed step n+1 waits and the leader is
 *            busy with the results of n-1.
 * Ownership: the runner owns jobs and mailboxes. A job belongs to the leader's thread from init to post and from take on, and
 *            to the main thread in between.
 * Thread:    init, run, destroy: owner:main. post, take, close: owner:leader.
 * Collective: step_runner_run: its broadcasts and steps are.
 * Errors:    the status of a step that failed is in its job, and is what step_runner_run returns; the group is in a collective then.
 */
#pragma once

#include "base/bytes.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "parallel/group.h"
#include "worker/engine.h"

struct step_job {
    struct step_plan plan;
    struct sample_row *rows;       /* [max_logits] */
    struct sample_token *tokens;   /* [max_sample_tokens] */
    struct sample_result *results; /* [max_logits] */
    int32_t n_tokens;
    bool after_rest;  /* there was no work before it */
    status_t status;  /* once it is done, like what follows */
    uint64_t step_ns; /* in which it was computed */
};

struct step_runner_parts {
    struct group *group;
    struct engine *engine;
    struct bytes *frame; /* for the control frames */
    int32_t n_jobs;      /* also how many steps may be under way in the engine */
    log_t log;
    void (*wake)(void *user); /* from the main thread: step_runner_take has something */
    void *user;
};

struct step_runner {
    struct step_runner_parts parts;
    struct step_job *jobs; /* [n_jobs] */
    struct mailbox todo, done;
};

MUST_USE status_t step_runner_init(struct step_runner *runner,
                                   const struct step_runner_parts *parts);
void step_runner_destroy(struct step_runner *runner); /* accepts a zeroed one */

/* Main thread: until the runner is closed and what was posted is done, or a step fails. */
MUST_USE status_t step_runner_run(struct step_runner *runner);

MUST_USE status_t step_runner_post(struct step_runner *runner, struct step_job *job);
struct step_job *
step_runner_take(struct step_runner *runner);       /* the next done one; NULL: none is */
void step_runner_close(struct step_runner *runner); /* nothing more is posted */

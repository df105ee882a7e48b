/*
 * step_queue.h - steps under way: submitted in order, collected in order
 *
 * What:      on a device a step is put into the stream and goes on while the host prepares the next one; its results are there
 *            when its mark is passed. On the CPU a step has been computed when submit returns. With several stages submit does
 *            this rank's part, and what the last stage drew comes to rank 0 when it is done.
 *
 *              submit n+1 ->  [ n | n-1 ]  -> collect n-1          at most max_steps between the two
 *
 * Ownership: owns marks and pinned results; forward and backend are borrowed.
 * Thread:    owner:the rank's main thread.
 * Collective: step_queue_submit: yes.
 * Errors:    INTERNAL where a step is submitted to a full queue or collected from an empty one: bugs of the caller.
 */
#pragma once

#include "worker/forward.h"

enum { STEP_QUEUE_MAX = 72 };

/* Since the queue was made. Steps of a device overlap with the host: a step is busy from its submission, or the end of the one
 * before where that is later, until it is seen to have ended. */
struct step_times {
    uint64_t n_steps;
    uint64_t busy_ns;
    uint64_t gap_ns;  /* nothing was under way though there was work; see step_queue_rest */
    uint64_t last_ns; /* of busy_ns: the step collected last */
};

/* A step that has not been collected. */
struct step_under_way {
    uint64_t begin_ns;
    int32_t n_drawn;
    bool from_stages; /* its results come from the last stage */
};

struct step_queue {
    const struct backend *backend;
    struct backend_stream *stream;
    struct forward *forward;
    int32_t max_steps;
    int32_t n_under_way, next; /* next: where the next one goes in the rings */
    struct step_under_way steps[STEP_QUEUE_MAX];
    struct backend_mark *marks[STEP_QUEUE_MAX];
    struct sample_result *results[STEP_QUEUE_MAX]; /* rank 0: [max_logits] each */
    uint64_t end_ns;                               /* of the last one; 0: at rest */
    struct step_times times;
};

MUST_USE status_t step_queue_init(struct step_queue *queue, struct forward *forward);
void step_queue_destroy(struct step_queue *queue); /* accepts a zeroed one */

MUST_USE status_t step_queue_submit(struct step_queue *queue, const struct step_plan *plan,
                                    const struct step_sampling *sampling);

/* Whether the oldest step's results are there: collecting it would not wait. */
bool step_queue_ready(const struct step_queue *queue);

/* Waits for the oldest step; copies what it drew, if anything, to results_out (may be NULL). */
MUST_USE status_t step_queue_collect(struct step_queue *queue, struct sample_result *results_out);

/* There is no work: the time until the next step is no gap. */
void step_queue_rest(struct step_queue *queue);

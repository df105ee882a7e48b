#include "worker/step_queue.h"

#include <string.h>

#include "base/clock.h"

static status_t init(struct step_queue *q)
{
    const size_t results_bytes =
        (size_t)q->forward->limits.max_logits * sizeof(struct sample_result);
    for (int32_t i = 0; i < q->max_steps; i++) {
        TRY(q->backend->mark_new(q->stream, &q->marks[i]));
        if (q->forward->parts.rank == 0) {
            void *memory = NULL;
            TRY(q->backend->host_alloc(q->stream, results_bytes, &memory));
            q->results[i] = memory;
        }
    }
    return status_ok();
}

status_t step_queue_init(struct step_queue *queue, struct forward *forward)
{
    struct step_queue made = {
        .backend = forward->parts.backend,
        .stream = forward->parts.stream,
        .forward = forward,
        .max_steps = forward->limits.max_steps,
    };
    if (made.max_steps < 1 || made.max_steps > STEP_QUEUE_MAX) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%d steps under way, allowed 1 to %d",
                             made.max_steps, (int)STEP_QUEUE_MAX);
    }
    const status_t s = init(&made);
    if (!status_is_ok(&s)) {
        step_queue_destroy(&made);
        return s;
    }
    *queue = made;
    return status_ok();
}

void step_queue_destroy(struct step_queue *queue)
{
    for (int32_t i = 0; i < queue->max_steps; i++) {
        queue->backend->mark_free(queue->marks[i]);
        queue->backend->host_free(queue->stream, queue->results[i]);
    }
    memset(queue, 0, sizeof *queue);
}

/* Where results come from the last stage: on rank 0. */
static struct stages *stages_of(const struct step_queue *q)
{
    return q->forward->parts.rank == 0 ? q->forward->parts.stages : NULL;
}

static uint64_t now_ns(void)
{
    return clock_now_ns(clock_system());
}

status_t step_queue_submit(struct step_queue *q, const struct step_plan *plan,
                           const struct step_sampling *sampling)
{
    if (q->n_under_way == q->max_steps) {
        return status_errorf(STATUS_INTERNAL, "%d steps are under way already", q->n_under_way);
    }
    struct step_under_way *step = &q->steps[q->next];
    *step = (struct step_under_way){
        .begin_ns = now_ns(),
        .n_drawn = sampling != NULL ? plan->n_logits : 0,
        .from_stages = stages_of(q) != NULL && plan->n_logits > 0,
    };
    if (q->n_under_way == 0 && q->end_ns > 0) {
        q->times.gap_ns += step->begin_ns - q->end_ns;
    }
    TRY(forward_run(q->forward, plan, forward_draws(q->forward) ? sampling : NULL,
                    q->results[q->next]));
    TRY(q->backend->mark_set(q->stream, q->marks[q->next]));
    q->next = (q->next + 1) % q->max_steps;
    q->n_under_way++;
    return status_ok();
}

static int32_t oldest(const struct step_queue *q)
{
    return (q->next - q->n_under_way + q->max_steps) % q->max_steps;
}

bool step_queue_ready(const struct step_queue *queue)
{
    const int32_t at = oldest(queue);
    if (queue->n_under_way == 0 || !queue->backend->mark_passed(queue->marks[at])) {
        return false;
    }
    return !queue->steps[at].from_stages || stages_results_are_here(stages_of(queue));
}

status_t step_queue_collect(struct step_queue *q, struct sample_result *results_out)
{
    if (q->n_under_way == 0) {
        return status_errorf(STATUS_INTERNAL, "no step is under way");
    }
    const int32_t at = oldest(q);
    const struct step_under_way *step = &q->steps[at];
    TRY(q->backend->mark_wait(q->marks[at]));
    if (step->from_stages) {
        TRY(stages_take_results(stages_of(q), q->results[at],
                                (size_t)step->n_drawn * sizeof *results_out));
    }
    if (results_out != NULL && step->n_drawn > 0) {
        memcpy(results_out, q->results[at], (size_t)step->n_drawn * sizeof *results_out);
    }
    const uint64_t begin_ns = step->begin_ns > q->end_ns ? step->begin_ns : q->end_ns;
    q->end_ns = now_ns();
    q->times.n_steps++;
    q->times.last_ns = q->end_ns - begin_ns;
    q->times.busy_ns += q->times.last_ns;
    q->n_under_way--;
    return status_ok();
}

void step_queue_rest(struct step_queue *queue)
{
    queue->end_ns = 0;
}

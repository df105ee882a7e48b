/*
 * add.c - x += y
 *
 * Mapping:  tasks of a stretch of elements.
 * Cost:     memory bound, 3 n floats.
 */
#include "kernels/cpu/cpu.h"

enum { STRETCH = 32768 };

struct plan {
    const struct add_args *args;
    const struct cpu_isa *isa;
};

static void run_task(void *context, int64_t task, int thread)
{
    (void)thread;
    const struct plan *plan = context;
    const int64_t begin = task * STRETCH;
    const int64_t left = plan->args->n - begin;
    plan->isa->add(plan->args->x + begin, plan->args->y + begin, left < STRETCH ? left : STRETCH);
}

status_t cpu_add(struct backend_stream *stream, const struct add_args *a)
{
    if (a->n < 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "add: %lld elements", (long long)a->n);
    }
    struct plan plan = {.args = a, .isa = stream->isa};
    cpu_team_run(stream->n_threads, (a->n + STRETCH - 1) / STRETCH, run_task, &plan);
    return status_ok();
}

/*
 * team_openmp.c - tasks on an OpenMP team
 *
 * Numerics: which thread runs a task, and when, decides nothing: tasks write disjoint results.
 * Cost:     the team is libgomp's, kept between regions; its threads spin for a while, then sleep.
 */
#include "kernels/cpu/cpu.h"

#include <omp.h>

static int team_size(int n_threads, int64_t n_tasks)
{
    return n_tasks < n_threads ? (int)n_tasks : n_threads;
}

void cpu_team_run(int n_threads, int64_t n_tasks, cpu_task_fn *fn, void *context)
{
    if (n_threads == 1 || n_tasks <= 1) {
        for (int64_t task = 0; task < n_tasks; task++) {
            fn(context, task, 0);
        }
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(team_size(n_threads, n_tasks))
    for (int64_t task = 0; task < n_tasks; task++) {
        fn(context, task, omp_get_thread_num());
    }
}

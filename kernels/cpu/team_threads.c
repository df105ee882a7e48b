/*
 * team_threads.c - tasks on threads made for each call: what the thread sanitizer can follow
 *
 * Cost: a thread creation per thread and call; for sanitizer builds only.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "kernels/cpu/cpu.h"

struct crew {
    cpu_task_fn *fn;
    void *context;
    int64_t n_tasks;
    _Atomic int64_t next;
};

struct member {
    struct crew *crew;
    int thread;
    pthread_t id;
};

static void *work(void *arg)
{
    const struct member *member = arg;
    struct crew *crew = member->crew;
    for (;;) {
        const int64_t task = atomic_fetch_add(&crew->next, 1);
        if (task >= crew->n_tasks) {
            return NULL;
        }
        crew->fn(crew->context, task, member->thread);
    }
}

enum { MAX_MEMBERS = 64 };

void cpu_team_run(int n_threads, int64_t n_tasks, cpu_task_fn *fn, void *context)
{
    struct crew crew = {.fn = fn, .context = context, .n_tasks = n_tasks, .next = 0};
    struct member members[MAX_MEMBERS];
    int wanted = n_threads < MAX_MEMBERS ? n_threads : MAX_MEMBERS;
    wanted = n_tasks < wanted ? (int)n_tasks : wanted;
    int n_made = 1; // the caller is member 0
    for (; n_made < wanted; n_made++) {
        members[n_made] = (struct member){.crew = &crew, .thread = n_made};
        if (pthread_create(&members[n_made].id, NULL, work, &members[n_made]) != 0) {
            break; // the others do its share
        }
    }
    members[0] = (struct member){.crew = &crew, .thread = 0};
    work(&members[0]);
    for (int i = 1; i < n_made; i++) {
        pthread_join(members[i].id, NULL);
    }
}

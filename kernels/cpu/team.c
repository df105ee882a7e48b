/*
 * team.c - tasks on a team of threads that a stream keeps
 *
 * A call opens a job, the caller and the members that are awake take its tasks one by one, and the caller closes it when
 * the tasks have run out and those who had joined have left. It never waits for a member that did not join: one that sleeps,
 * or that the system runs elsewhere, comes too late and finds the job closed.
 *
 *     state    job number * JOB | OPEN | members inside      one word: joining and closing cannot cross
 *
 *     caller   write the job, state = number | OPEN          member   sees OPEN and a new number
 *              take tasks                                             state + 1, if it is still so
 *              state - OPEN                                           take tasks
 *              wait until nobody is inside                            state - 1
 *
 * Between jobs members look at the state for SPINS rounds, some 100 us: jobs of a step follow each other faster. Then they
 * sleep, and the next job wakes them with one system call.
 *
 * Numerics: which thread runs a task, and when, decides nothing: tasks write disjoint results.
 * Cost:     an empty job of 2 threads takes 0.25 us where members are awake; a parallel loop of libgomp took 0.66 - 0.91 us
 *           beside it, and milliseconds where the system had taken the core from one of its threads (bench_kernels).
 */
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/cpu.h"

#define LINE_BYTES 64

#define OPEN ((uint64_t)1 << 16)
#define JOB  (2 * OPEN)

enum { SPINS = 4000 };

struct member {
    struct cpu_team *team;
    int thread;
    pthread_t id;
};

struct cpu_team {
    _Alignas(LINE_BYTES) _Atomic uint64_t state;
    _Alignas(LINE_BYTES) _Atomic int64_t next; /* task */

    /* The job: written by the caller before it opens. */
    _Alignas(LINE_BYTES) cpu_task_fn *fn;
    void *context;
    int64_t n_tasks;

    struct member *members; /* [n_threads - 1] */
    int n_threads;
    int n_members; /* that were started */
    bool pinned;   /* the caller, who could run on `before` */
    cpu_set_t before;
    _Atomic uint32_t calls; /* counts wake-ups; members sleep on it */
    _Atomic uint32_t n_sleeping;
    _Atomic bool ended;
};

/* Leaves the core's units to the other thread of it. */
#if defined(__x86_64__)
static inline void relax(void)
{
    __builtin_ia32_pause();
}
#else
static inline void relax(void)
{
}
#endif

// ---- tasks ----

static void take_tasks(struct cpu_team *team, int thread)
{
    for (;;) {
        const int64_t task = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
        if (task >= team->n_tasks) {
            return;
        }
        team->fn(team->context, task, thread);
    }
}

// ---- members ----

/* Goes inside when the job is open and not the one seen last; *seen becomes its number. */
static bool join(struct cpu_team *team, uint64_t *seen)
{
    uint64_t state = atomic_load_explicit(&team->state, memory_order_acquire);
    while ((state & OPEN) != 0 && state / JOB != *seen) {
        if (atomic_compare_exchange_weak_explicit(&team->state, &state, state + 1,
                                                  memory_order_acquire, memory_order_acquire)) {
            *seen = state / JOB;
            return true;
        }
    }
    return false;
}

/* A job that opened before n_sleeping was counted up is seen by the caller of sleep; one that opens after it wakes. */
static void doze(struct cpu_team *team, uint64_t seen)
{
    atomic_fetch_add(&team->n_sleeping, 1);
    const uint32_t calls = atomic_load(&team->calls);
    const uint64_t state = atomic_load(&team->state);
    const bool news = (state & OPEN) != 0 && state / JOB != seen;
    if (!news && !atomic_load(&team->ended)) {
        (void)syscall(SYS_futex, &team->calls, FUTEX_WAIT_PRIVATE, calls, NULL, NULL, 0);
    }
    atomic_fetch_sub(&team->n_sleeping, 1);
}

static void wake(struct cpu_team *team)
{
    atomic_fetch_add(&team->calls, 1);
    (void)syscall(SYS_futex, &team->calls, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void *serve(void *arg)
{
    const struct member *member = arg;
    struct cpu_team *team = member->team;
    uint64_t seen = 0;
    int spins = 0;
    while (!atomic_load_explicit(&team->ended, memory_order_acquire)) {
        if (join(team, &seen)) {
            take_tasks(team, member->thread);
            atomic_fetch_sub_explicit(&team->state, 1, memory_order_release);
            spins = 0;
        } else if (++spins < SPINS) {
            relax();
        } else {
            doze(team, seen);
            spins = 0;
        }
    }
    return NULL;
}

// ---- jobs ----

void cpu_team_run(struct cpu_team *team, int64_t n_tasks, cpu_task_fn *fn, void *context)
{
    if (team == NULL || team->n_members == 0 || n_tasks <= 1) {
        for (int64_t task = 0; task < n_tasks; task++) {
            fn(context, task, 0);
        }
        return;
    }
    team->fn = fn;
    team->context = context;
    team->n_tasks = n_tasks;
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    const uint64_t job = atomic_load_explicit(&team->state, memory_order_relaxed) / JOB + 1;
    atomic_store(&team->state, job * JOB | OPEN);
    if (atomic_load(&team->n_sleeping) > 0) {
        wake(team);
    }
    take_tasks(team, 0);
    atomic_fetch_sub_explicit(&team->state, OPEN, memory_order_acquire);
    while (atomic_load_explicit(&team->state, memory_order_acquire) % OPEN != 0) {
        relax();
    }
}

// ---- life ----

static status_t pin(pthread_t thread, int32_t core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (core >= 0 && core < CPU_SETSIZE) {
        CPU_SET((size_t)core, &set);
    }
    const int rc = pthread_setaffinity_np(thread, sizeof set, &set);
    return rc == 0 ? status_ok()
                   : status_errorf(STATUS_INVALID_ARGUMENT, "a thread on core %d: %s", (int)core,
                                   strerror(rc));
}

/* The caller last: threads are where it was when it starts them. */
static status_t pin_all(struct cpu_team *team, const int32_t *cores)
{
    for (int i = 0; i < team->n_members; i++) {
        TRY(pin(team->members[i].id, cores[team->members[i].thread]));
    }
    CPU_ZERO(&team->before);
    (void)pthread_getaffinity_np(pthread_self(), sizeof team->before, &team->before);
    TRY(pin(pthread_self(), cores[0]));
    team->pinned = true;
    return status_ok();
}

/* Signals are for the threads that wait for them. */
static status_t start(struct cpu_team *team)
{
    sigset_t all;
    sigset_t before;
    int rc = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < team->n_threads - 1 && rc == 0; i++) {
        team->members[i] = (struct member){.team = team, .thread = i + 1};
        rc = pthread_create(&team->members[i].id, NULL, serve, &team->members[i]);
        team->n_members += rc == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc == 0 ? status_ok()
                   : status_errorf(STATUS_RESOURCE_EXHAUSTED, "thread %d of %d: %s",
                                   team->n_members + 2, team->n_threads, strerror(rc));
}

status_t cpu_team_new(int n_threads, const int32_t *cores, struct cpu_team **team_out)
{
    struct cpu_team *team = NULL;
    if (posix_memalign((void **)&team, LINE_BYTES, sizeof *team) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a team");
    }
    memset(team, 0, sizeof *team);
    team->n_threads = n_threads;
    team->members = calloc((size_t)n_threads, sizeof *team->members);
    status_t s = team->members != NULL ? start(team)
                                       : status_errorf(STATUS_RESOURCE_EXHAUSTED,
                                                       "out of memory for %d threads", n_threads);
    if (status_is_ok(&s) && cores != NULL) {
        s = pin_all(team, cores);
    }
    if (!status_is_ok(&s)) {
        cpu_team_free(team);
        return s;
    }
    *team_out = team;
    return status_ok();
}

void cpu_team_free(struct cpu_team *team)
{
    if (team == NULL) {
        return;
    }
    atomic_store(&team->ended, true);
    wake(team);
    for (int i = 0; i < team->n_members; i++) {
        pthread_join(team->members[i].id, NULL);
    }
    if (team->pinned) {
        (void)pthread_setaffinity_np(pthread_self(), sizeof team->before, &team->before);
    }
    free(team->members);
    free(team);
}

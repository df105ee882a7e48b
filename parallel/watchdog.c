#include "parallel/watchdog.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "parallel/comm_nccl.h"

/* Between two looks: a tenth of the time set, at most this. */
#define MAX_TICK_S 0.2

struct watchdog {
    struct watchdog_parts parts;
    pthread_t thread;

    pthread_mutex_t lock; /* of the fields below */
    pthread_cond_t changed;
    bool stop;
    status_t verdict;
};

static uint64_t mark_of(const struct watchdog *w)
{
    return __atomic_load_n(&w->parts.words->mark, __ATOMIC_ACQUIRE);
}

/* What the device was at: what it said it had begun, or what comes after what it said was done. */
static void describe(const struct watchdog *w, char *buf, size_t size)
{
    const uint32_t label = (uint32_t)mark_of(w);
    if ((label & COMM_NCCL_DONE) == 0) {
        comm_label_text(label, buf, size);
        return;
    }
    const uint32_t next = comm_label_after(w->parts.comm, label & ~COMM_NCCL_DONE);
    comm_label_text(next != 0 ? next : comm_label_now(w->parts.comm), buf, size);
}

static void trip(struct watchdog *w, const char *why)
{
    char label[96];
    describe(w, label, sizeof label);
    const status_t verdict =
        status_errorf(STATUS_UNAVAILABLE, "rank %d: %s: %s", w->parts.comm->rank, label, why);
    pthread_mutex_lock(&w->lock);
    w->verdict = verdict;
    pthread_mutex_unlock(&w->lock);
    log_status(&w->parts.log, LOG_ERROR, "a collective is ended", &verdict);
    w->parts.end(w->parts.user); // last: who waits may go on at once and ask for the verdict
}

/* false: it was told to stop. */
static bool sleep_for(struct watchdog *w, double seconds)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    const int64_t ns = until.tv_nsec + (int64_t)(seconds * NS_PER_S);
    until.tv_sec += (time_t)(ns / (int64_t)NS_PER_S);
    until.tv_nsec = (long)(ns % (int64_t)NS_PER_S);
    pthread_mutex_lock(&w->lock);
    if (!w->stop) {
        (void)pthread_cond_timedwait(&w->changed, &w->lock, &until); // early only means a look more
    }
    const bool go_on = !w->stop;
    pthread_mutex_unlock(&w->lock);
    return go_on;
}

/* Looks until something is wrong or the watchdog is told to stop. */
static void *watch(void *user)
{
    struct watchdog *w = user;
    const double tick_s =
        w->parts.timeout_s / 10 < MAX_TICK_S ? w->parts.timeout_s / 10 : MAX_TICK_S;
    uint64_t seen = mark_of(w);
    uint64_t since = clock_now_ns(clock_system());
    while (sleep_for(w, tick_s)) {
        const uint64_t now = clock_now_ns(clock_system());
        const uint64_t mark = mark_of(w);
        if (mark != seen || atomic_load(&w->parts.comm->n_steps) == 0) {
            seen = mark;
            since = now;
            continue;
        }
        const status_t s = w->parts.look(w->parts.user);
        if (!status_is_ok(&s)) {
            trip(w, s.msg);
            break;
        }
        if ((double)(now - since) / NS_PER_S > w->parts.timeout_s) {
            char why[64];
            (void)snprintf(why, sizeof why, "no end within %.1f s", w->parts.timeout_s);
            trip(w, why);
            break;
        }
    }
    return NULL;
}

status_t watchdog_new(const struct watchdog_parts *parts, struct watchdog **watchdog_out)
{
    struct watchdog *w = calloc(1, sizeof *w);
    if (w == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "watchdog: no memory");
    }
    w->parts = *parts;
    w->verdict = status_ok();
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    const int error = pthread_create(&w->thread, NULL, watch, w);
    if (error != 0) {
        free(w);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "watchdog: %s", strerror(error));
    }
    *watchdog_out = w;
    return status_ok();
}

void watchdog_free(struct watchdog *w)
{
    if (w == NULL) {
        return;
    }
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    (void)pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

status_t watchdog_verdict(struct watchdog *w)
{
    pthread_mutex_lock(&w->lock);
    const status_t verdict = w->verdict;
    pthread_mutex_unlock(&w->lock);
    return verdict;
}

#include "base/mailbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

status_t mailbox_init(struct mailbox *m, size_t capacity)
{
    *m = (struct mailbox){.capacity = capacity};
    m->items = calloc(capacity, sizeof *m->items);
    if (m->items == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a mailbox of %zu",
                             capacity);
    }
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&m->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&m->mutex, NULL);
    return status_ok();
}

void mailbox_destroy(struct mailbox *m)
{
    if (m->items == NULL) {
        return;
    }
    pthread_cond_destroy(&m->cond);
    pthread_mutex_destroy(&m->mutex);
    free(m->items);
    memset(m, 0, sizeof *m);
}

status_t mailbox_post(struct mailbox *m, void *item)
{
    status_t s = status_ok();
    pthread_mutex_lock(&m->mutex);
    if (m->closed) {
        s = status_errorf(STATUS_UNAVAILABLE, "mailbox is closed");
    } else if (m->count == m->capacity) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "mailbox is full, %zu items", m->capacity);
    } else {
        m->items[(m->head + m->count) % m->capacity] = item;
        m->count++;
        pthread_cond_signal(&m->cond);
    }
    pthread_mutex_unlock(&m->mutex);
    return s;
}

static struct timespec deadline_after(uint64_t timeout_ns)
{
    const uint64_t now = clock_now_ns(clock_system());
    // A sum that wraps would be a deadline in the past; INT64_MAX ns is 292 years.
    const uint64_t at = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
    return (struct timespec){.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)};
}

/* With the mutex held: waits until there is a reason to return, or until the time is up. */
static void wait_for_reason(struct mailbox *m, uint64_t timeout_ns)
{
    const struct timespec deadline = deadline_after(timeout_ns);
    int rc = 0;
    while (m->count == 0 && !m->closed && !m->woken && rc != ETIMEDOUT) {
        rc = timeout_ns == UINT64_MAX ? pthread_cond_wait(&m->cond, &m->mutex)
                                      : pthread_cond_timedwait(&m->cond, &m->mutex, &deadline);
    }
}

void *mailbox_take(struct mailbox *m, uint64_t timeout_ns)
{
    void *item = NULL;
    pthread_mutex_lock(&m->mutex);
    if (timeout_ns > 0) {
        wait_for_reason(m, timeout_ns);
    }
    if (m->count > 0) {
        item = m->items[m->head];
        m->head = (m->head + 1) % m->capacity;
        m->count--;
    } else if (timeout_ns > 0) {
        m->woken = false; // a poll leaves the wake to the take that would have waited
    }
    pthread_mutex_unlock(&m->mutex);
    return item;
}

void mailbox_wake(struct mailbox *m)
{
    pthread_mutex_lock(&m->mutex);
    m->woken = true;
    pthread_cond_signal(&m->cond);
    pthread_mutex_unlock(&m->mutex);
}

void mailbox_close(struct mailbox *m)
{
    pthread_mutex_lock(&m->mutex);
    m->closed = true;
    pthread_cond_signal(&m->cond);
    pthread_mutex_unlock(&m->mutex);
}

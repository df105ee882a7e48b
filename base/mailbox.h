/*
 * mailbox.h - a bounded queue of pointers into one owner thread
 *
 * What:      many threads post, one owner takes. The only way threads hand work to each other here.
 * Ownership: of an item moves with it: to the mailbox by post, to the taker by take.
 * Thread:    post and wake: any; take: the owner. One mutex inside, never held during a callback.
 * Errors:    post returns RESOURCE_EXHAUSTED when full, UNAVAILABLE after close; the item stays the caller's.
 */
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct mailbox {
    pthread_mutex_t mutex;
    pthread_cond_t cond; /* CLOCK_MONOTONIC */
    void **items;        /* ring of capacity */
    size_t capacity;
    size_t head;
    size_t count;
    bool closed;
    bool woken;
};

MUST_USE status_t mailbox_init(struct mailbox *m, size_t capacity);
void mailbox_destroy(struct mailbox *m); /* must be empty or its items owned elsewhere */

MUST_USE status_t mailbox_post(struct mailbox *m, void *item);

/* Waits at most timeout_ns (0: polls, UINT64_MAX: forever). NULL on timeout, wake or closed-and-empty. */
void *mailbox_take(struct mailbox *m, uint64_t timeout_ns);

void mailbox_wake(struct mailbox *m);  /* makes a waiting take return NULL once */
void mailbox_close(struct mailbox *m); /* later posts fail; what is queued can still be taken */

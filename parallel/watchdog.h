/*
 * watchdog.h - a thread that ends collectives which do not end by themselves
 *
 * What:      while a step is under way (comm_step_begin) the device must go on: its mark (kernels/peers.h) has to change within
 *            the time set. Else, or where `look` says that something is wrong, the thread logs which collective it was and
 *            calls `end`, which makes what hangs return; whoever waits for it then asks for the verdict.
 * Ownership: borrows comm, words and the log, which must outlive it.
 * Thread:    new and free: owner's. look and end are called on the watchdog's own thread.
 * Errors:    UNAVAILABLE from watchdog_verdict: "rank 1: layer 3: sum after attention: no end within 30.0 s".
 */
#pragma once

#include "base/log.h"
#include "kernels/peers.h"
#include "parallel/comm.h"

struct watchdog;

struct watchdog_parts {
    struct comm *comm;
    const struct peers_words *words;
    double timeout_s;
    status_t (*look)(void *user);
    void (*end)(void *user);
    void *user;
    log_t log;
};

MUST_USE status_t watchdog_new(const struct watchdog_parts *parts, struct watchdog **watchdog_out);
void watchdog_free(struct watchdog *watchdog); /* accepts NULL */

/* OK until it has ended something. */
MUST_USE status_t watchdog_verdict(struct watchdog *watchdog);

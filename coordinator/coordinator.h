/*
 * coordinator.h - the whole coordinator, made of its parts
 *
 * What:      the root: gRPC server, core, ingress, HTTP. main.c gives it signals; tests give it a fake worker.
 * Ownership: borrows config and model; both outlive it.
 * Thread:    new, wait and free: one owner. drain and stop: any. on_ready comes from the core thread.
 * Errors:    UNAVAILABLE for an address that is taken; later failures come from coordinator_result.
 */
#pragma once

#include "base/log.h"
#include "base/status.h"
#include "coordinator/config_table.h"
#include "coordinator/model.h"

struct coordinator;

struct coordinator_options {
    const struct coordinator_config *config;
    const struct model *model;
    log_t log;
    void (*on_ready)(void *user);
    void (*on_stopped)(void *user);
    void *user;
};

MUST_USE status_t coordinator_new(const struct coordinator_options *options,
                                  struct coordinator **coordinator_out);

/* Finishes what runs, then stops: on_stopped follows. */
void coordinator_drain(struct coordinator *c);
void coordinator_stop(struct coordinator *c);

/* How it ended; after on_stopped. */
status_t coordinator_result(const struct coordinator *c);

void coordinator_free(struct coordinator *c); /* stops if need be; accepts NULL */

const char *coordinator_address(const struct coordinator *c);
const char *coordinator_http_address(const struct coordinator *c); /* NULL: off */

/*
 * client.h - a blocking client of kvasir.v1 for the commands
 *
 * Ownership: responses are borrowed by the callback until it returns.
 * Thread:    owner:main. gRPC's poller hands messages over through a mailbox.
 * Errors:    the call's status; UNAVAILABLE gets the fix "is a server running at ADDRESS?".
 */
#pragma once

#include "base/arena.h"
#include "proto/wire/cluster.h"
#include "proto/wire/inference.h"

struct client;

MUST_USE status_t client_open(const char *address, struct client **client_out);
void client_close(struct client *client); /* accepts NULL */

/* A failure of the callback cancels the call and is returned. */
typedef status_t (*client_response_fn)(void *user, const struct wire_generate_response *response);

struct client_generate_args {
    const struct wire_generate_request *request;
    uint64_t timeout_ns; /* RPC_NO_DEADLINE: none */
    client_response_fn on_response;
    void *user;
};

/* Streams one completion; returns when the call is over. */
MUST_USE status_t client_generate(struct client *client, const struct client_generate_args *args);

/* Results borrow from the arena. */
MUST_USE status_t client_model_info(struct client *client, struct arena *arena,
                                    struct wire_model_info *info_out);
MUST_USE status_t client_status(struct client *client, struct arena *arena,
                                struct wire_cluster_status *status_out);

/*
 * router.h - who waits, who goes next, and to which worker group
 *
 * What:      admitted requests wait in one queue, smaller priority first, then by arrival. The head goes to the ready
 *            group with the fewest sequences in flight, as long as one has fewer than max_in_flight: the group's own
 *            scheduler does the batching, so a few batches ahead is all it needs to know. The sequences of an item go
 *            together: the last one to go may bring its group over max_in_flight.
 * Units:     requests, their sequences, and prompt tokens (tokens).
 * Ownership: items and the groups' user pointers are the caller's; an item is in the queue at most once.
 * Thread:    owner:core. No clock, no syscalls.
 * Errors:    RESOURCE_EXHAUSTED naming the bound, its value and the flag that moves it.
 * Invariant: n_queued <= max_queued and queued_tokens <= max_queued_tokens, but for one request that is alone.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define ROUTER_MAX_GROUPS 64
#define ROUTER_NOT_QUEUED SIZE_MAX

struct router_item {
    int32_t priority; /* smaller first */
    uint32_t n_tokens;
    uint32_t n_seqs;  /* at least 1 */
    uint64_t arrival; /* set by admit */
    size_t at;        /* index in the heap; ROUTER_NOT_QUEUED */
};

struct router_group {
    bool ready;
    uint32_t in_flight;
};

struct router {
    uint32_t max_queued, max_in_flight;
    uint64_t max_queued_tokens;
    struct router_item **heap; /* [max_queued + 1] */
    size_t n_queued;
    uint64_t queued_tokens, next_arrival;
    struct router_group groups[ROUTER_MAX_GROUPS];
};

MUST_USE status_t router_init(struct router *r, uint32_t max_queued, uint64_t max_queued_tokens,
                              uint32_t max_in_flight);
void router_destroy(struct router *r); /* accepts a zeroed router; items stay the caller's */

/* Puts the item into the queue. One that could go out at once always fits. */
MUST_USE status_t router_admit(struct router *r, struct router_item *item);

/* Takes the item back out of the queue; nothing happens when it is not in it. */
void router_remove(struct router *r, struct router_item *item);

/* The next item and the group it goes to (its in_flight grows by n_seqs), or NULL: queue empty, or all busy. */
struct router_item *router_next(struct router *r, int *group_out);

/* Any item of the queue, taken out; NULL when it is empty. For ending them all. */
struct router_item *router_pop(struct router *r);

/* Puts an item that router_next gave back where it was: the group could not take it now. */
void router_put_back(struct router *r, struct router_item *item, int group);

/* Puts an item back whose group was lost, where it was; false when there is no place. */
bool router_return(struct router *r, struct router_item *item);

/* So many sequences of the group ended. */
void router_done(struct router *r, int group, uint32_t n);

/* A group that is not ready has nothing in flight any more. */
void router_set_ready(struct router *r, int group, bool ready);

bool router_any_ready(const struct router *r);
uint32_t router_in_flight(const struct router *r); /* of all groups */

/*
 * bpe_queue.h - the symbols of a long word, and the order in which their pairs merge
 *
 * What:      a linked list of symbols, and a priority queue of the positions where two neighbours can merge: lowest
 *            rank first, leftmost first among equals. A pair that is queued behind all others of its rank goes to the
 *            end of that rank's list, which costs nothing; only one that comes out of order goes into a heap. A run
 *            of one character, where the heap would take longest, never touches it.
 *
 *              rank 7   [ 0 - 3 - 9 ]      first[7] = 0, last[7] = 9
 *              rank 12  [ 5 ]              set bits find the lowest rank that has a list
 *              heap     (12, 2) (40, 6)
 *
 * Ownership: owns its arrays, which grow to the longest word and are reused.
 * Thread:    one owner at a time.
 * Errors:    RESOURCE_EXHAUSTED without memory.
 * Invariant: a position is in at most one list; entries of the heap whose rank is no longer the node's are skipped.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define BPE_NONE UINT32_MAX

struct bpe_node {
    uint32_t id;         /* of the symbol */
    uint32_t prev, next; /* neighbours, BPE_NONE at the ends */
    uint32_t rank;       /* of the pair with the right neighbour; BPE_NONE: not queued */
    uint32_t before,
        after; /* in the list of that rank; before == BPE_IN_HEAP: in the heap instead */
};

#define BPE_QUEUE_LEVELS 4

struct bpe_queue {
    struct bpe_node *nodes;
    size_t n_nodes; /* allocated */
    size_t n_ranks;
    uint32_t *first, *last; /* by rank: position + 1, 0 when the list is empty */
    uint64_t *bits
        [BPE_QUEUE_LEVELS]; /* level 0: one bit per rank; level i + 1: one per word of level i */
    uint64_t *heap;         /* rank << 32 | position */
    size_t n_heap, heap_capacity;
};

/* Room for a word of n_nodes symbols and for n_ranks ranks (the same in every call). */
MUST_USE status_t bpe_queue_prepare(struct bpe_queue *queue, size_t n_nodes, size_t n_ranks);
void bpe_queue_destroy(struct bpe_queue *queue); /* accepts a zeroed queue */

/* Queues the pair at a position that is not queued. */
MUST_USE status_t bpe_queue_add(struct bpe_queue *queue, uint32_t at, uint32_t rank);

/* Takes a position out of the queue, if it is in it. */
void bpe_queue_drop(struct bpe_queue *queue, uint32_t at);

/* The position to merge next, BPE_NONE when nothing is queued. It stays queued. */
uint32_t bpe_queue_peek(struct bpe_queue *queue);

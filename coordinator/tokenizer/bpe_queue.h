/*
 * bpe_queue.h - in which order the pairs of a long word merge
 *
 * What:      a priority queue of positions: lowest rank first, leftmost first among equals. It sweeps over the ranks
 *            from low to high. A pair whose rank is still ahead goes into that rank's bucket, which costs nothing;
 *            when the sweep reaches it, the bucket becomes the active list. Only a pair whose rank has been passed
 *            already goes into a heap; few tokenizers have such pairs. A word so short that a heap of it stays in the
 *            cache uses the heap alone.
 *
 *              swept up to rank 7          active   [ 0  2  4 | 6  8 ]        of rank 7
 *              late                        heap     (3, 4)
 *              ahead                       rank 12  chunk [ 1 5 .. ] -> chunk [ 9 ]
 *
 *            A bucket is in order as it was filled when all its pairs are of the same two tokens. What merges inside
 *            a token does not depend on its surroundings, so a given pair of tokens always comes about in the same
 *            rank's sweep and at the same distance from the position that is merged then; and a sweep goes from left
 *            to right. Where several pairs share a rank the bucket may have to be sorted.
 *
 * Layout:    a chunk is 16 numbers: the next chunk, then 15 positions.
 * Ownership: owns its arrays, which grow to the longest word and are reused.
 * Thread:    one owner at a time.
 * Errors:    RESOURCE_EXHAUSTED without memory; the queue can then only be destroyed.
 * Invariant: entries are not taken out when their pair changes: nodes[at].rank says what is so now, and entries that
 *            say another rank are skipped.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define BPE_NONE   UINT32_MAX
#define BPE_INSIDE (UINT32_MAX - 1)

/* One per position of the word. A symbol of n positions is known by the first; the last one leads back to it. */
struct bpe_node {
    uint32_t id; /* of the symbol; at the last position of a longer one: where that starts */
    uint32_t
        rank; /* of the pair with the right neighbour; BPE_NONE: cannot merge; BPE_INSIDE: not a symbol's start */
};

struct bpe_bucket {
    uint32_t head, tail; /* chunks; meaningless while n is 0 */
    uint32_t n;
};

struct bpe_positions {
    uint32_t *data;
    size_t n, capacity;
};

#define BPE_CHUNK 16

struct bpe_queue {
    struct bpe_node *nodes; /* [node_capacity]: of the word; the caller fills them */
    size_t node_capacity;

    size_t n_ranks;
    struct bpe_bucket *buckets;
    uint64_t *bits, *summary; /* a bit per bucket that is not empty; a bit per word of `bits` */

    uint32_t (*chunks)[BPE_CHUNK];
    size_t n_chunks, chunk_capacity;
    uint32_t free_chunk; /* BPE_NONE: none */

    int64_t swept; /* rank of the active bucket, -1 before the first */
    struct bpe_positions active;
    size_t at; /* next of active */

    uint64_t *heap; /* rank << 32 | position */
    size_t n_heap, heap_capacity;

    uint64_t n_pushed,
        n_sorted; /* since the queue was made, for tests: what time is proportional to */
};

/* Room for more nodes. */
MUST_USE status_t bpe_queue_grow(struct bpe_queue *queue);

/* Begins a word of n nodes that are there; n_ranks is the same in every call. */
MUST_USE status_t bpe_queue_begin(struct bpe_queue *queue, size_t n, size_t n_ranks);
void bpe_queue_destroy(struct bpe_queue *queue); /* accepts a zeroed queue */

/* Queues the pair at a position; nodes[at].rank says which. */
MUST_USE status_t bpe_queue_push(struct bpe_queue *queue, uint32_t at);

/* Takes the position to merge next; BPE_NONE when there is none. */
MUST_USE status_t bpe_queue_pop(struct bpe_queue *queue, uint32_t *at_out);

#include "coordinator/tokenizer/bpe_queue.h"

#include <assert.h>
#include <stdlib.h>

#define BPE_IN_HEAP (UINT32_MAX - 1)

// ---- memory ----

static status_t allocate_ranks(struct bpe_queue *queue, size_t n_ranks)
{
    queue->first = calloc(n_ranks + 1, sizeof *queue->first);
    queue->last = calloc(n_ranks + 1, sizeof *queue->last);
    bool complete = queue->first != NULL && queue->last != NULL;
    size_t n_words = n_ranks;
    for (int level = 0; level < BPE_QUEUE_LEVELS; level++) {
        n_words = n_words / 64 + 1;
        queue->bits[level] = calloc(n_words, sizeof *queue->bits[level]);
        complete = complete && queue->bits[level] != NULL;
    }
    assert(n_words == 1); // the top level is one word
    if (!complete) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges", n_ranks);
    }
    queue->n_ranks = n_ranks;
    return status_ok();
}

status_t bpe_queue_prepare(struct bpe_queue *queue, size_t n_nodes, size_t n_ranks)
{
    if (queue->n_ranks != n_ranks) {
        bpe_queue_destroy(queue);
        TRY(allocate_ranks(queue, n_ranks));
    }
    if (n_nodes > queue->n_nodes) {
        free(queue->nodes); // its content is of no use
        queue->n_nodes = 0;
        queue->nodes = malloc(n_nodes * sizeof *queue->nodes);
        if (queue->nodes == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu symbols",
                                 n_nodes);
        }
        queue->n_nodes = n_nodes;
    }
    return status_ok();
}

void bpe_queue_destroy(struct bpe_queue *queue)
{
    free(queue->nodes);
    free(queue->first);
    free(queue->last);
    for (int level = 0; level < BPE_QUEUE_LEVELS; level++) {
        free(queue->bits[level]);
    }
    free(queue->heap);
    *queue = (struct bpe_queue){0};
}

// ---- which ranks have a list ----

static void mark(struct bpe_queue *queue, size_t rank)
{
    for (int level = 0; level < BPE_QUEUE_LEVELS; level++) {
        queue->bits[level][rank / 64] |= 1ull << rank % 64;
        rank /= 64;
    }
}

static void unmark(struct bpe_queue *queue, size_t rank)
{
    for (int level = 0; level < BPE_QUEUE_LEVELS; level++) {
        uint64_t *word = &queue->bits[level][rank / 64];
        *word &= ~(1ull << rank % 64);
        if (*word != 0) {
            return; // the level above still sees a bit
        }
        rank /= 64;
    }
}

static uint32_t lowest_rank(const struct bpe_queue *queue)
{
    if (queue->bits[BPE_QUEUE_LEVELS - 1][0] == 0) {
        return BPE_NONE;
    }
    size_t at = 0;
    for (int level = BPE_QUEUE_LEVELS - 1; level >= 0; level--) {
        at = at * 64 + (size_t)__builtin_ctzll(queue->bits[level][at]);
    }
    return (uint32_t)at;
}

// ---- the heap for what comes out of order ----

static status_t heap_push(struct bpe_queue *queue, uint64_t key)
{
    if (queue->n_heap == queue->heap_capacity) {
        const size_t capacity = 2 * queue->heap_capacity + 1024;
        uint64_t *heap = realloc(queue->heap, capacity * sizeof *heap);
        if (heap == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges",
                                 capacity);
        }
        queue->heap = heap;
        queue->heap_capacity = capacity;
    }
    size_t at = queue->n_heap++;
    while (at > 0 && queue->heap[(at - 1) / 2] > key) {
        queue->heap[at] = queue->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    queue->heap[at] = key;
    return status_ok();
}

static void heap_pop(struct bpe_queue *queue)
{
    const uint64_t key = queue->heap[--queue->n_heap];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= queue->n_heap) {
            break;
        }
        if (child + 1 < queue->n_heap && queue->heap[child + 1] < queue->heap[child]) {
            child++;
        }
        if (queue->heap[child] >= key) {
            break;
        }
        queue->heap[at] = queue->heap[child];
        at = child;
    }
    if (queue->n_heap > 0) {
        queue->heap[at] = key;
    }
}

/* The lowest entry that still says what its node says. */
static uint64_t heap_top(struct bpe_queue *queue)
{
    while (queue->n_heap > 0) {
        const struct bpe_node *node = &queue->nodes[(uint32_t)queue->heap[0]];
        if (node->rank == queue->heap[0] >> 32) {
            return queue->heap[0];
        }
        heap_pop(queue);
    }
    return UINT64_MAX;
}

// ---- the queue ----

status_t bpe_queue_add(struct bpe_queue *queue, uint32_t at, uint32_t rank)
{
    struct bpe_node *node = &queue->nodes[at];
    const uint32_t last = queue->last[rank];
    node->rank = rank;
    if (last > at) { // last is a position + 1
        node->before = BPE_IN_HEAP;
        return heap_push(queue, (uint64_t)rank << 32 | at);
    }
    node->after = BPE_NONE;
    queue->last[rank] = at + 1;
    if (last == 0) {
        node->before = BPE_NONE;
        queue->first[rank] = at + 1;
        mark(queue, rank);
    } else {
        node->before = last - 1;
        queue->nodes[last - 1].after = at;
    }
    return status_ok();
}

void bpe_queue_drop(struct bpe_queue *queue, uint32_t at)
{
    struct bpe_node *node = &queue->nodes[at];
    const uint32_t rank = node->rank;
    if (rank == BPE_NONE) {
        return;
    }
    node->rank = BPE_NONE;
    if (node->before == BPE_IN_HEAP) {
        return; // its entry is skipped when it comes up
    }
    // BPE_NONE + 1 is 0: the list is empty on that side.
    if (node->before == BPE_NONE) {
        queue->first[rank] = node->after + 1;
    } else {
        queue->nodes[node->before].after = node->after;
    }
    if (node->after == BPE_NONE) {
        queue->last[rank] = node->before + 1;
    } else {
        queue->nodes[node->after].before = node->before;
    }
    if (queue->first[rank] == 0) {
        unmark(queue, rank);
    }
}

uint32_t bpe_queue_peek(struct bpe_queue *queue)
{
    const uint64_t heap = heap_top(queue);
    const uint32_t rank = lowest_rank(queue);
    if (rank == BPE_NONE) {
        return heap == UINT64_MAX ? BPE_NONE : (uint32_t)heap;
    }
    const uint32_t at = queue->first[rank] - 1;
    return heap < ((uint64_t)rank << 32 | at) ? (uint32_t)heap : at;
}

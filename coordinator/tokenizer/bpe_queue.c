#include "coordinator/tokenizer/bpe_queue.h"

#include <stdlib.h>

#define PER_CHUNK (BPE_CHUNK - 1)
#define MIN_ROOM  1024u
// Words up to this many symbols use the heap alone.
#define HEAP_WORD 2048
// How many entries before they are popped their nodes are asked for.
#define PREFETCH_AHEAD 8

// ---- memory ----

/* Doubles an array that is full. */
static status_t grow(void **data, size_t *capacity, size_t element_bytes)
{
    const size_t larger = 2 * *capacity + MIN_ROOM;
    void *moved = realloc(*data, larger * element_bytes);
    if (moved == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges", larger);
    }
    *data = moved;
    *capacity = larger;
    return status_ok();
}

static status_t allocate_ranks(struct bpe_queue *queue, size_t n_ranks)
{
    queue->bits = calloc(n_ranks / 64 + 1, sizeof *queue->bits);
    queue->summary = calloc(n_ranks / 4096 + 1, sizeof *queue->summary);
    queue->buckets = calloc(n_ranks + 1, sizeof *queue->buckets);
    if (queue->buckets == NULL || queue->bits == NULL || queue->summary == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges", n_ranks);
    }
    queue->n_ranks = n_ranks;
    return status_ok();
}

status_t bpe_queue_grow(struct bpe_queue *queue)
{
    void *data = queue->nodes;
    TRY(grow(&data, &queue->node_capacity, sizeof *queue->nodes));
    queue->nodes = data;
    return status_ok();
}

status_t bpe_queue_begin(struct bpe_queue *queue, size_t n, size_t n_ranks)
{
    if (queue->buckets == NULL) {
        TRY(allocate_ranks(queue, n_ranks));
    }
    queue->n_chunks = 0;
    queue->free_chunk = BPE_NONE;
    queue->swept = n <= HEAP_WORD ? (int64_t)n_ranks : -1; // all ranks passed: all into the heap
    queue->n_heap = 0;
    queue->active.n = 0;
    queue->at = 0;
    return status_ok();
}

void bpe_queue_destroy(struct bpe_queue *queue)
{
    free(queue->nodes);
    free(queue->buckets);
    free(queue->bits);
    free(queue->summary);
    free(queue->chunks);
    free(queue->active.data);
    free(queue->heap);
    *queue = (struct bpe_queue){0};
}

// ---- buckets: ranks ahead of the sweep ----

static status_t take_chunk(struct bpe_queue *queue, uint32_t *index_out)
{
    if (queue->free_chunk != BPE_NONE) {
        *index_out = queue->free_chunk;
        queue->free_chunk = queue->chunks[*index_out][0];
        return status_ok();
    }
    if (queue->n_chunks == queue->chunk_capacity) {
        void *data = queue->chunks;
        TRY(grow(&data, &queue->chunk_capacity, sizeof *queue->chunks));
        queue->chunks = data;
    }
    *index_out = (uint32_t)queue->n_chunks++;
    return status_ok();
}

static status_t bucket_push(struct bpe_queue *queue, uint32_t rank, uint32_t at)
{
    struct bpe_bucket *bucket = &queue->buckets[rank];
    const uint32_t slot = bucket->n % PER_CHUNK;
    if (slot == 0) {
        uint32_t chunk;
        TRY(take_chunk(queue, &chunk));
        if (bucket->n == 0) {
            bucket->head = chunk;
            queue->bits[rank / 64] |= 1ull << rank % 64;
            queue->summary[rank / 4096] |= 1ull << rank / 64 % 64;
        } else {
            queue->chunks[bucket->tail][0] = chunk;
        }
        bucket->tail = chunk;
    }
    queue->chunks[bucket->tail][1 + slot] = at;
    bucket->n++;
    return status_ok();
}

/* The lowest rank with a bucket, all of which are ahead; BPE_NONE: no bucket is left. */
static uint32_t next_bucket(const struct bpe_queue *queue)
{
    const size_t n_summary = queue->n_ranks / 4096 + 1;
    for (size_t i = (size_t)(queue->swept + 1) / 4096; i < n_summary; i++) {
        if (queue->summary[i] != 0) {
            const size_t word = i * 64 + (size_t)__builtin_ctzll(queue->summary[i]);
            return (uint32_t)(word * 64 + (size_t)__builtin_ctzll(queue->bits[word]));
        }
    }
    return BPE_NONE;
}

static void clear_bucket(struct bpe_queue *queue, uint32_t rank)
{
    struct bpe_bucket *bucket = &queue->buckets[rank];
    queue->chunks[bucket->tail][0] = queue->free_chunk;
    queue->free_chunk = bucket->head;
    bucket->n = 0;
    queue->bits[rank / 64] &= ~(1ull << rank % 64);
    if (queue->bits[rank / 64] == 0) {
        queue->summary[rank / 4096] &= ~(1ull << rank / 64 % 64);
    }
}

static int compare_positions(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a;
    const uint32_t y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Asks for the memory of what the loop below will look at: positions of a rank lie far apart in a long word. */
static void prefetch_chunk(const struct bpe_queue *queue, const uint32_t *chunk, uint32_t n_left)
{
    const uint32_t n = n_left < PER_CHUNK ? n_left : PER_CHUNK;
    for (uint32_t i = 0; i < n; i++) {
        __builtin_prefetch(&queue->nodes[chunk[1 + i]]);
    }
    if (n_left > PER_CHUNK) {
        __builtin_prefetch(queue->chunks[chunk[0]]);
    }
}

/* Sweeps on to this rank: its bucket, without what is out of date, becomes the active list. */
static status_t activate(struct bpe_queue *queue, uint32_t rank)
{
    const struct bpe_bucket *bucket = &queue->buckets[rank];
    while (queue->active.capacity < bucket->n) {
        void *data = queue->active.data;
        TRY(grow(&data, &queue->active.capacity, sizeof *queue->active.data));
        queue->active.data = data;
    }
    uint32_t *to = queue->active.data;
    bool in_order = true;
    const uint32_t *chunk = queue->chunks[bucket->head];
    for (uint32_t i = 0; i < bucket->n; i++) {
        if (i % PER_CHUNK == 0) {
            chunk = i > 0 ? queue->chunks[chunk[0]] : chunk;
            prefetch_chunk(queue, chunk, bucket->n - i);
        }
        const uint32_t at = chunk[1 + i % PER_CHUNK];
        if (queue->nodes[at].rank == rank) {
            in_order = in_order && (to == queue->active.data || to[-1] < at);
            *to++ = at;
        }
    }
    queue->active.n = (size_t)(to - queue->active.data);
    if (!in_order) {
        queue->n_sorted += queue->active.n;
        qsort(queue->active.data, queue->active.n, sizeof *queue->active.data, compare_positions);
    }
    queue->at = 0;
    queue->swept = rank;
    clear_bucket(queue, rank);
    return status_ok();
}

// ---- the heap: ranks behind the sweep ----

static status_t heap_push(struct bpe_queue *queue, uint64_t key)
{
    if (queue->n_heap == queue->heap_capacity) {
        void *data = queue->heap;
        TRY(grow(&data, &queue->heap_capacity, sizeof *queue->heap));
        queue->heap = data;
    }
    size_t at = queue->n_heap++;
    while (at > 0 && queue->heap[(at - 1) / 2] > key) {
        queue->heap[at] = queue->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    queue->heap[at] = key;
    return status_ok();
}

static void heap_drop_top(struct bpe_queue *queue)
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
    queue->heap[at] = key; // one beyond the end when the heap has become empty: still its memory
}

/* The lowest entry that is not out of date; UINT64_MAX: none. */
static uint64_t heap_top(struct bpe_queue *queue)
{
    while (queue->n_heap > 0) {
        const uint64_t key = queue->heap[0];
        if (queue->nodes[(uint32_t)key].rank == key >> 32) {
            return key;
        }
        heap_drop_top(queue);
    }
    return UINT64_MAX;
}

// ---- the queue ----

status_t bpe_queue_push(struct bpe_queue *queue, uint32_t at)
{
    const uint32_t rank = queue->nodes[at].rank;
    queue->n_pushed++;
    if (rank <= queue->swept) {
        return heap_push(queue, (uint64_t)rank << 32 | at);
    }
    return bucket_push(queue, rank, at);
}

/* The next entry of the active list that is not out of date; UINT64_MAX: none. */
static uint64_t active_top(struct bpe_queue *queue)
{
    for (; queue->at < queue->active.n; queue->at++) {
        if (queue->at + PREFETCH_AHEAD < queue->active.n) {
            __builtin_prefetch(&queue->nodes[queue->active.data[queue->at + PREFETCH_AHEAD]]);
        }
        const uint32_t at = queue->active.data[queue->at];
        if (queue->nodes[at].rank == queue->swept) {
            return (uint64_t)queue->swept << 32 | at;
        }
    }
    return UINT64_MAX;
}

status_t bpe_queue_pop(struct bpe_queue *queue, uint32_t *at_out)
{
    for (;;) {
        const uint64_t active = active_top(queue);
        const uint64_t heap = heap_top(queue);
        if (heap < active) {
            heap_drop_top(queue);
            *at_out = (uint32_t)heap;
            return status_ok();
        }
        if (active != UINT64_MAX) {
            queue->at++;
            *at_out = (uint32_t)active;
            return status_ok();
        }
        const uint32_t rank = next_bucket(queue);
        if (rank == BPE_NONE) {
            *at_out = BPE_NONE;
            return status_ok();
        }
        TRY(activate(queue, rank));
    }
}

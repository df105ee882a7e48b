#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>

#define CHUNK_BYTES ((size_t)64 * 1024)

struct arena_chunk {
    struct arena_chunk *next;
    size_t capacity; /* bytes of data */
    size_t used;
    _Alignas(ARENA_ALIGNMENT) unsigned char data[];
};

void arena_init(struct arena *arena, size_t max_bytes)
{
    *arena = (struct arena){.max_bytes = max_bytes};
}

static void free_chunks(struct arena_chunk *chunk)
{
    while (chunk != NULL) {
        struct arena_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
}

void arena_destroy(struct arena *arena)
{
    free_chunks(arena->chunks);
    *arena = (struct arena){0};
}

void arena_reset(struct arena *arena)
{
    // The newest chunk is kept: an arena that is reset for each message then settles at no malloc.
    if (arena->chunks != NULL) {
        free_chunks(arena->chunks->next);
        arena->chunks->next = NULL;
        arena->chunks->used = 0;
    }
    arena->used_bytes = 0;
}

static struct arena_chunk *add_chunk(struct arena *arena, size_t size)
{
    const size_t capacity = size > CHUNK_BYTES ? size : CHUNK_BYTES;
    if (capacity > SIZE_MAX - sizeof(struct arena_chunk)) {
        return NULL;
    }
    struct arena_chunk *chunk = malloc(sizeof *chunk + capacity);
    if (chunk == NULL) {
        return NULL;
    }
    chunk->next = arena->chunks;
    chunk->capacity = capacity;
    chunk->used = 0;
    arena->chunks = chunk;
    return chunk;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    const size_t rounded = arena_rounded_size(size);
    if (rounded == 0 || rounded > arena->max_bytes - arena->used_bytes) {
        return NULL;
    }
    struct arena_chunk *chunk = arena->chunks;
    if (chunk == NULL || rounded > chunk->capacity - chunk->used) {
        chunk = add_chunk(arena, rounded);
        if (chunk == NULL) {
            return NULL;
        }
    }
    void *p = chunk->data + chunk->used;
    chunk->used += rounded;
    arena->used_bytes += rounded;
    return p;
}

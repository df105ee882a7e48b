/*
 * arena_debug.c - the arena's twin for sanitizer builds: one malloc for each allocation
 *
 * What:      same limits, same alignment, same failures as arena.c; nothing is reused, so that a read past
 *            the end of an allocation or after a reset is reported where it happens.
 */
#include "base/arena.h"

#include <stdint.h>
#include <stdlib.h>

struct arena_chunk {
    struct arena_chunk *next;
    void *data;
};

void arena_init(struct arena *arena, size_t max_bytes)
{
    *arena = (struct arena){.max_bytes = max_bytes};
}

void arena_reset(struct arena *arena)
{
    struct arena_chunk *chunk = arena->chunks;
    while (chunk != NULL) {
        struct arena_chunk *next = chunk->next;
        free(chunk->data);
        free(chunk);
        chunk = next;
    }
    arena->chunks = NULL;
    arena->used_bytes = 0;
}

void arena_destroy(struct arena *arena)
{
    arena_reset(arena);
    *arena = (struct arena){0};
}

void *arena_alloc(struct arena *arena, size_t size)
{
    const size_t rounded = arena_rounded_size(size);
    if (rounded == 0 || rounded > arena->max_bytes - arena->used_bytes) {
        return NULL;
    }
    struct arena_chunk *chunk = malloc(sizeof *chunk);
    if (chunk == NULL) {
        return NULL;
    }
    // A block of its own and of the asked size: what lies past it is the sanitizer's red zone.
    chunk->data = malloc(size == 0 ? 1 : size);
    if (chunk->data == NULL) {
        free(chunk);
        return NULL;
    }
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    arena->used_bytes += rounded;
    return chunk->data;
}

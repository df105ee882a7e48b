/*
 * arena.h - memory that is freed all at once
 *
 * What:      a bump allocator over chunks, with a hard limit. In sanitizer builds its twin
 *            (arena_debug.c, chosen by CMake) gives every allocation its own malloc block, so that
 *            overruns are seen.
 * Ownership: the arena owns everything it gave out, until reset or destroy.
 * Thread:    one owner at a time.
 * Errors:    NULL when the limit or memory is exhausted; the caller turns that into a status.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used_bytes;          /* sum of the sizes given out, each rounded up to 16 */
    size_t max_bytes;
};

#define ARENA_ALIGNMENT ((size_t)16)

/* What an allocation counts against the limit: many tiny ones must not slip under it. 0: too large. */
static inline size_t arena_rounded_size(size_t size)
{
    const size_t at_least_one = size == 0 ? 1 : size;
    return (at_least_one + ARENA_ALIGNMENT - 1) & ~(ARENA_ALIGNMENT - 1);
}

void arena_init(struct arena *arena, size_t max_bytes);
void arena_destroy(struct arena *arena); /* accepts a zeroed arena */

/* Frees what was given out; the arena is as after init (a chunk may be kept for reuse). */
void arena_reset(struct arena *arena);

/* Aligned to 16 bytes, not zeroed. size 0 gives a valid unique pointer. */
void *arena_alloc(struct arena *arena, size_t size);

/* n * size with overflow check, zeroed. */
void *arena_calloc(struct arena *arena, size_t n, size_t size);

/* A NUL-terminated copy of size bytes of text; NULL on exhaustion. */
char *arena_strndup(struct arena *arena, const char *text, size_t size);

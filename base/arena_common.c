/* What arena.c and arena_debug.c share: functions made of arena_alloc alone. */
#include "base/arena.h"

#include <stdint.h>
#include <string.h>

void *arena_calloc(struct arena *arena, size_t n, size_t size)
{
    if (size != 0 && n > SIZE_MAX / size) {
        return NULL;
    }
    void *p = arena_alloc(arena, n * size);
    if (p != NULL) {
        memset(p, 0, n * size);
    }
    return p;
}

char *arena_strndup(struct arena *arena, const char *text, size_t size)
{
    if (size == SIZE_MAX) {
        return NULL;
    }
    char *copy = arena_alloc(arena, size + 1);
    if (copy != NULL) {
        memcpy(copy, text, size);
        copy[size] = '\0';
    }
    return copy;
}

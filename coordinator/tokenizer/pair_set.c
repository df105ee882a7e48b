#include "coordinator/tokenizer/pair_set.h"

#include <stdlib.h>
#include <string.h>

#define MIN_SLOTS ((size_t)1024)

static status_t allocate(struct pair_set *set, size_t n_slots)
{
    set->slots = malloc(n_slots * sizeof *set->slots);
    if (set->slots == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu pairs", n_slots);
    }
    memset(set->slots, 0xFF, n_slots * sizeof *set->slots); // every slot UINT64_MAX
    set->n_slots = n_slots;
    return status_ok();
}

status_t pair_set_init(struct pair_set *set, uint64_t seed)
{
    *set = (struct pair_set){.seed = seed};
    return allocate(set, MIN_SLOTS);
}

void pair_set_destroy(struct pair_set *set)
{
    free(set->slots);
    *set = (struct pair_set){0};
}

static void put(struct pair_set *set, uint64_t key)
{
    size_t at = pair_set_hash(key, set->seed) & (set->n_slots - 1);
    while (set->slots[at] != UINT64_MAX) {
        if (set->slots[at] == key) {
            return;
        }
        at = (at + 1) & (set->n_slots - 1);
    }
    set->slots[at] = key;
    set->n++;
}

static status_t grow(struct pair_set *set)
{
    struct pair_set larger = {.seed = set->seed};
    TRY(allocate(&larger, 2 * set->n_slots));
    for (size_t i = 0; i < set->n_slots; i++) {
        if (set->slots[i] != UINT64_MAX) {
            put(&larger, set->slots[i]);
        }
    }
    pair_set_destroy(set);
    *set = larger;
    return status_ok();
}

status_t pair_set_add(struct pair_set *set, uint32_t left, uint32_t right)
{
    if (2 * (set->n + 1) > set->n_slots) {
        TRY(grow(set));
    }
    put(set, pair_set_key(left, right));
    return status_ok();
}

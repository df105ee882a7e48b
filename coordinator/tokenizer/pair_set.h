/*
 * pair_set.h - a set of pairs of ids
 *
 * Layout:    open addressing, at most half full, grows by doubling.
 * Ownership: owns its slots.
 * Thread:    init, then any for reading.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct pair_set {
    uint64_t *slots; /* left << 32 | right; UINT64_MAX: empty */
    size_t n_slots;  /* a power of two */
    size_t n;
    uint64_t seed;
};

static inline uint64_t pair_set_key(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

static inline size_t pair_set_hash(uint64_t key, uint64_t seed)
{
    uint64_t h = (key ^ seed) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    return (size_t)(h * 0xd6e8feb86659fd93u >> 20);
}

MUST_USE status_t pair_set_init(struct pair_set *set, uint64_t seed);
void pair_set_destroy(struct pair_set *set); /* accepts a zeroed set */

/* Not (UINT32_MAX, UINT32_MAX). */
MUST_USE status_t pair_set_add(struct pair_set *set, uint32_t left, uint32_t right);

static inline bool pair_set_has(const struct pair_set *set, uint32_t left, uint32_t right)
{
    const uint64_t key = pair_set_key(left, right);
    size_t at = pair_set_hash(key, set->seed) & (set->n_slots - 1);
    while (set->slots[at] != UINT64_MAX && set->slots[at] != key) {
        at = (at + 1) & (set->n_slots - 1);
    }
    return set->slots[at] == key;
}

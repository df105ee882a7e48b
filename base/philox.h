/*
 * philox.h - Philox4x32-10, a counter-based random generator
 *
 * What:      random bits as a pure function of (key, counter): sampling position n of a stream needs no
 *            state from position n - 1, so a restarted request continues exactly where it was.
 * Thread:    any; no state.
 * Source:    Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
 */
#pragma once

#include <stdint.h>

void philox_4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Uniform in [0, 1) with 24 bits: exact in float, never 1. */
static inline float philox_uniform(uint32_t bits)
{
    return (float)(bits >> 8) * 0x1p-24f;
}

/*
 * random_rows.h - nearly normal numbers as a function of their place
 *
 * What:      a template; include after a vec_*.h. A number is the sum of the four bytes of a word of Philox, less its
 *            mean: integers until the last multiplication, so that every instruction set gives the same bits.
 * Layout:    columns come in groups of 64, of 16 blocks of Philox: column 16 w + b of a group is word w of block b, so
 *            that blocks side by side in a vector fill columns side by side.
 * Thread:    any
 * Source:    see base/philox.h.
 */
#pragma once

#include <string.h>

#include "kernels/cpu/isa.h"

enum {
    RANDOM_BLOCKS = 16,
    RANDOM_GROUP = 4 * RANDOM_BLOCKS,
    RANDOM_ROUNDS = 10,
    RANDOM_MEAN = 510, /* of a sum of four bytes */
};

/* Philox4x32-10 on counters whose upper halves may hold anything. */
static inline void random_rounds(vw counter[4], uint64_t seed)
{
    const vw zero = {0};
    const vw multiplier_0 = zero + 0xD2511F53u;
    const vw multiplier_1 = zero + 0xCD9E8D57u;
    uint32_t key_0 = (uint32_t)seed;
    uint32_t key_1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < RANDOM_ROUNDS; round++) {
        const vw p0 = vw_mul_low(counter[0], multiplier_0);
        const vw p1 = vw_mul_low(counter[2], multiplier_1);
        counter[0] = (p1 >> 32) ^ counter[1] ^ key_0;
        counter[1] = p1;
        counter[2] = (p0 >> 32) ^ counter[3] ^ key_1;
        counter[3] = p0;
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
}

static inline void random_words(const struct cpu_random_row *row, uint32_t group,
                                uint64_t words[RANDOM_GROUP])
{
    const vw zero = {0};
    for (uint32_t block = 0; block < RANDOM_BLOCKS; block += VEC_WIDE) {
        uint64_t first[VEC_WIDE];
        for (uint32_t lane = 0; lane < VEC_WIDE; lane++) {
            first[lane] = group * RANDOM_BLOCKS + block + lane;
        }
        vw counter[4] = {zero, zero + row->row, zero + (uint32_t)row->tensor,
                         zero + (row->tensor >> 32)};
        memcpy(&counter[0], first, sizeof counter[0]);
        random_rounds(counter, row->seed);
        for (int w = 0; w < 4; w++) {
            memcpy(words + (size_t)w * RANDOM_BLOCKS + block, &counter[w], sizeof counter[w]);
        }
    }
}

static void random_group(const struct cpu_random_row *row, uint32_t group, float out[RANDOM_GROUP])
{
    uint64_t words[RANDOM_GROUP];
    random_words(row, group, words);
    for (int i = 0; i < RANDOM_GROUP; i++) {
        const uint32_t word = (uint32_t)words[i];
        const uint32_t pairs = (word & 0x00FF00FFu) + (word >> 8 & 0x00FF00FFu);
        const uint32_t sum = (pairs & 0xFFFFu) + (pairs >> 16);
        out[i] = (float)((int32_t)sum - RANDOM_MEAN) * row->unit;
    }
}

static void random_row(const struct cpu_random_row *row, int32_t begin, int32_t end, float *out)
{
    for (int32_t column = begin; column < end;) {
        const int32_t at = column % RANDOM_GROUP;
        const int32_t n = end - column < RANDOM_GROUP - at ? end - column : RANDOM_GROUP - at;
        const uint32_t group = (uint32_t)(column / RANDOM_GROUP);
        if (n == RANDOM_GROUP) {
            random_group(row, group, out);
        } else {
            float aside[RANDOM_GROUP];
            random_group(row, group, aside);
            memcpy(out, aside + at, (size_t)n * sizeof *out);
        }
        column += n;
        out += n;
    }
}

/*
 * vocab.h - the text of every token, by id and back
 *
 * What:      one block of text with an offset per id, and an open-addressing table from text to id.
 * Layout:    token i is text[begin[i], begin[i + 1]); slots[h] is id + 1, 0 when empty, at most half full.
 * Ownership: owns its arrays; vocab_text borrows them.
 * Thread:    init, then any.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct vocab {
    size_t n;
    uint8_t *text;
    uint32_t *begin; /* [n + 1] */
    uint32_t *slots;
    size_t n_slots; /* a power of two */
    uint64_t seed;  /* of the hash: a file cannot be made so that all its tokens collide */
    size_t max_token_bytes;
};

struct text_view {
    const void *data;
    size_t size;
};

/* Copies the texts of ids 0..n-1. Only what is not empty can be found; of equal texts the first one is. */
MUST_USE status_t vocab_init(struct vocab *vocab, const struct text_view *texts, size_t n);
void vocab_destroy(struct vocab *vocab); /* accepts a zeroed one */

/* The id of this text, -1 when there is none. */
int32_t vocab_find(const struct vocab *vocab, const void *text, size_t size);

/* id must be in range. */
static inline struct text_view vocab_text(const struct vocab *vocab, size_t id)
{
    return (struct text_view){.data = vocab->text + vocab->begin[id],
                              .size = vocab->begin[id + 1] - vocab->begin[id]};
}

/* A seed for this process's hash tables, from the kernel. */
uint64_t vocab_random_seed(void);

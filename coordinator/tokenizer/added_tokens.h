/*
 * added_tokens.h - tokens that are cut out of the text before it is split
 *
 * What:      a trie over their bytes. At each position the longest token wins, positions from left to right.
 * Ownership: owns the trie.
 * Thread:    init, then any.
 * Invariant: a search looks at each byte at most as often as the longest token has bytes; where no token begins, once.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum added_token_flags {
    ADDED_TOKEN_SPECIAL = 1,
    ADDED_TOKEN_LSTRIP = 2, /* takes the white space on its left too */
    ADDED_TOKEN_RSTRIP = 4,
};

struct added_token_node {
    uint32_t child;   /* 0: none */
    uint32_t sibling; /* 0: none */
    int32_t id;       /* the token that ends here, -1: none */
    uint8_t byte;
    uint8_t flags;
};

struct added_tokens {
    struct added_token_node *nodes; /* node 0 is the root */
    size_t n_nodes;
    size_t capacity;
    uint32_t first[256]; /* children of the root by byte; 0: none */
};

/* text is not empty. The first of two equal texts stays. */
MUST_USE status_t added_tokens_insert(struct added_tokens *tokens, const void *text, size_t size,
                                      int32_t id, int flags);
void added_tokens_destroy(struct added_tokens *tokens); /* accepts a zeroed set */

/* The id of the token with exactly this text (not empty), -1: none. */
int32_t added_tokens_find(const struct added_tokens *tokens, const void *text, size_t size);

struct added_token_match {
    size_t begin, end; /* in the text */
    int32_t id;        /* -1: none was found */
    int flags;
};

/* The first token at or after `from`. With keep_special_as_text, special tokens are passed over as plain text. */
struct added_token_match added_tokens_next(const struct added_tokens *tokens, const uint8_t *text,
                                           size_t size, size_t from, bool keep_special_as_text);

/*
 * rank_tokens.h - a growing list of tokens with texts of its own, for ranks.c
 *
 * Layout:    texts stand one behind another in one buffer; a token knows where its text begins. Texts of bytes are
 *            spelled as byte_map.h says.
 * Ownership: owns the list and the texts.
 * Thread:    init
 */
#pragma once

#include "base/bytes.h"
#include "base/status.h"
#include "coordinator/tokenizer/token_texts.h"

enum rank_token_kind {
    RANK_TOKEN_MERGED,  /* comes about by merging; its id is its rank */
    RANK_TOKEN_SPECIAL, /* an added special token */
};

struct rank_token {
    size_t begin, size; /* of the text */
    int64_t id;
    int kind; /* enum rank_token_kind */
};

struct rank_tokens {
    struct rank_token *all;
    size_t n, capacity;
    struct bytes text;
};

void rank_tokens_init(struct rank_tokens *tokens);
void rank_tokens_destroy(struct rank_tokens *tokens);

/* A token of the model that stands for these bytes. */
MUST_USE status_t rank_tokens_add_bytes(struct rank_tokens *tokens, const uint8_t *bytes,
                                        size_t size, int64_t id);

/* A token with this text, as it is. */
MUST_USE status_t rank_tokens_add_text(struct rank_tokens *tokens, struct text_view text,
                                       int64_t id, int kind);

/* Notes all of them. The list must not grow any more while the texts are used. */
MUST_USE status_t rank_tokens_note(const struct rank_tokens *tokens, struct token_texts *texts);

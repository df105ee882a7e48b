/*
 * token_texts.h - the texts of all ids while a file is read, and the parts of a tokenizer that come from them
 *
 * What:      every form of tokenizer file notes its tokens here; then `pieces`, `decoded`, `kinds` and the sets of
 *            added tokens are filled in one way for all of them.
 * Layout:    an id of the model's vocabulary is in both arrays, an added token in `all` alone.
 * Ownership: owns the two arrays; the texts are borrowed and must stay until token_texts_fill has returned.
 * Thread:    init
 * Errors:    DATA_LOSS naming the token.
 */
#pragma once

#include "base/status.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

#define TOKEN_MAX_BYTES ((size_t)16 * 1024)

struct token_texts {
    struct text_view *model; /* what merges make and use; size 0: not in it */
    struct text_view *all;
    size_t n;        /* largest id + 1 */
    size_t capacity; /* no id may reach it */
};

MUST_USE status_t token_texts_init(struct token_texts *texts, size_t capacity);
void token_texts_destroy(struct token_texts *texts); /* accepts a zeroed one */

enum token_place { TOKEN_IN_MODEL, TOKEN_ADDED };

/* Notes the text (UTF-8) of an id; one that is there already must be the same. */
MUST_USE status_t token_texts_set(struct token_texts *texts, int64_t id, struct text_view text,
                                  int place);

/* No id is without text, and no two have the same. Then fills pieces, decoded and kinds; the decoder is known. */
MUST_USE status_t token_texts_fill(const struct token_texts *texts, struct tokenizer *tokenizer);

/* A token that is cut out of the text: before the normalizer, or after it. */
struct added_token {
    int32_t id;
    int flags; /* enum added_token_flags */
    bool normalized;
};

/* After token_texts_fill; the normalizer is known too. */
MUST_USE status_t token_texts_add(const struct token_texts *texts, struct added_token token,
                                  struct tokenizer *tokenizer);

/* Quoted for a message, cut to fit; returns buf. */
const char *token_texts_quote(struct text_view text, char *buf, size_t buf_bytes);

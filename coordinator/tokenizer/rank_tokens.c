#include "coordinator/tokenizer/rank_tokens.h"

#include <stdlib.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/byte_map.h"

void rank_tokens_init(struct rank_tokens *tokens)
{
    *tokens = (struct rank_tokens){0};
    bytes_init(&tokens->text, SIZE_MAX);
}

void rank_tokens_destroy(struct rank_tokens *tokens)
{
    free(tokens->all);
    bytes_destroy(&tokens->text);
    *tokens = (struct rank_tokens){0};
}

/* A token whose text is what the buffer has from `begin` on. */
static status_t push(struct rank_tokens *tokens, size_t begin, int64_t id, int kind)
{
    if (tokens->n == tokens->capacity) {
        const size_t capacity = 2 * tokens->capacity + 1024;
        struct rank_token *all = realloc(tokens->all, capacity * sizeof *all);
        if (all == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens",
                                 capacity);
        }
        tokens->all = all;
        tokens->capacity = capacity;
    }
    tokens->all[tokens->n++] = (struct rank_token){
        .begin = begin, .size = tokens->text.size - begin, .id = id, .kind = kind};
    return status_ok();
}

status_t rank_tokens_add_bytes(struct rank_tokens *tokens, const uint8_t *bytes, size_t size,
                               int64_t id)
{
    const size_t begin = tokens->text.size;
    for (size_t i = 0; i < size; i++) {
        uint8_t spelled[4];
        const size_t length = utf8_encode(byte_map_code_point(bytes[i]), spelled);
        TRY(bytes_append(&tokens->text, spelled, length));
    }
    return push(tokens, begin, id, RANK_TOKEN_MERGED);
}

status_t rank_tokens_add_text(struct rank_tokens *tokens, struct text_view text, int64_t id,
                              int kind)
{
    const size_t begin = tokens->text.size;
    TRY(bytes_append(&tokens->text, text.data, text.size));
    return push(tokens, begin, id, kind);
}

status_t rank_tokens_note(const struct rank_tokens *tokens, struct token_texts *texts)
{
    for (size_t i = 0; i < tokens->n; i++) {
        const struct rank_token *token = &tokens->all[i];
        const struct text_view text = {.data = tokens->text.data + token->begin,
                                       .size = token->size};
        const int place = token->kind == RANK_TOKEN_MERGED ? TOKEN_IN_MODEL : TOKEN_ADDED;
        TRY(token_texts_set(texts, token->id, text, place));
    }
    return status_ok();
}

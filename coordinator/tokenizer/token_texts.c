#include "coordinator/tokenizer/token_texts.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/utf8.h"
#include "coordinator/tokenizer/byte_map.h"

#define QUOTED_BYTES 80

// ---- collecting ----

status_t token_texts_init(struct token_texts *texts, size_t capacity)
{
    *texts = (struct token_texts){.capacity = capacity};
    texts->model = calloc(capacity + 1, sizeof *texts->model);
    texts->all = calloc(capacity + 1, sizeof *texts->all);
    if (texts->model == NULL || texts->all == NULL) {
        token_texts_destroy(texts);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", capacity);
    }
    return status_ok();
}

void token_texts_destroy(struct token_texts *texts)
{
    free(texts->model);
    free(texts->all);
    *texts = (struct token_texts){0};
}

const char *token_texts_quote(struct text_view text, char *buf, size_t buf_bytes)
{
    char copy[QUOTED_BYTES] = {0};
    const size_t shown = text.size < sizeof copy - 1 ? text.size : sizeof copy - 1;
    if (shown > 0) {
        memcpy(copy, text.data, shown);
    }
    return log_quote(copy, buf, buf_bytes);
}

static status_t check_token(const struct token_texts *texts, int64_t id, struct text_view text)
{
    char quoted[QUOTED_BYTES];
    if (text.size == 0) {
        return status_errorf(STATUS_DATA_LOSS, "the token with id %lld is empty", (long long)id);
    }
    if (text.size > TOKEN_MAX_BYTES) {
        return status_errorf(STATUS_DATA_LOSS, "the token with id %lld has %zu bytes, limit %zu",
                             (long long)id, text.size, TOKEN_MAX_BYTES);
    }
    if (!utf8_is_valid(text.data, text.size)) {
        return status_errorf(STATUS_DATA_LOSS, "the token with id %lld is not UTF-8",
                             (long long)id);
    }
    if (id < 0 || (uint64_t)id >= texts->capacity) {
        return status_errorf(STATUS_DATA_LOSS, "token %s: id %lld, but the file has %zu tokens",
                             token_texts_quote(text, quoted, sizeof quoted), (long long)id,
                             texts->capacity);
    }
    return status_ok();
}

static bool same_text(struct text_view a, struct text_view b)
{
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

status_t token_texts_set(struct token_texts *texts, int64_t id, struct text_view text, int place)
{
    TRY(check_token(texts, id, text));
    struct text_view *slot = &texts->all[id];
    if (slot->size > 0 && !same_text(*slot, text)) {
        char first[QUOTED_BYTES];
        char second[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "tokens %s and %s have the same id %lld",
                             token_texts_quote(*slot, first, sizeof first),
                             token_texts_quote(text, second, sizeof second), (long long)id);
    }
    *slot = text;
    if (place == TOKEN_IN_MODEL) {
        texts->model[id] = text;
    }
    texts->n = (size_t)id + 1 > texts->n ? (size_t)id + 1 : texts->n;
    return status_ok();
}

// ---- checks of the whole ----

static status_t check_no_gap(const struct token_texts *texts)
{
    for (size_t id = 0; id < texts->n; id++) {
        if (texts->all[id].size == 0) {
            return status_errorf(STATUS_DATA_LOSS, "no token has id %zu, the largest is %zu", id,
                                 texts->n - 1);
        }
    }
    return status_ok();
}

/* No added token may be a second name for the text of another token. */
static status_t check_unique(const struct token_texts *texts)
{
    struct vocab all;
    TRY(vocab_init(&all, texts->all, texts->n));
    status_t s = status_ok();
    for (size_t id = 0; id < texts->n && status_is_ok(&s); id++) {
        const struct text_view text = texts->all[id];
        const int32_t first = vocab_find(&all, text.data, text.size);
        if ((size_t)first != id) {
            char quoted[QUOTED_BYTES];
            s = status_errorf(STATUS_DATA_LOSS, "token %s has the ids %d and %zu",
                              token_texts_quote(text, quoted, sizeof quoted), first, id);
        }
    }
    vocab_destroy(&all);
    return s;
}

// ---- what ids decode to ----

/* All characters stand for bytes: appends them; else the text as it is. */
static status_t append_byte_level(const struct text_view *token, struct bytes *out)
{
    const size_t start = out->size;
    const uint8_t *text = token->data;
    for (size_t at = 0, length; at < token->size; at += length) {
        const int byte = byte_map_byte(utf8_decode(text + at, &length));
        if (byte < 0) {
            out->size = start;
            return bytes_append(out, token->data, token->size);
        }
        const uint8_t value = (uint8_t)byte;
        TRY(bytes_append(out, &value, 1));
    }
    return status_ok();
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    const char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* The byte that <0xNN> stands for, -1: another text. */
static int fallback_byte(const struct text_view *token)
{
    const char *text = token->data;
    if (token->size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    const int high = hex_value(text[3]);
    const int low = hex_value(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static status_t append_replaced(const struct decoder *decoder, const struct text_view *token,
                                struct bytes *out)
{
    const size_t pattern_size = strlen(decoder->pattern);
    const uint8_t *text = token->data;
    size_t left = token->size;
    while (pattern_size > 0 && left > 0) {
        const uint8_t *hit = memmem(text, left, decoder->pattern, pattern_size);
        if (hit == NULL) {
            break;
        }
        TRY(bytes_append(out, text, (size_t)(hit - text)));
        TRY(bytes_append_str(out, decoder->content));
        left -= (size_t)(hit - text) + pattern_size;
        text = hit + pattern_size;
    }
    return bytes_append(out, text, left);
}

static status_t append_decoded(struct tokenizer *tokenizer, size_t id,
                               const struct text_view *token, struct bytes *out)
{
    if (tokenizer->decoder.byte_level) {
        return append_byte_level(token, out);
    }
    const int byte = tokenizer->decoder.byte_fallback ? fallback_byte(token) : -1;
    if (byte >= 0) {
        const uint8_t value = (uint8_t)byte;
        tokenizer->kinds[id] |= TOKEN_BYTE;
        return bytes_append(out, &value, 1);
    }
    return append_replaced(&tokenizer->decoder, token, out);
}

static status_t fill_decoded(const struct token_texts *texts, struct tokenizer *tokenizer)
{
    struct bytes text;
    bytes_init(&text, SIZE_MAX);
    struct text_view *views = calloc(texts->n + 1, sizeof *views);
    status_t s;
    if (views == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", texts->n);
        goto done;
    }
    for (size_t id = 0; id < texts->n; id++) {
        const size_t start = text.size;
        TRY_GOTO(s, append_decoded(tokenizer, id, &texts->all[id], &text), done);
        views[id].size = text.size - start;
    }
    // The buffer has stopped moving.
    size_t at = 0;
    for (size_t id = 0; id < texts->n; id++) {
        views[id].data = text.data + at;
        at += views[id].size;
    }
    s = vocab_init(&tokenizer->decoded, views, texts->n);
done:
    free(views);
    bytes_destroy(&text);
    return s;
}

// ---- the whole ----

status_t token_texts_fill(const struct token_texts *texts, struct tokenizer *tokenizer)
{
    TRY(check_no_gap(texts));
    TRY(check_unique(texts));
    TRY(vocab_init(&tokenizer->pieces, texts->model, texts->n));
    tokenizer->kinds = calloc(texts->n + 1, 1);
    if (tokenizer->kinds == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", texts->n);
    }
    return fill_decoded(texts, tokenizer);
}

/* Tokens that are looked for in normalized text are normalized like it. */
static status_t insert_normalized(struct tokenizer *tokenizer, struct text_view text,
                                  struct added_token token)
{
    struct bytes normal;
    struct bytes spare;
    bytes_init(&normal, SIZE_MAX);
    bytes_init(&spare, SIZE_MAX);
    status_t s = normalize_text(&tokenizer->normalizer, text.data, text.size, &normal, &spare);
    if (status_is_ok(&s) && normal.size > 0) {
        s = added_tokens_insert(&tokenizer->normalized_added, normal.data, normal.size, token.id,
                                token.flags);
    }
    bytes_destroy(&normal);
    bytes_destroy(&spare);
    return s;
}

status_t token_texts_add(const struct token_texts *texts, struct added_token token,
                         struct tokenizer *tokenizer)
{
    const struct text_view text = texts->all[token.id];
    if ((token.flags & ADDED_TOKEN_SPECIAL) != 0) {
        tokenizer->kinds[token.id] |= TOKEN_SPECIAL;
    }
    if (token.normalized) {
        return insert_normalized(tokenizer, text, token);
    }
    return added_tokens_insert(&tokenizer->raw_added, text.data, text.size, token.id, token.flags);
}

/*
 * Two kinds of decoders turn bytes into text, and they treat broken UTF-8 differently:
 *   byte level     all bytes are one stream; each maximal part of a broken sequence becomes one U+FFFD
 *   byte fallback  only <0xNN> tokens are bytes; from the first one that breaks a run of them to the run's end, each
 *                  becomes one U+FFFD
 * In the second case Hugging Face tokenizers replaces the whole run, also the complete characters before the break.
 * Here those have been shown already: text is given out as soon as it is a character.
 */
#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

static const char replacement[] = "\xEF\xBF\xBD"; // U+FFFD

/* The longest unfinished sequence has three bytes. */
#define MAX_UNFINISHED 3

void detokenizer_init(struct detokenizer *d, const struct tokenizer *tokenizer, int flags)
{
    *d = (struct detokenizer){.tokenizer = tokenizer, .flags = flags};
}

/* Well-formed text, in whole characters. */
static status_t emit(struct detokenizer *d, const void *text, size_t size, struct bytes *out)
{
    const uint8_t *from = text;
    if (size > 0 && !d->started) {
        d->started = true;
        if (d->tokenizer->decoder.strip_space && from[0] == ' ') {
            from++;
            size--;
        }
    }
    return bytes_append(out, from, size);
}

static status_t emit_replacement(struct detokenizer *d, struct bytes *out)
{
    return emit(d, replacement, sizeof replacement - 1, out);
}

// ---- byte level ----

/* Bytes at the start of text, which is not well formed there, that one U+FFFD stands for. */
static size_t broken_length(const uint8_t *text, size_t size)
{
    size_t n = 1;
    while (n < size && utf8_incomplete_suffix(text, n + 1) == n + 1) {
        n++;
    }
    return n;
}

/* Gives out what is complete and holds back an unfinished sequence at the end. */
static status_t emit_bytes(struct detokenizer *d, const uint8_t *text, size_t size,
                           struct bytes *out)
{
    while (size > 0) {
        const size_t valid = utf8_valid_prefix(text, size);
        TRY(emit(d, text, valid, out));
        text += valid;
        size -= valid;
        if (size == 0) {
            break;
        }
        if (size <= MAX_UNFINISHED && utf8_incomplete_suffix(text, size) == size) {
            memcpy(d->held, text, size);
            d->n_held = size;
            break;
        }
        const size_t broken = broken_length(text, size);
        TRY(emit_replacement(d, out));
        text += broken;
        size -= broken;
    }
    return status_ok();
}

static status_t push_byte_level(struct detokenizer *d, struct text_view token, struct bytes *out)
{
    // An unfinished sequence ends within the next three bytes, so that much of the token completes or breaks it.
    const uint8_t *text = token.data;
    while (d->n_held > 0 && token.size > 0) {
        uint8_t joined[MAX_UNFINISHED + 1];
        const size_t n = d->n_held;
        memcpy(joined, d->held, n);
        joined[n] = *text++;
        token.size--;
        d->n_held = 0;
        TRY(emit_bytes(d, joined, n + 1, out));
    }
    return emit_bytes(d, text, token.size, out);
}

// ---- byte fallback ----

static status_t end_byte_run(struct detokenizer *d, struct bytes *out)
{
    const size_t n = d->n_held;
    d->n_held = 0;
    d->broken_run = false;
    for (size_t i = 0; i < n; i++) {
        TRY(emit_replacement(d, out));
    }
    return status_ok();
}

static status_t push_fallback_byte(struct detokenizer *d, uint8_t byte, struct bytes *out)
{
    if (d->broken_run) {
        return emit_replacement(d, out);
    }
    d->held[d->n_held++] = byte;
    if (utf8_is_valid(d->held, d->n_held)) {
        const size_t n = d->n_held;
        d->n_held = 0;
        return emit(d, d->held, n, out);
    }
    if (utf8_incomplete_suffix(d->held, d->n_held) == d->n_held) {
        return status_ok();
    }
    TRY(end_byte_run(d, out));
    d->broken_run = true;
    return status_ok();
}

// ---- the whole ----

/* The first token without META_SPACE. What is no part of the model has none (model_json.c). */
static status_t emit_first(struct detokenizer *d, int32_t id, struct bytes *out)
{
    const struct text_view piece = vocab_text(&d->tokenizer->pieces, (size_t)id);
    const size_t mark = sizeof META_SPACE - 1;
    const uint8_t *text = piece.data;
    size_t size = piece.size;
    while (size > 0) {
        const uint8_t *hit = memmem(text, size, META_SPACE, mark);
        const size_t length = hit != NULL ? (size_t)(hit - text) : size;
        TRY(emit(d, text, length, out));
        const size_t passed = hit != NULL ? length + mark : length;
        text += passed;
        size -= passed;
    }
    return status_ok();
}

status_t detokenizer_push(struct detokenizer *d, int32_t id, struct bytes *out)
{
    const struct tokenizer *tokenizer = d->tokenizer;
    if (id < 0 || (size_t)id >= tokenizer->decoded.n) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "token id %d, not from 0 to %zu", id,
                             tokenizer->decoded.n - 1);
    }
    if ((d->flags & TOKENIZER_SKIP_SPECIAL) != 0 && (tokenizer->kinds[id] & TOKEN_SPECIAL) != 0) {
        return status_ok();
    }
    const bool is_first = !d->pushed;
    d->pushed = true;
    const struct text_view token = vocab_text(&tokenizer->decoded, (size_t)id);
    if (tokenizer->decoder.byte_level) {
        return push_byte_level(d, token, out);
    }
    if ((tokenizer->kinds[id] & TOKEN_BYTE) != 0) {
        return push_fallback_byte(d, ((const uint8_t *)token.data)[0], out);
    }
    TRY(end_byte_run(d, out));
    if (is_first && tokenizer->decoder.strip_first &&
        vocab_text(&tokenizer->pieces, (size_t)id).size > 0) {
        return emit_first(d, id, out);
    }
    return emit(d, token.data, token.size, out);
}

status_t detokenizer_finish(struct detokenizer *d, struct bytes *out)
{
    if (!d->tokenizer->decoder.byte_level) {
        return end_byte_run(d, out);
    }
    if (d->n_held > 0) {
        d->n_held = 0;
        return emit_replacement(d, out);
    }
    return status_ok();
}

#include "coordinator/tokenizer/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/token_list.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

// Positions in a word are 32 bits, and a normalizer may make the text several times larger.
#define MAX_TEXT_BYTES ((size_t)256 * 1024 * 1024)

// ---- life ----

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    vocab_destroy(&tokenizer->pieces);
    vocab_destroy(&tokenizer->decoded);
    free(tokenizer->kinds);
    bpe_destroy(&tokenizer->bpe);
    added_tokens_destroy(&tokenizer->raw_added);
    added_tokens_destroy(&tokenizer->normalized_added);
    free(tokenizer);
}

int32_t tokenizer_vocab_size(const struct tokenizer *tokenizer)
{
    return (int32_t)tokenizer->decoded.n;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= 0 && (size_t)id < tokenizer->decoded.n &&
           (tokenizer->kinds[id] & TOKEN_SPECIAL) != 0;
}

int32_t tokenizer_special_id(const struct tokenizer *tokenizer, const char *text)
{
    const size_t size = strlen(text);
    int32_t id = added_tokens_find(&tokenizer->raw_added, text, size);
    if (id < 0) {
        id = added_tokens_find(&tokenizer->normalized_added, text, size);
    }
    return tokenizer_is_special(tokenizer, id) ? id : -1;
}

// ---- encode ----

/* What one call works with. */
struct encode_call {
    const struct tokenizer *tokenizer;
    bool special_as_text;
    struct token_list *out;
    struct bpe_scratch bpe;
    struct bytes normal, spare; /* normalized text */
    struct bytes prefixed;      /* a piece with a space in front */
    struct bytes meta;          /* a piece with META_SPACE for spaces */
    bool at_start;              /* the piece is the first of the whole text */
};

static status_t encode_piece(struct encode_call *call, size_t step, const uint8_t *text,
                             size_t size);

static status_t encode_split(struct encode_call *call, size_t step, const uint8_t *text,
                             size_t size)
{
    const int pattern = call->tokenizer->pretokenizer.steps[step].pattern;
    while (size > 0) {
        const size_t length = split_next(pattern, text, size);
        TRY(encode_piece(call, step + 1, text, length));
        text += length;
        size -= length;
    }
    return status_ok();
}

static status_t encode_prefixed(struct encode_call *call, size_t step, const uint8_t *text,
                                size_t size)
{
    if (text[0] == ' ') {
        return encode_piece(call, step + 1, text, size);
    }
    bytes_clear(&call->prefixed);
    TRY(bytes_append_str(&call->prefixed, " "));
    TRY(bytes_append(&call->prefixed, text, size));
    return encode_piece(call, step + 1, call->prefixed.data, call->prefixed.size);
}

/* Every word from one META_SPACE to the next. */
static status_t encode_meta_words(struct encode_call *call, const uint8_t *text, size_t size)
{
    const size_t mark = sizeof META_SPACE - 1;
    while (size > 0) {
        const uint8_t *next = size > mark ? memmem(text + 1, size - 1, META_SPACE, mark) : NULL;
        const size_t length = next != NULL ? (size_t)(next - text) : size;
        TRY(bpe_encode(&call->tokenizer->bpe, &call->bpe, text, length, call->out));
        text += length;
        size -= length;
    }
    return status_ok();
}

static status_t encode_metaspace(struct encode_call *call, const struct pretokenizer_step *step,
                                 const uint8_t *text, size_t size)
{
    static const struct normalizer spaces = {
        .steps = {{.kind = NORMALIZE_REPLACE, .pattern = " ", .content = META_SPACE}},
        .n_steps = 1,
    };
    const size_t mark = sizeof META_SPACE - 1;
    const bool begins_with_one =
        text[0] == ' ' || (size >= mark && memcmp(text, META_SPACE, mark) == 0);
    const bool prepend =
        step->prepend == METASPACE_ALWAYS || (step->prepend == METASPACE_FIRST && call->at_start);
    struct bytes *to = &call->meta;
    if (prepend && !begins_with_one) {
        bytes_clear(&call->prefixed);
        TRY(bytes_append_str(&call->prefixed, " "));
        TRY(bytes_append(&call->prefixed, text, size));
        text = call->prefixed.data;
        size = call->prefixed.size;
    }
    TRY(normalize_text(&spaces, text, size, to, &call->spare));
    if (step->words) {
        return encode_meta_words(call, to->data, to->size);
    }
    return bpe_encode(&call->tokenizer->bpe, &call->bpe, to->data, to->size, call->out);
}

/* Runs the steps of the pre-tokenizer from `step` on; what is left after the last one is a word. */
// NOLINTNEXTLINE(misc-no-recursion): as deep as the pre-tokenizer has steps
static status_t encode_piece(struct encode_call *call, size_t step, const uint8_t *text,
                             size_t size)
{
    const struct pretokenizer *pre = &call->tokenizer->pretokenizer;
    if (step == pre->n_steps) {
        return bpe_encode(&call->tokenizer->bpe, &call->bpe, text, size, call->out);
    }
    switch (pre->steps[step].kind) {
    case PRETOKENIZER_SPLIT:
        return encode_split(call, step, text, size);
    case PRETOKENIZER_METASPACE:
        return encode_metaspace(call, &pre->steps[step], text, size);
    default:
        return encode_prefixed(call, step, text, size);
    }
}

/* Text without raw added tokens: normalized, and cut at the added tokens that are looked for then. */
static status_t encode_plain(struct encode_call *call, const uint8_t *text, size_t size)
{
    const struct tokenizer *tokenizer = call->tokenizer;
    if (tokenizer->normalizer.n_steps > 0) {
        const size_t max = normalize_max_bytes(&tokenizer->normalizer, size);
        call->normal.max_bytes = max;
        call->spare.max_bytes = max;
        TRY(normalize_text(&tokenizer->normalizer, text, size, &call->normal, &call->spare));
        text = call->normal.data;
        size = call->normal.size;
    }
    size_t at = 0;
    while (at < size) {
        const struct added_token_match match =
            added_tokens_next(&tokenizer->normalized_added, text, size, at, call->special_as_text);
        if (match.begin > at) {
            call->at_start = call->at_start && at == 0;
            TRY(encode_piece(call, 0, text + at, match.begin - at));
        }
        if (match.id >= 0) {
            TRY(token_list_push(call->out, match.id));
        }
        at = match.end;
    }
    return status_ok();
}

static status_t encode_text(struct encode_call *call, const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        const struct added_token_match match =
            added_tokens_next(&call->tokenizer->raw_added, text, size, at, call->special_as_text);
        if (match.begin > at) {
            call->at_start = at == 0;
            TRY(encode_plain(call, text + at, match.begin - at));
        }
        if (match.id >= 0) {
            TRY(token_list_push(call->out, match.id));
        }
        at = match.end;
    }
    return status_ok();
}

static status_t push_all(struct token_list *out, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        TRY(token_list_push(out, ids[i]));
    }
    return status_ok();
}

static status_t encode_checked(struct encode_call *call, const uint8_t *text, size_t size,
                               bool add_special)
{
    const struct template_ids *ids = &call->tokenizer->template_ids;
    if (add_special) {
        TRY(push_all(call->out, ids->before, ids->n_before));
    }
    TRY(encode_text(call, text, size));
    return add_special ? push_all(call->out, ids->after, ids->n_after) : status_ok();
}

status_t tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size,
                          int flags, struct token_list *out)
{
    if (size > MAX_TEXT_BYTES) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "text of %zu bytes, limit %zu", size,
                             MAX_TEXT_BYTES);
    }
    const size_t valid = utf8_valid_prefix((const uint8_t *)text, size);
    if (valid != size) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "text is not UTF-8 at byte %zu of %zu", valid,
                             size);
    }
    struct encode_call call = {.tokenizer = tokenizer,
                               .special_as_text = (flags & TOKENIZER_PARSE_SPECIAL) == 0,
                               .out = out,
                               .prefixed = {.max_bytes = SIZE_MAX},
                               .meta = {.max_bytes = SIZE_MAX}};
    const size_t n_before = out->n;
    status_t s =
        encode_checked(&call, (const uint8_t *)text, size, (flags & TOKENIZER_ADD_SPECIAL) != 0);
    if (!status_is_ok(&s)) {
        out->n = n_before;
    }
    bpe_scratch_destroy(&call.bpe);
    bytes_destroy(&call.normal);
    bytes_destroy(&call.spare);
    bytes_destroy(&call.prefixed);
    bytes_destroy(&call.meta);
    return s;
}

// ---- decode ----

status_t tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t n,
                          int flags, struct bytes *out)
{
    const size_t start = out->size;
    struct detokenizer d;
    detokenizer_init(&d, tokenizer, flags);
    status_t s = status_ok();
    for (size_t i = 0; i < n && status_is_ok(&s); i++) {
        s = detokenizer_push(&d, ids[i], out);
    }
    if (status_is_ok(&s)) {
        s = detokenizer_finish(&d, out);
    }
    if (!status_is_ok(&s)) {
        out->size = start;
    }
    return s;
}

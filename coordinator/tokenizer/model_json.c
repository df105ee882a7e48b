#include "coordinator/tokenizer/model_json.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/utf8.h"
#include "coordinator/tokenizer/byte_map.h"
#include "coordinator/tokenizer/json_field.h"

#define MAX_TOKEN_BYTES ((size_t)16 * 1024)
#define MAX_MERGES      ((size_t)8 * 1024 * 1024)
#define QUOTED_BYTES    80

/* Texts by id while the file is read; they borrow from the JSON. */
struct token_texts {
    struct text_view *model; /* of model.vocab; size 0: not in it */
    struct text_view *all;   /* and of added_tokens */
    size_t n;                /* largest id + 1 */
    size_t capacity;         /* tokens in the file: no id may reach it */
};

// ---- model.vocab and the ids of added_tokens ----

static status_t check_token(const char *text, json_int_t id, size_t n_tokens)
{
    char quoted[QUOTED_BYTES];
    const size_t size = strlen(text);
    if (size == 0) {
        return status_errorf(STATUS_DATA_LOSS, "the token with id %lld is empty", (long long)id);
    }
    if (size > MAX_TOKEN_BYTES) {
        return status_errorf(STATUS_DATA_LOSS, "the token with id %lld has %zu bytes, limit %zu",
                             (long long)id, size, MAX_TOKEN_BYTES);
    }
    if (id < 0 || (uint64_t)id >= n_tokens) {
        return status_errorf(STATUS_DATA_LOSS, "token %s: id %lld, but the file has %zu tokens",
                             log_quote(text, quoted, sizeof quoted), (long long)id, n_tokens);
    }
    return status_ok();
}

static bool same_text(const struct text_view *a, const char *text)
{
    return a->size == strlen(text) && memcmp(a->data, text, a->size) == 0;
}

/* Notes the text of an id; one that is there already must be the same. */
static status_t set_text(struct token_texts *texts, size_t id, const char *text)
{
    struct text_view *slot = &texts->all[id];
    if (slot->size > 0 && !same_text(slot, text)) {
        char first[QUOTED_BYTES];
        char second[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "tokens %s and %s have the same id %zu",
                             log_quote(slot->data, first, sizeof first),
                             log_quote(text, second, sizeof second), id);
    }
    *slot = (struct text_view){.data = text, .size = strlen(text)};
    texts->n = id + 1 > texts->n ? id + 1 : texts->n;
    return status_ok();
}

static status_t read_vocab(json_t *vocab, struct token_texts *texts)
{
    const char *text;
    json_t *value;
    json_object_foreach(vocab, text, value)
    {
        char quoted[QUOTED_BYTES];
        if (!json_is_integer(value)) {
            return status_errorf(STATUS_DATA_LOSS, "token %s: the id is %s, not an integer",
                                 log_quote(text, quoted, sizeof quoted), json_field_kind(value));
        }
        const json_int_t id = json_integer_value(value);
        TRY(check_token(text, id, texts->capacity));
        TRY(set_text(texts, (size_t)id, text));
        texts->model[id] = texts->all[id];
    }
    return status_ok();
}

static status_t read_added_ids(const json_t *added, struct token_texts *texts)
{
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        json_int_t id = 0;
        const char *text = NULL;
        status_t s = json_field_count(token, "id", INT32_MAX, &id);
        if (status_is_ok(&s)) {
            s = json_field_string(token, "content", &text);
        }
        if (status_is_ok(&s)) {
            s = check_token(text, id, texts->capacity);
        }
        if (status_is_ok(&s)) {
            s = set_text(texts, (size_t)id, text);
        }
        if (!status_is_ok(&s)) {
            return status_wrapf(s, "[%zu]", i);
        }
    }
    return status_ok();
}

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
                              log_quote(text.data, quoted, sizeof quoted), first, id);
        }
    }
    vocab_destroy(&all);
    return s;
}

static status_t texts_alloc(struct token_texts *texts, size_t capacity)
{
    *texts = (struct token_texts){.capacity = capacity};
    texts->model = calloc(capacity + 1, sizeof *texts->model);
    texts->all = calloc(capacity + 1, sizeof *texts->all);
    if (texts->model == NULL || texts->all == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", capacity);
    }
    return status_ok();
}

static status_t read_texts(json_t *vocab, const json_t *added, struct token_texts *texts)
{
    status_t s = read_vocab(vocab, texts);
    if (!status_is_ok(&s)) {
        return status_wrapf(s, "model.vocab");
    }
    s = read_added_ids(added, texts);
    if (!status_is_ok(&s)) {
        return status_wrapf(s, "added_tokens");
    }
    if (texts->n == 0) {
        return status_errorf(STATUS_DATA_LOSS, "model.vocab: is empty");
    }
    TRY(check_no_gap(texts));
    return check_unique(texts);
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

// ---- model.merges ----

/* The two parts of "a b" or ["a", "b"]. */
static status_t split_merge(const json_t *merge, struct text_view *left, struct text_view *right)
{
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge);
        const char *space = strchr(text, ' ');
        if (space != NULL && strchr(space + 1, ' ') == NULL) {
            *left = (struct text_view){.data = text, .size = (size_t)(space - text)};
            *right = (struct text_view){.data = space + 1, .size = strlen(space + 1)};
            return status_ok();
        }
    } else if (json_array_size(merge) == 2 && json_is_string(json_array_get(merge, 0)) &&
               json_is_string(json_array_get(merge, 1))) {
        const json_t *a = json_array_get(merge, 0);
        const json_t *b = json_array_get(merge, 1);
        *left = (struct text_view){.data = json_string_value(a), .size = json_string_length(a)};
        *right = (struct text_view){.data = json_string_value(b), .size = json_string_length(b)};
        return status_ok();
    }
    return status_errorf(STATUS_DATA_LOSS, "neither \"a b\" nor [\"a\", \"b\"]");
}

static status_t find_part(const struct vocab *vocab, const struct text_view *text, uint32_t *id_out)
{
    const int32_t id = text->size > 0 ? vocab_find(vocab, text->data, text->size) : -1;
    if (id < 0) {
        char copy[QUOTED_BYTES];
        char quoted[QUOTED_BYTES];
        const size_t shown = text->size < sizeof copy - 1 ? text->size : sizeof copy - 1;
        memcpy(copy, text->data, shown);
        copy[shown] = '\0';
        return status_errorf(STATUS_DATA_LOSS, "token %s is not in model.vocab",
                             log_quote(copy, quoted, sizeof quoted));
    }
    *id_out = (uint32_t)id;
    return status_ok();
}

static status_t read_merge(const struct vocab *vocab, const json_t *json, struct bytes *joined,
                           struct bpe_merge *out)
{
    struct text_view left;
    struct text_view right;
    TRY(split_merge(json, &left, &right));
    TRY(find_part(vocab, &left, &out->left));
    TRY(find_part(vocab, &right, &out->right));
    bytes_clear(joined);
    TRY(bytes_append(joined, left.data, left.size));
    TRY(bytes_append(joined, right.data, right.size));
    const struct text_view result = {.data = joined->data, .size = joined->size};
    return find_part(vocab, &result, &out->id);
}

static status_t read_merges(const struct vocab *vocab, const json_t *merges, struct bpe_merge *out)
{
    struct bytes joined;
    bytes_init(&joined, 2 * MAX_TOKEN_BYTES);
    status_t s = status_ok();
    for (size_t i = 0; i < json_array_size(merges) && status_is_ok(&s); i++) {
        s = read_merge(vocab, json_array_get(merges, i), &joined, &out[i]);
        s = status_wrapf(s, "merges[%zu]", i);
    }
    bytes_destroy(&joined);
    return s;
}

// ---- model ----

static status_t check_empty(const json_t *model, const char *name)
{
    const json_t *value = json_field_get(model, name);
    if (value != NULL && (!json_is_string(value) || json_string_length(value) > 0)) {
        return status_errorf(STATUS_DATA_LOSS, "%s is not supported", name);
    }
    return status_ok();
}

static status_t read_options(const json_t *model, const struct tokenizer *tokenizer,
                             struct bpe_options *out)
{
    const char *type = "BPE";
    if (json_field_get(model, "type") != NULL) {
        TRY(json_field_string(model, "type", &type));
    }
    if (strcmp(type, "BPE") != 0) {
        char quoted[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "type %s is not supported (known: BPE)",
                             log_quote(type, quoted, sizeof quoted));
    }
    const json_t *dropout = json_field_get(model, "dropout");
    if (dropout != NULL && (!json_is_number(dropout) || json_number_value(dropout) != 0)) {
        return status_errorf(STATUS_DATA_LOSS, "dropout is not supported");
    }
    TRY(check_empty(model, "continuing_subword_prefix"));
    TRY(check_empty(model, "end_of_word_suffix"));
    *out = (struct bpe_options){.byte_level = tokenizer->pretokenizer.byte_level, .unk_id = -1};
    TRY(json_field_bool(model, "byte_fallback", false, &out->byte_fallback));
    TRY(json_field_bool(model, "fuse_unk", false, &out->fuse_unk));
    TRY(json_field_bool(model, "ignore_merges", false, &out->ignore_merges));
    if (json_field_get(model, "unk_token") != NULL) {
        const char *unk;
        TRY(json_field_string(model, "unk_token", &unk));
        const struct text_view text = {.data = unk, .size = strlen(unk)};
        uint32_t id;
        TRY(find_part(&tokenizer->pieces, &text, &id));
        out->unk_id = (int32_t)id;
    }
    if (out->byte_level && out->byte_fallback) {
        return status_errorf(STATUS_DATA_LOSS, "byte_fallback with ByteLevel is not supported");
    }
    return status_ok();
}

static status_t read_model(const json_t *model, struct tokenizer *tokenizer)
{
    struct bpe_options options;
    json_t *merges;
    TRY(read_options(model, tokenizer, &options));
    TRY(json_field_array(model, "merges", &merges));
    const size_t n = json_array_size(merges);
    if (n > MAX_MERGES) {
        return status_errorf(STATUS_DATA_LOSS, "%zu merges, limit %zu", n, MAX_MERGES);
    }
    struct bpe_merge *list = calloc(n + 1, sizeof *list);
    if (list == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges", n);
    }
    status_t s = read_merges(&tokenizer->pieces, merges, list);
    if (status_is_ok(&s)) {
        s = bpe_init(&tokenizer->bpe, &options, &tokenizer->pieces, list, n);
    }
    free(list);
    return s;
}

// ---- added_tokens ----

static status_t read_added_flags(const json_t *token, int *flags_out, bool *normalized_out)
{
    bool special;
    bool single_word;
    bool lstrip;
    bool rstrip;
    TRY(json_field_bool(token, "special", false, &special));
    TRY(json_field_bool(token, "single_word", false, &single_word));
    TRY(json_field_bool(token, "lstrip", false, &lstrip));
    TRY(json_field_bool(token, "rstrip", false, &rstrip));
    TRY(json_field_bool(token, "normalized", !special, normalized_out));
    if (single_word) {
        return status_errorf(STATUS_DATA_LOSS, "single_word is not supported");
    }
    *flags_out = (special ? ADDED_TOKEN_SPECIAL : 0) | (lstrip ? ADDED_TOKEN_LSTRIP : 0) |
                 (rstrip ? ADDED_TOKEN_RSTRIP : 0);
    return status_ok();
}

/* Tokens that are looked for in normalized text are normalized like it. */
static status_t insert_normalized(struct tokenizer *tokenizer, const struct text_view *text,
                                  int32_t id, int flags)
{
    struct bytes normal;
    struct bytes spare;
    bytes_init(&normal, SIZE_MAX);
    bytes_init(&spare, SIZE_MAX);
    status_t s = normalize_text(&tokenizer->normalizer, text->data, text->size, &normal, &spare);
    if (status_is_ok(&s) && normal.size > 0) {
        s = added_tokens_insert(&tokenizer->normalized_added, normal.data, normal.size, id, flags);
    }
    bytes_destroy(&normal);
    bytes_destroy(&spare);
    return s;
}

static status_t read_added_token(const json_t *token, const struct token_texts *texts,
                                 struct tokenizer *tokenizer)
{
    json_int_t id;
    int flags;
    bool normalized;
    TRY(json_field_count(token, "id", INT32_MAX, &id));
    TRY(read_added_flags(token, &flags, &normalized));
    if ((flags & ADDED_TOKEN_SPECIAL) != 0) {
        tokenizer->kinds[id] |= TOKEN_SPECIAL;
    }
    const struct text_view *text = &texts->all[id];
    if (normalized) {
        return insert_normalized(tokenizer, text, (int32_t)id, flags);
    }
    return added_tokens_insert(&tokenizer->raw_added, text->data, text->size, (int32_t)id, flags);
}

static status_t read_added_tokens(const json_t *added, const struct token_texts *texts,
                                  struct tokenizer *tokenizer)
{
    for (size_t i = 0; i < json_array_size(added); i++) {
        status_t s = read_added_token(json_array_get(added, i), texts, tokenizer);
        if (!status_is_ok(&s)) {
            return status_wrapf(s, "added_tokens[%zu]", i);
        }
    }
    return status_ok();
}

// ---- the whole ----

status_t model_json_read(const json_t *root, struct tokenizer *tokenizer)
{
    json_t *model;
    json_t *vocab;
    json_t *added = NULL;
    TRY(json_field_object(root, "model", &model));
    TRY(json_field_object(model, "vocab", &vocab));
    if (json_field_get(root, "added_tokens") != NULL) {
        TRY(json_field_array(root, "added_tokens", &added));
    }
    struct token_texts texts;
    status_t s;
    TRY_GOTO(s, texts_alloc(&texts, json_object_size(vocab) + json_array_size(added)), done);
    TRY_GOTO(s, read_texts(vocab, added, &texts), done);
    TRY_GOTO(s, vocab_init(&tokenizer->pieces, texts.model, texts.n), done);
    tokenizer->kinds = calloc(texts.n + 1, 1);
    if (tokenizer->kinds == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", texts.n);
        goto done;
    }
    TRY_GOTO(s, fill_decoded(&texts, tokenizer), done);
    TRY_GOTO(s, read_added_tokens(added, &texts, tokenizer), done);
    s = status_wrapf(read_model(model, tokenizer), "model");
done:
    free(texts.model);
    free(texts.all);
    return s;
}

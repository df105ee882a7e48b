#include "coordinator/tokenizer/model_json.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/token_texts.h"

#define MAX_MERGES   ((size_t)8 * 1024 * 1024)
#define QUOTED_BYTES 80

// ---- model.vocab and the ids of added_tokens ----

static struct text_view text_of(const char *text)
{
    return (struct text_view){.data = text, .size = strlen(text)};
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
        TRY(token_texts_set(texts, json_integer_value(value), text_of(text), TOKEN_IN_MODEL));
    }
    return status_ok();
}

static status_t read_added_id(const json_t *token, struct token_texts *texts)
{
    json_int_t id;
    const char *text;
    TRY(json_field_count(token, "id", INT32_MAX, &id));
    TRY(json_field_string(token, "content", &text));
    return token_texts_set(texts, id, text_of(text), TOKEN_ADDED);
}

static status_t read_texts(json_t *vocab, const json_t *added, struct token_texts *texts)
{
    TRY(status_wrapf(read_vocab(vocab, texts), "model.vocab"));
    for (size_t i = 0; i < json_array_size(added); i++) {
        const status_t s = read_added_id(json_array_get(added, i), texts);
        TRY(status_wrapf(s, "added_tokens: [%zu]", i));
    }
    if (texts->n == 0) {
        return status_errorf(STATUS_DATA_LOSS, "model.vocab: is empty");
    }
    return status_ok();
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
        char quoted[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "token %s is not in model.vocab",
                             token_texts_quote(*text, quoted, sizeof quoted));
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
    bytes_init(&joined, 2 * TOKEN_MAX_BYTES);
    status_t s = status_ok();
    for (size_t i = 0; i < json_array_size(merges) && status_is_ok(&s); i++) {
        s = read_merge(vocab, json_array_get(merges, i), &joined, &out[i]);
        out[i].rank = (uint32_t)i;
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

status_t model_json_added_token(const json_t *json, struct added_token *out)
{
    bool special;
    bool single_word;
    bool lstrip;
    bool rstrip;
    TRY(json_field_bool(json, "special", false, &special));
    TRY(json_field_bool(json, "single_word", false, &single_word));
    TRY(json_field_bool(json, "lstrip", false, &lstrip));
    TRY(json_field_bool(json, "rstrip", false, &rstrip));
    TRY(json_field_bool(json, "normalized", !special, &out->normalized));
    if (single_word) {
        return status_errorf(STATUS_DATA_LOSS, "single_word is not supported");
    }
    out->flags = (special ? ADDED_TOKEN_SPECIAL : 0) | (lstrip ? ADDED_TOKEN_LSTRIP : 0) |
                 (rstrip ? ADDED_TOKEN_RSTRIP : 0);
    return status_ok();
}

static status_t read_added_token(const json_t *json, const struct token_texts *texts,
                                 struct tokenizer *tokenizer)
{
    json_int_t id;
    struct added_token token;
    TRY(json_field_count(json, "id", INT32_MAX, &id));
    TRY(model_json_added_token(json, &token));
    token.id = (int32_t)id;
    if (tokenizer->decoder.strip_first && texts->model[id].size == 0 &&
        strstr(texts->all[id].data, META_SPACE) != NULL) {
        return status_errorf(STATUS_DATA_LOSS, "a token with " META_SPACE
                                               " that is not in model.vocab, with a Metaspace "
                                               "decoder, is not supported");
    }
    return token_texts_add(texts, token, tokenizer);
}

static status_t read_added_tokens(const json_t *added, const struct token_texts *texts,
                                  struct tokenizer *tokenizer)
{
    for (size_t i = 0; i < json_array_size(added); i++) {
        const status_t s = read_added_token(json_array_get(added, i), texts, tokenizer);
        TRY(status_wrapf(s, "added_tokens[%zu]", i));
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
    TRY(token_texts_init(&texts, json_object_size(vocab) + json_array_size(added)));
    status_t s;
    TRY_GOTO(s, read_texts(vocab, added, &texts), done);
    TRY_GOTO(s, token_texts_fill(&texts, tokenizer), done);
    TRY_GOTO(s, read_added_tokens(added, &texts, tokenizer), done);
    s = status_wrapf(read_model(model, tokenizer), "model");
done:
    token_texts_destroy(&texts);
    return s;
}

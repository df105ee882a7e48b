#include "coordinator/tokenizer/gpt2_files.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "coordinator/tokenizer/tokenizer_json.h"

#define QUOTED_BYTES 80

static status_t no_memory(void)
{
    return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a tokenizer");
}

// ---- special tokens ----

/* A token of the vocabulary becomes an added special token; one that is not in it is left alone. */
static status_t add_special(json_t *added, const json_t *vocab, const json_t *token)
{
    const char *text =
        json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
    json_t *id = text != NULL ? json_object_get(vocab, text) : NULL;
    if (id == NULL) {
        return status_ok();
    }
    json_t *entry =
        json_pack("{s:O, s:s, s:b, s:b}", "id", id, "content", text, "special", 1, "normalized", 0);
    return json_array_append_new(added, entry) == 0 ? status_ok() : no_memory();
}

/* {"50257": {"content": ...}} as {"id": 50257, "content": ...} */
static status_t add_decoder(json_t *added, const json_t *config)
{
    const char *name;
    json_t *token;
    json_object_foreach(json_object_get(config, "added_tokens_decoder"), name, token)
    {
        char *end;
        const long id = strtol(name, &end, 10);
        if (!json_is_object(token) || end == name || *end != '\0') {
            return status_errorf(STATUS_DATA_LOSS,
                                 "tokenizer_config.json: added_tokens_decoder: not objects by id");
        }
        json_t *entry = json_copy(token);
        if (json_object_set_new(entry, "id", json_integer(id)) != 0) {
            json_decref(entry);
            return no_memory();
        }
        if (json_array_append_new(added, entry) != 0) {
            return no_memory();
        }
    }
    return status_ok();
}

static status_t fill_added(json_t *added, const json_t *vocab, const json_t *config)
{
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "pad_token"};

    TRY(add_decoder(added, config));
    json_t *end_of_text = json_string("<|endoftext|>");
    status_t s = add_special(added, vocab, end_of_text);
    json_decref(end_of_text);
    for (size_t i = 0; i < sizeof names / sizeof names[0] && status_is_ok(&s); i++) {
        s = add_special(added, vocab, json_object_get(config, names[i]));
    }
    const json_t *more = json_object_get(config, "additional_special_tokens");
    for (size_t i = 0; i < json_array_size(more) && status_is_ok(&s); i++) {
        s = add_special(added, vocab, json_array_get(more, i));
    }
    return s;
}

// ---- merges.txt ----

static status_t fill_merges(json_t *merges, const struct bytes *text)
{
    const char *data = (const char *)text->data;
    for (size_t at = 0, n = 0; at < text->size; n++) {
        const char *newline = memchr(data + at, '\n', text->size - at);
        const size_t end = newline != NULL ? (size_t)(newline - data) : text->size;
        size_t length = end - at;
        length -= length > 0 && data[at + length - 1] == '\r';
        const bool is_header = n == 0 && length >= 8 && memcmp(data + at, "#version", 8) == 0;
        if (length > 0 && !is_header) {
            json_t *line = json_stringn(data + at, length); // NULL when it is not UTF-8
            if (line == NULL || json_array_append_new(merges, line) != 0) {
                return status_errorf(STATUS_DATA_LOSS, "merges.txt: line %zu is not UTF-8", n + 1);
            }
        }
        at = end + 1;
    }
    return status_ok();
}

// ---- the whole ----

static status_t check_class(const struct tokenizer_config *config)
{
    if (config->class_kind == TOKENIZER_CLASS_NONE || config->class_kind == TOKENIZER_CLASS_GPT2) {
        return status_ok();
    }
    char quoted[QUOTED_BYTES];
    return status_errorf(
        STATUS_DATA_LOSS,
        "tokenizer_class %s: vocab.json and merges.txt are read for GPT2Tokenizer alone" STATUS_FIX
        "save the tokenizer once with transformers' AutoTokenizer, which writes tokenizer.json",
        log_quote(tokenizer_config_class_name(config), quoted, sizeof quoted));
}

/* The tokenizer.json that says the same. */
static status_t make_root(json_t *vocab, const struct bytes *merges_txt, const json_t *config,
                          json_t **root_out)
{
    json_t *added = json_array();
    json_t *merges = json_array();
    status_t s;
    TRY_GOTO(s, fill_added(added, vocab, config), undo);
    TRY_GOTO(s, fill_merges(merges, merges_txt), undo);
    bool prefix_space;
    TRY_GOTO(s, json_field_bool(config, "add_prefix_space", false, &prefix_space), undo);
    json_t *root =
        json_pack("{s:o, s:{s:O, s:o}, s:{s:s, s:b}, s:{s:s}}", "added_tokens", added, "model",
                  "vocab", vocab, "merges", merges, "pre_tokenizer", "type", "ByteLevel",
                  "add_prefix_space", prefix_space, "decoder", "type", "ByteLevel");
    if (root == NULL) {
        return no_memory();
    }
    *root_out = root;
    return status_ok();

undo:
    json_decref(added);
    json_decref(merges);
    return s;
}

status_t gpt2_files_parse(const struct bytes *vocab_json, const struct bytes *merges_txt,
                          const struct tokenizer_config *config, struct tokenizer **tokenizer_out)
{
    TRY(check_class(config));
    static const struct json_limits limits = {
        .max_depth = 1, .max_containers = 1, .max_values = 1000000};
    json_t *vocab;
    status_t s = json_field_parse(vocab_json->data, vocab_json->size, JSON_REJECT_DUPLICATES,
                                  &limits, &vocab);
    TRY(status_wrapf(s, "vocab.json"));
    json_t *root = NULL;
    s = make_root(vocab, merges_txt, config->root, &root);
    if (status_is_ok(&s)) {
        s = tokenizer_json_read(root, tokenizer_out);
    }
    json_decref(root);
    json_decref(vocab);
    return s;
}

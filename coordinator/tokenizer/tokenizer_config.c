#include "coordinator/tokenizer/tokenizer_config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/model_json.h"
#include "coordinator/tokenizer/token_texts.h"

#define QUOTED_BYTES 80

// ---- the file ----

static int class_of(const char *name)
{
    static const struct {
        const char *name;
        int kind;
    } classes[] = {
        {.name = "LlamaTokenizer", .kind = TOKENIZER_CLASS_LLAMA},
        {.name = "LlamaTokenizerFast", .kind = TOKENIZER_CLASS_LLAMA},
        {.name = "CodeLlamaTokenizer", .kind = TOKENIZER_CLASS_LLAMA},
        {.name = "CodeLlamaTokenizerFast", .kind = TOKENIZER_CLASS_LLAMA},
        {.name = "GPT2Tokenizer", .kind = TOKENIZER_CLASS_GPT2},
        {.name = "GPT2TokenizerFast", .kind = TOKENIZER_CLASS_GPT2},
        {.name = "CodeGen25Tokenizer", .kind = TOKENIZER_CLASS_CODEGEN25},
        {.name = "DeciCoderTokenizer", .kind = TOKENIZER_CLASS_CODEGEN25},
    };

    if (name == NULL) {
        return TOKENIZER_CLASS_NONE;
    }
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++) {
        if (strcmp(name, classes[i].name) == 0) {
            return classes[i].kind;
        }
    }
    return TOKENIZER_CLASS_OTHER;
}

status_t tokenizer_config_parse(const void *json, size_t size, struct tokenizer_config *out)
{
    static const struct json_limits limits = {
        .max_depth = 32, .max_containers = 50000, .max_values = 200000};
    json_t *root;
    // model_max_length is often 1e30 written as an integer.
    TRY(json_field_parse(json, size, JSON_DECODE_INT_AS_REAL, &limits, &root));
    *out = (struct tokenizer_config){.root = root};
    out->class_kind = class_of(tokenizer_config_class_name(out));
    return status_ok();
}

void tokenizer_config_destroy(struct tokenizer_config *config)
{
    json_decref(config->root);
    *config = (struct tokenizer_config){0};
}

const char *tokenizer_config_class_name(const struct tokenizer_config *config)
{
    const char *name = json_string_value(json_object_get(config->root, "tokenizer_class"));
    if (name != NULL) {
        return name;
    }
    // "auto_map": {"AutoTokenizer": ["module.Class", null]}
    const json_t *map = json_object_get(config->root, "auto_map");
    const char *path = json_string_value(json_array_get(json_object_get(map, "AutoTokenizer"), 0));
    const char *dot = path != NULL ? strrchr(path, '.') : NULL;
    return dot != NULL ? dot + 1 : NULL;
}

// ---- the template ----

/* "bos_token": "<s>", or {"content": "<s>"}; absent: the class's own. */
static status_t read_token(const json_t *root, const char *name, const char **text_out)
{
    const json_t *value = json_field_get(root, name);
    if (value == NULL) {
        return status_ok();
    }
    if (json_is_object(value)) {
        return status_wrapf(json_field_string(value, "content", text_out), "%s", name);
    }
    return json_field_string(root, name, text_out);
}

static status_t find_id(const struct tokenizer *tokenizer, const json_t *root, const char *name,
                        const char *text, int32_t *id_out)
{
    TRY(read_token(root, name, &text));
    int32_t id = tokenizer_special_id(tokenizer, text);
    if (id < 0) {
        id = vocab_find(&tokenizer->pieces, text, strlen(text));
    }
    if (id < 0) {
        char quoted[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "%s: %s is not in the vocabulary", name,
                             log_quote(text, quoted, sizeof quoted));
    }
    *id_out = id;
    return status_ok();
}

status_t tokenizer_config_apply(const struct tokenizer_config *config, struct tokenizer *tokenizer)
{
    const json_t *root = config->root;
    if (config->class_kind != TOKENIZER_CLASS_LLAMA) {
        return status_ok();
    }
    bool add_bos;
    bool add_eos;
    TRY(json_field_bool(root, "add_bos_token", true, &add_bos));
    TRY(json_field_bool(root, "add_eos_token", false, &add_eos));
    struct template_ids ids = {0};
    if (add_bos) {
        TRY(find_id(tokenizer, root, "bos_token", "<s>", &ids.before[0]));
        ids.n_before = 1;
    }
    if (add_eos) {
        TRY(find_id(tokenizer, root, "eos_token", "</s>", &ids.after[0]));
        ids.n_after = 1;
    }
    tokenizer->template_ids = ids;
    return status_ok();
}

// ---- added_tokens_decoder ----

static json_t *added_tokens(const struct tokenizer_config *config)
{
    return json_object_get(config->root, "added_tokens_decoder");
}

size_t tokenizer_config_n_added(const struct tokenizer_config *config)
{
    return json_object_size(added_tokens(config)); // 0 when it is no object
}

static status_t parse_id(const char *name, int32_t *id_out)
{
    char *end;
    errno = 0;
    const long id = strtol(name, &end, 10);
    if (errno != 0 || end == name || *end != '\0' || id < 0 || id > INT32_MAX) {
        char quoted[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "%s is no id",
                             log_quote(name, quoted, sizeof quoted));
    }
    *id_out = (int32_t)id;
    return status_ok();
}

static status_t note_added(const char *name, const json_t *token, struct token_texts *texts)
{
    int32_t id;
    const char *content;
    TRY(parse_id(name, &id));
    TRY(json_field_string(token, "content", &content));
    const struct text_view text = {.data = content, .size = strlen(content)};
    return token_texts_set(texts, id, text, TOKEN_ADDED);
}

status_t tokenizer_config_note_added(const struct tokenizer_config *config,
                                     struct token_texts *texts)
{
    const char *name;
    json_t *token;
    json_object_foreach(added_tokens(config), name, token)
    {
        const status_t s = note_added(name, token, texts);
        TRY(status_wrapf(s, "tokenizer_config.json: added_tokens_decoder"));
    }
    return status_ok();
}

static status_t add(const char *name, const json_t *json, const struct token_texts *texts,
                    struct tokenizer *tokenizer)
{
    struct added_token token;
    TRY(model_json_added_token(json, &token));
    TRY(parse_id(name, &token.id));
    return token_texts_add(texts, token, tokenizer);
}

status_t tokenizer_config_add(const struct tokenizer_config *config,
                              const struct token_texts *texts, struct tokenizer *tokenizer)
{
    const char *name;
    json_t *token;
    json_object_foreach(added_tokens(config), name, token)
    {
        const status_t s = add(name, token, texts, tokenizer);
        TRY(status_wrapf(s, "tokenizer_config.json: added_tokens_decoder"));
    }
    return status_ok();
}

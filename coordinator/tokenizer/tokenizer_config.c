#include "coordinator/tokenizer/tokenizer_config.h"

#include <string.h>

#include <jansson.h>

#include "base/json_limits.h"
#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

#define QUOTED_BYTES 80

/* "bos_token": "<s>", or {"content": "<s>"}. */
static status_t read_token(const json_t *root, const char *name, const char **text_out)
{
    const json_t *value = json_field_get(root, name);
    if (json_is_object(value)) {
        return status_wrapf(json_field_string(value, "content", text_out), "%s", name);
    }
    return json_field_string(root, name, text_out);
}

static status_t find_id(const struct tokenizer *tokenizer, const json_t *root, const char *name,
                        int32_t *id_out)
{
    const char *text;
    TRY(read_token(root, name, &text));
    const int32_t id = vocab_find(&tokenizer->pieces, text, strlen(text));
    if (id < 0) {
        char quoted[QUOTED_BYTES];
        return status_errorf(STATUS_DATA_LOSS, "%s: %s is not in model.vocab", name,
                             log_quote(text, quoted, sizeof quoted));
    }
    *id_out = id;
    return status_ok();
}

static bool is_llama_class(const char *name)
{
    static const char *const names[] = {"LlamaTokenizer", "LlamaTokenizerFast",
                                        "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

static status_t apply(const json_t *root, struct tokenizer *tokenizer)
{
    const char *class_name = json_string_value(json_object_get(root, "tokenizer_class"));
    if (class_name == NULL || !is_llama_class(class_name)) {
        return status_ok();
    }
    bool add_bos;
    bool add_eos;
    TRY(json_field_bool(root, "add_bos_token", true, &add_bos));
    TRY(json_field_bool(root, "add_eos_token", false, &add_eos));
    struct template_ids ids = {0};
    if (add_bos) {
        TRY(find_id(tokenizer, root, "bos_token", &ids.before[0]));
        ids.n_before = 1;
    }
    if (add_eos) {
        TRY(find_id(tokenizer, root, "eos_token", &ids.after[0]));
        ids.n_after = 1;
    }
    tokenizer->template_ids = ids;
    return status_ok();
}

status_t tokenizer_config_apply(const void *json, size_t size, struct tokenizer *tokenizer)
{
    static const struct json_limits limits = {
        .max_depth = 32, .max_containers = 50 * 1000, .max_values = 200 * 1000};
    TRY(json_limits_check(json, size, &limits));
    json_error_t error;
    // model_max_length is often 1e30 written as an integer.
    json_t *root = json_loadb(json, size, JSON_DECODE_INT_AS_REAL, &error);
    if (root == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "line %d, column %d: %s", error.line, error.column,
                             error.text);
    }
    const status_t s = apply(root, tokenizer);
    json_decref(root);
    return s;
}

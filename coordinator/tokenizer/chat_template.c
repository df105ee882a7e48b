#include "coordinator/tokenizer/chat_template.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "base/bytes.h"
#include "base/file.h"
#include "coordinator/tokenizer/json_field.h"

#define MAX_FILE_BYTES ((size_t)8 * 1024 * 1024)
#define PATH_BYTES     4096
#define TOKEN_BYTES    64

// ---- the table ----

/*
 * A template is known by its length and the FNV-1a hash of its text: enough to tell published texts apart. A text made
 * to collide would only choose one of the renderings below, which are as safe as any other.
 */
static const struct {
    size_t size;
    uint64_t hash;
    int kind;              /* enum chat_template_kind */
    const char *bos, *eos; /* what the template's variables must be; NULL: it has none */
} known[] = {
    // DeciLM-7B-instruct
    {.size = 377, .hash = 0x1ae0ab9276690e58, .kind = CHAT_TEMPLATE_DECILM_INSTRUCT},
    // Llama-2-7b-chat
    {.size = 815,
     .hash = 0xf344eecf1bd3a427,
     .kind = CHAT_TEMPLATE_LLAMA2,
     .bos = "<s>",
     .eos = "</s>"},
    // Meta-Llama-3-8B-Instruct, first without and later with a condition at its end
    {.size = 348,
     .hash = 0x74891e390e614ae2,
     .kind = CHAT_TEMPLATE_LLAMA3,
     .bos = "<|begin_of_text|>"},
    {.size = 389,
     .hash = 0x0e60067a5537498e,
     .kind = CHAT_TEMPLATE_LLAMA3,
     .bos = "<|begin_of_text|>"},
    // Mistral-7B-Instruct-v0.2
    {.size = 470,
     .hash = 0x8c734b90b4f8d84d,
     .kind = CHAT_TEMPLATE_MISTRAL,
     .bos = "<s>",
     .eos = "</s>"},
    // Mistral-7B-Instruct-v0.1
    {.size = 477,
     .hash = 0xc730acc029ce6ee0,
     .kind = CHAT_TEMPLATE_MISTRAL_SPACE,
     .bos = "<s>",
     .eos = "</s>"},
};

/* Fowler, Noll, Vo: FNV-1a, 64 bits. */
static uint64_t hash_text(const char *text, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ (uint8_t)text[i]) * 0x100000001b3;
    }
    return hash;
}

static int find_kind(const char *text, size_t size)
{
    const uint64_t hash = hash_text(text, size);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].size == size && known[i].hash == hash) {
            return known[i].kind;
        }
    }
    return CHAT_TEMPLATE_UNKNOWN;
}

// ---- load ----

/* What tokenizer_config.json says of it. */
struct config_facts {
    int kind;
    char bos[TOKEN_BYTES], eos[TOKEN_BYTES]; /* "": not named there */
};

/* NOT_FOUND leaves *found_out false and is no error. */
static status_t read_optional(const char *dir, const char *name, struct bytes *out, bool *found_out)
{
    char path[PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    const status_t s = file_read(path, MAX_FILE_BYTES, out);
    *found_out = s.code == STATUS_OK;
    return s.code == STATUS_NOT_FOUND ? status_ok() : s;
}

/* The text itself, or the one named "default" of a list of {"name", "template"}. */
static int config_kind(const json_t *root)
{
    const json_t *value = json_field_get(root, "chat_template");
    if (value == NULL) {
        return CHAT_TEMPLATE_NONE;
    }
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name != NULL && strcmp(name, "default") == 0) {
            value = json_object_get(entry, "template");
            break;
        }
    }
    return json_is_string(value) ? find_kind(json_string_value(value), json_string_length(value))
                                 : CHAT_TEMPLATE_UNKNOWN;
}

/* "bos_token": "<s>", or {"content": "<s>"}. What does not fit is cut, and then no known token. */
static void read_token(const json_t *root, const char *name, char out[TOKEN_BYTES])
{
    const json_t *value = json_field_get(root, name);
    if (json_is_object(value)) {
        value = json_field_get(value, "content");
    }
    const char *text = json_string_value(value);
    snprintf(out, TOKEN_BYTES, "%s", text != NULL ? text : "");
}

static status_t parse_config(const char *dir, const struct bytes *file, struct config_facts *out)
{
    json_error_t error;
    // model_max_length is often 1e30 written as an integer.
    json_t *root =
        json_loadb((const char *)file->data, file->size, JSON_DECODE_INT_AS_REAL, &error);
    if (root == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "%s/tokenizer_config.json: line %d, column %d: %s",
                             dir, error.line, error.column, error.text);
    }
    out->kind = config_kind(root);
    read_token(root, "bos_token", out->bos);
    read_token(root, "eos_token", out->eos);
    json_decref(root);
    return status_ok();
}

static bool is_other(const char *wanted, const char *named)
{
    return wanted != NULL && named[0] != '\0' && strcmp(wanted, named) != 0;
}

/* The kind, unless the template's variables are not what the rendering takes them for. */
static int checked_kind(const struct config_facts *facts)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].kind == facts->kind &&
            (is_other(known[i].bos, facts->bos) || is_other(known[i].eos, facts->eos))) {
            return CHAT_TEMPLATE_UNKNOWN;
        }
    }
    return facts->kind;
}

static status_t load_kind(const char *dir, struct bytes *file, struct config_facts *facts)
{
    bool found;
    TRY(read_optional(dir, "tokenizer_config.json", file, &found));
    if (found) {
        TRY(parse_config(dir, file, facts));
    }
    if (facts->kind != CHAT_TEMPLATE_NONE) {
        return status_ok();
    }
    bytes_clear(file);
    TRY(read_optional(dir, "chat_template.jinja", file, &found));
    if (found) {
        facts->kind = find_kind((const char *)file->data, file->size);
    }
    return status_ok();
}

status_t chat_template_load(const char *dir, struct chat_template *out)
{
    struct bytes file;
    bytes_init(&file, MAX_FILE_BYTES + 1);
    struct config_facts facts = {.kind = CHAT_TEMPLATE_NONE};
    const status_t s = load_kind(dir, &file, &facts);
    bytes_destroy(&file);
    if (s.code == STATUS_OK) {
        out->kind = checked_kind(&facts);
    }
    return s;
}

#include "coordinator/tokenizer/chat_template.h"

#include <string.h>

#include <jansson.h>

#include "base/file.h"
#include "base/log.h"
#include "coordinator/tokenizer/json_field.h"

#define MAX_FILE_BYTES ((size_t)16 * 1024 * 1024)
#define PATH_BYTES     4096

// ---- the table ----

/* Published with DeciLM-7B and DeciLM-7B-instruct (huggingface.co/Deci/DeciLM-7B). */
#define DECILM_INSTRUCT                               \
    "{% for message in messages %}\n"                 \
    "{% if message['role'] == 'user' %}\n"            \
    "{{ '### User:\n' + message['content'] }}\n"      \
    "{% elif message['role'] == 'system' %}\n"        \
    "{{ '### System:\n' + message['content'] }}\n"    \
    "{% elif message['role'] == 'assistant' %}\n"     \
    "{{ '### Assistant:\n' + message['content'] }}\n" \
    "{% endif %}\n"                                   \
    "{% if loop.last and add_generation_prompt %}\n"  \
    "{{ '### Assistant:' }}\n"                        \
    "{% endif %}\n"                                   \
    "{% endfor %}"

static const struct {
    const char *text;
    int kind;
} known[] = {
    {.text = DECILM_INSTRUCT, .kind = CHAT_TEMPLATE_DECILM_INSTRUCT},
};

static int find_kind(const char *text, size_t size)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strlen(known[i].text) == size && memcmp(known[i].text, text, size) == 0) {
            return known[i].kind;
        }
    }
    return CHAT_TEMPLATE_UNKNOWN;
}

// ---- load ----

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

static status_t parse_config(const char *dir, const struct bytes *file, int *kind_out)
{
    json_error_t error;
    // model_max_length is often 1e30 written as an integer.
    json_t *root =
        json_loadb((const char *)file->data, file->size, JSON_DECODE_INT_AS_REAL, &error);
    if (root == NULL) {
        return status_errorf(STATUS_DATA_LOSS, "%s/tokenizer_config.json: line %d, column %d: %s",
                             dir, error.line, error.column, error.text);
    }
    *kind_out = config_kind(root);
    json_decref(root);
    return status_ok();
}

static status_t load_kind(const char *dir, struct bytes *file, int *kind_out)
{
    bool found;
    *kind_out = CHAT_TEMPLATE_NONE;
    TRY(read_optional(dir, "tokenizer_config.json", file, &found));
    if (found) {
        TRY(parse_config(dir, file, kind_out));
    }
    if (*kind_out != CHAT_TEMPLATE_NONE) {
        return status_ok();
    }
    bytes_clear(file);
    TRY(read_optional(dir, "chat_template.jinja", file, &found));
    if (found) {
        *kind_out = find_kind((const char *)file->data, file->size);
    }
    return status_ok();
}

status_t chat_template_load(const char *dir, struct chat_template *out)
{
    struct bytes file;
    bytes_init(&file, MAX_FILE_BYTES + 1);
    int kind;
    const status_t s = load_kind(dir, &file, &kind);
    bytes_destroy(&file);
    if (s.code == STATUS_OK) {
        out->kind = kind;
    }
    return s;
}

// ---- render ----

struct role_header {
    const char *role;
    const char *header;
};

static const struct role_header decilm_roles[] = {
    {.role = "system", .header = "### System:\n"},
    {.role = "user", .header = "### User:\n"},
    {.role = "assistant", .header = "### Assistant:\n"},
};

static status_t find_header(const struct role_header *roles, size_t n_roles,
                            const struct chat_message *message, size_t index,
                            const char **header_out)
{
    for (size_t i = 0; i < n_roles; i++) {
        if (strcmp(roles[i].role, message->role) == 0) {
            *header_out = roles[i].header;
            return status_ok();
        }
    }
    char quoted[64];
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "messages[%zu].role: %s, not system, user or assistant", index,
                         log_quote(message->role, quoted, sizeof quoted));
}

static status_t render_decilm(const struct chat_message *messages, size_t n, struct bytes *out)
{
    const size_t n_roles = sizeof decilm_roles / sizeof decilm_roles[0];
    for (size_t i = 0; i < n; i++) {
        const char *header;
        TRY(find_header(decilm_roles, n_roles, &messages[i], i, &header));
        TRY(bytes_append_str(out, header));
        TRY(bytes_append_str(out, messages[i].content));
        TRY(bytes_append_str(out, "\n"));
    }
    return bytes_append_str(out, "### Assistant:\n");
}

status_t chat_template_render(const struct chat_template *chat_template,
                              const struct chat_message *messages, size_t n, struct bytes *out)
{
    switch (chat_template->kind) {
    case CHAT_TEMPLATE_NONE:
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "model has no chat template" STATUS_FIX "send a prompt instead");
    case CHAT_TEMPLATE_DECILM_INSTRUCT:
        break;
    default:
        return status_errorf(
            STATUS_UNIMPLEMENTED,
            "the model's chat template is not in the table of known ones" STATUS_FIX
            "send the prompt in the model's format instead of messages");
    }
    if (n == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "messages: empty");
    }
    const size_t start = out->size;
    const status_t s = render_decilm(messages, n, out);
    if (s.code != STATUS_OK) {
        out->size = start;
    }
    return s;
}

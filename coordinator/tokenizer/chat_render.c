#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "base/utf8.h"
#include "coordinator/tokenizer/chat_template.h"
#include "coordinator/tokenizer/token_list.h"
#include "coordinator/tokenizer/unicode_class.h"

#define MAX_TEXT_BYTES ((size_t)256 * 1024 * 1024)

// ---- special tokens and the text between them ----

struct writer {
    const struct tokenizer *tokenizer;
    struct bytes text; /* since the last special token */
    struct bytes spare;
    struct token_list *out;
    int flags; /* of the next text */
};

static status_t flush(struct writer *w)
{
    if (w->text.size == 0) {
        return status_ok();
    }
    const status_t s =
        tokenizer_encode(w->tokenizer, (const char *)w->text.data, w->text.size, w->flags, w->out);
    bytes_clear(&w->text);
    return s;
}

static status_t put(struct writer *w, const char *text)
{
    return bytes_append_str(&w->text, text);
}

/* Of the template's own text only: never of a message. */
static status_t put_special(struct writer *w, const char *token)
{
    TRY(flush(w));
    const int32_t id = tokenizer_special_id(w->tokenizer, token);
    if (id < 0) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "the chat template's %s is no special token of the tokenizer", token);
    }
    return token_list_push(w->out, id);
}

// ---- white space ----

/* What Python's str.strip removes: White_Space, and four separators. */
static bool is_python_space(const uint8_t *text)
{
    size_t length;
    return (text[0] >= 0x1C && text[0] <= 0x1F) ||
           unicode_class_next(text, &length) == UNICODE_SPACE;
}

/* Appends text (well-formed) without white space at its ends. */
static status_t put_stripped(struct writer *w, const char *text, size_t size)
{
    const uint8_t *begin = (const uint8_t *)text;
    const uint8_t *end = begin + size;
    while (begin < end && is_python_space(begin)) {
        begin++;
        while (begin < end && (*begin & 0xC0) == 0x80) {
            begin++;
        }
    }
    while (end > begin) {
        const uint8_t *last = end - 1;
        while (last > begin && (*last & 0xC0) == 0x80) {
            last--;
        }
        if (!is_python_space(last)) {
            break;
        }
        end = last;
    }
    return bytes_append(&w->text, begin, (size_t)(end - begin));
}

// ---- roles ----

static bool has_role(const struct chat_message *message, const char *role)
{
    return strcmp(message->role, role) == 0;
}

static status_t wrong_role(const struct chat_message *message, size_t index, const char *wanted)
{
    char quoted[64];
    return status_errorf(STATUS_INVALID_ARGUMENT, "messages[%zu].role: %s, not %s", index,
                         log_quote(message->role, quoted, sizeof quoted), wanted);
}

/* Users and assistants take turns from `first` on. */
static status_t check_turns(const struct chat_message *messages, size_t n, size_t first)
{
    if (first == n) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "messages: none of a user");
    }
    for (size_t i = first; i < n; i++) {
        const char *wanted = (i - first) % 2 == 0 ? "user" : "assistant";
        if (!has_role(&messages[i], wanted)) {
            return wrong_role(&messages[i], i, wanted);
        }
    }
    return status_ok();
}

// ---- templates ----

static status_t write_decilm(struct writer *w, const struct chat_message *messages, size_t n)
{
    static const struct {
        const char *role;
        const char *header;
    } roles[] = {
        {.role = "system", .header = "### System:\n"},
        {.role = "user", .header = "### User:\n"},
        {.role = "assistant", .header = "### Assistant:\n"},
    };

    w->flags = TOKENIZER_ADD_SPECIAL; // the template has no BOS of its own
    for (size_t i = 0; i < n; i++) {
        const char *header = NULL;
        for (size_t k = 0; k < sizeof roles / sizeof roles[0]; k++) {
            header = has_role(&messages[i], roles[k].role) ? roles[k].header : header;
        }
        if (header == NULL) {
            return wrong_role(&messages[i], i, "system, user or assistant");
        }
        TRY(put(w, header));
        TRY(put(w, messages[i].content));
        TRY(put(w, "\n"));
    }
    return put(w, "### Assistant:\n");
}

static status_t write_llama2(struct writer *w, const struct chat_message *messages, size_t n)
{
    const size_t first = has_role(&messages[0], "system") ? 1 : 0;
    TRY(check_turns(messages, n, first));
    for (size_t i = first; i < n; i++) {
        const char *content = messages[i].content;
        if ((i - first) % 2 != 0) {
            TRY(put(w, " "));
            TRY(put_stripped(w, content, strlen(content)));
            TRY(put(w, " "));
            TRY(put_special(w, "</s>"));
            continue;
        }
        TRY(put_special(w, "<s>"));
        TRY(put(w, "[INST] "));
        bytes_clear(&w->spare);
        if (i == 1 && first == 1) {
            TRY(bytes_append_str(&w->spare, "<<SYS>>\n"));
            TRY(bytes_append_str(&w->spare, messages[0].content));
            TRY(bytes_append_str(&w->spare, "\n<</SYS>>\n\n"));
        }
        TRY(bytes_append_str(&w->spare, content));
        TRY(put_stripped(w, (const char *)w->spare.data, w->spare.size));
        TRY(put(w, " [/INST]"));
    }
    return status_ok();
}

static status_t write_llama3_header(struct writer *w, const char *role)
{
    TRY(put_special(w, "<|start_header_id|>"));
    TRY(put(w, role));
    TRY(put_special(w, "<|end_header_id|>"));
    return put(w, "\n\n");
}

static status_t write_llama3(struct writer *w, const struct chat_message *messages, size_t n)
{
    TRY(put_special(w, "<|begin_of_text|>"));
    for (size_t i = 0; i < n; i++) {
        const struct chat_message *message = &messages[i];
        if (!has_role(message, "system") && !has_role(message, "user") &&
            !has_role(message, "assistant")) {
            return wrong_role(message, i, "system, user or assistant");
        }
        TRY(write_llama3_header(w, message->role));
        TRY(put_stripped(w, message->content, strlen(message->content)));
        TRY(put_special(w, "<|eot_id|>"));
    }
    return write_llama3_header(w, "assistant");
}

static status_t write_mistral(struct writer *w, const struct chat_message *messages, size_t n,
                              const char *behind_answer)
{
    TRY(check_turns(messages, n, 0));
    TRY(put_special(w, "<s>"));
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) {
            TRY(put(w, "[INST] "));
            TRY(put(w, messages[i].content));
            TRY(put(w, " [/INST]"));
        } else {
            TRY(put(w, messages[i].content));
            TRY(put_special(w, "</s>"));
            TRY(put(w, behind_answer));
        }
    }
    return status_ok();
}

/* Stripping needs well-formed text, and an error names the message. */
static status_t check_text(const struct chat_message *messages, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const size_t size = strlen(messages[i].content);
        const size_t valid = utf8_valid_prefix((const uint8_t *)messages[i].content, size);
        if (valid != size) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "messages[%zu].content: not UTF-8 at byte %zu of %zu", i, valid,
                                 size);
        }
    }
    return status_ok();
}

static status_t write_prompt(struct writer *w, int kind, const struct chat_message *messages,
                             size_t n)
{
    switch (kind) {
    case CHAT_TEMPLATE_DECILM_INSTRUCT:
        TRY(write_decilm(w, messages, n));
        break;
    case CHAT_TEMPLATE_LLAMA2:
        TRY(write_llama2(w, messages, n));
        break;
    case CHAT_TEMPLATE_LLAMA3:
        TRY(write_llama3(w, messages, n));
        break;
    case CHAT_TEMPLATE_MISTRAL:
        TRY(write_mistral(w, messages, n, ""));
        break;
    case CHAT_TEMPLATE_MISTRAL_SPACE:
        TRY(write_mistral(w, messages, n, " "));
        break;
    default:
        return status_errorf(STATUS_INTERNAL, "chat template %d", kind);
    }
    return flush(w);
}

status_t chat_template_encode(const struct chat_template *chat_template,
                              const struct tokenizer *tokenizer,
                              const struct chat_message *messages, size_t n, struct token_list *out)
{
    if (chat_template->kind == CHAT_TEMPLATE_NONE) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "model has no chat template" STATUS_FIX "send a prompt instead");
    }
    if (chat_template->kind == CHAT_TEMPLATE_UNKNOWN) {
        return status_errorf(
            STATUS_UNIMPLEMENTED,
            "the model's chat template is not in the table of known ones" STATUS_FIX
            "send the prompt in the model's format instead of messages");
    }
    if (n == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "messages: empty");
    }
    TRY(check_text(messages, n));
    struct writer w = {.tokenizer = tokenizer, .out = out};
    bytes_init(&w.text, MAX_TEXT_BYTES);
    bytes_init(&w.spare, MAX_TEXT_BYTES);
    const size_t start = out->n;
    const status_t s = write_prompt(&w, chat_template->kind, messages, n);
    if (!status_is_ok(&s)) {
        out->n = start;
    }
    bytes_destroy(&w.text);
    bytes_destroy(&w.spare);
    return s;
}

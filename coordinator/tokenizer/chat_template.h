/*
 * chat_template.h - messages to the prompt a chat model was trained on
 *
 * What:   tokenizer_config.json carries a Jinja program. No such program is run: its exact text is looked up in a
 *         table of known templates (by length and hash), each rendered by code written for it. A template that is not in the table is an
 *         error, never a guess.
 *         The program's own special tokens become ids; text between them, which contains what users wrote, is
 *         always encoded as plain text. No message can so contain a special token.
 * Thread: any
 */
#pragma once

#include <stddef.h>

#include "base/status.h"
#include "coordinator/tokenizer/tokenizer.h"

enum chat_template_kind {
    CHAT_TEMPLATE_NONE,    /* the model has none: a base model */
    CHAT_TEMPLATE_UNKNOWN, /* it has one that is not in the table */
    CHAT_TEMPLATE_DECILM_INSTRUCT,
    CHAT_TEMPLATE_LLAMA2,
    CHAT_TEMPLATE_LLAMA3,
    CHAT_TEMPLATE_MISTRAL,       /* instruct v0.2 */
    CHAT_TEMPLATE_MISTRAL_SPACE, /* instruct v0.1: a space after each answer */
};

struct chat_template {
    int kind; /* enum chat_template_kind */
};

struct chat_message {
    const char *role;
    const char *content;
};

/*
 * Reads `chat_template` of DIR/tokenizer_config.json, else DIR/chat_template.jinja. Neither there: NONE. A known
 * template whose bos_token or eos_token tokenizer_config.json names otherwise is UNKNOWN. DATA_LOSS for a file that
 * is no JSON.
 */
MUST_USE status_t chat_template_load(const char *dir, struct chat_template *out);

/*
 * Appends the ids of the prompt, BOS included, with the header of the assistant's turn at its end (Jinja's
 * add_generation_prompt). FAILED_PRECONDITION without a template, or when the tokenizer lacks one of its special
 * tokens; UNIMPLEMENTED with an unknown one; INVALID_ARGUMENT naming the message whose role the template does not
 * know or expects elsewhere, or when there is none.
 */
MUST_USE status_t chat_template_encode(const struct chat_template *chat_template,
                                       const struct tokenizer *tokenizer,
                                       const struct chat_message *messages, size_t n,
                                       struct token_list *out);

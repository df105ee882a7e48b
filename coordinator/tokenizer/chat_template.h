/*
 * chat_template.h - messages to the prompt a chat model was trained on
 *
 * What:   tokenizer_config.json carries a Jinja program. No such program is run: its exact text is looked up in a
 *         table of known templates, each rendered by code written for it. A template that is not in the table is an
 *         error, never a guess.
 * Thread: any
 */
#pragma once

#include <stddef.h>

#include "base/bytes.h"
#include "base/status.h"

enum chat_template_kind {
    CHAT_TEMPLATE_NONE,    /* the model has none: a base model */
    CHAT_TEMPLATE_UNKNOWN, /* it has one that is not in the table */
    CHAT_TEMPLATE_DECILM_INSTRUCT,
};

struct chat_template {
    int kind; /* enum chat_template_kind */
};

struct chat_message {
    const char *role;
    const char *content;
};

/*
 * Reads `chat_template` of DIR/tokenizer_config.json, else DIR/chat_template.jinja. Neither there: NONE. DATA_LOSS for
 * a file that is no JSON.
 */
MUST_USE status_t chat_template_load(const char *dir, struct chat_template *out);

/*
 * Appends the prompt, with the header of the assistant's turn at its end (Jinja's add_generation_prompt) and without
 * BOS. FAILED_PRECONDITION without a template, UNIMPLEMENTED with an unknown one, INVALID_ARGUMENT naming the message
 * whose role the template does not know, or when there is none.
 */
MUST_USE status_t chat_template_render(const struct chat_template *chat_template,
                                       const struct chat_message *messages, size_t n,
                                       struct bytes *out);

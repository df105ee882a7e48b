/*
 * tokenizer_config.h - what tokenizer_config.json says about the tokenizer beside it
 *
 * What:      the class. For LlamaTokenizer, LlamaTokenizerFast and CodeLlamaTokenizer(Fast), transformers does not take
 *            the template of tokenizer.json but makes its own: BOS when add_bos_token (default true), EOS when
 *            add_eos_token (default false). CodeGen25Tokenizer and DeciCoderTokenizer say what GPT-2's vocabulary is
 *            extended by (ranks.h).
 *            And added_tokens_decoder, the added tokens of a directory whose tokenizer is not a tokenizer.json.
 *            Everything else in the file is for other programs, or is read by chat_template.h.
 * Ownership: owns the JSON.
 * Thread:    init
 * Errors:    DATA_LOSS naming the field.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

struct json_t;
struct token_texts;
struct tokenizer;

enum tokenizer_class {
    TOKENIZER_CLASS_NONE, /* no such field, or no such file */
    TOKENIZER_CLASS_LLAMA,
    TOKENIZER_CLASS_GPT2,
    TOKENIZER_CLASS_CODEGEN25,
    TOKENIZER_CLASS_OTHER,
};

struct tokenizer_config {
    struct json_t *root; /* NULL: there is no file */
    int class_kind;      /* enum tokenizer_class */
};

/* The text need not end in NUL and is not used after the call. */
MUST_USE status_t tokenizer_config_parse(const void *json, size_t size,
                                         struct tokenizer_config *out);
void tokenizer_config_destroy(struct tokenizer_config *config); /* accepts a zeroed one */

/* tokenizer_class as it is spelled, else the class that auto_map names; NULL: none. Its code is not looked at. */
const char *tokenizer_config_class_name(const struct tokenizer_config *config);

/* Puts the template of the class into the tokenizer. */
MUST_USE status_t tokenizer_config_apply(const struct tokenizer_config *config,
                                         struct tokenizer *tokenizer);

// ---- added_tokens_decoder: {"32000": {"content": "<pad>", "special": true ...}} ----

size_t tokenizer_config_n_added(const struct tokenizer_config *config);

/* Notes their texts; they are borrowed from the configuration. */
MUST_USE status_t tokenizer_config_note_added(const struct tokenizer_config *config,
                                              struct token_texts *texts);

/* Adds them to a tokenizer that has its texts. */
MUST_USE status_t tokenizer_config_add(const struct tokenizer_config *config,
                                       const struct token_texts *texts,
                                       struct tokenizer *tokenizer);

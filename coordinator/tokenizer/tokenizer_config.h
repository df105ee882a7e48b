/*
 * tokenizer_config.h - what tokenizer_config.json changes about tokenizer.json
 *
 * What:   for the classes LlamaTokenizer, LlamaTokenizerFast and CodeLlamaTokenizer(Fast), transformers does not take
 *         the file's template but makes its own: BOS when add_bos_token (default true), EOS when add_eos_token (default
 *         false). Everything else in the file is for other programs, or is read by chat_template.h.
 * Thread: init
 * Errors: DATA_LOSS naming the field.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

struct tokenizer;

/* The text need not end in NUL. */
MUST_USE status_t tokenizer_config_apply(const void *json, size_t size,
                                         struct tokenizer *tokenizer);

/*
 * model_json.h - vocabulary, merges and added tokens of tokenizer.json
 *
 * What:   fills pieces, decoded, kinds, bpe and the added tokens of a tokenizer whose normalizer, pre-tokenizer and
 *         decoder are known already.
 * Thread: any
 * Errors: DATA_LOSS naming the field; ids must be 0..n-1 without gap or repetition, over model.vocab and added_tokens
 *         together, and a token that is in both must have the same id in both.
 */
#pragma once

#include <jansson.h>

#include "base/status.h"
#include "coordinator/tokenizer/token_texts.h"
#include "coordinator/tokenizer/tokenizer_parts.h"

MUST_USE status_t model_json_read(const json_t *root, struct tokenizer *tokenizer);

/* An entry of added_tokens without its id: {"special": true, "lstrip": false ...}. */
MUST_USE status_t model_json_added_token(const json_t *json, struct added_token *out);

/*
 * ranks.h - tokenizers whose merges have the order of their ids: tiktoken files, and GPT-2's vocab.json as one
 *
 * What:      a word that is a token is that token; else the neighbours merge that together are the token with the
 *            lowest id, leftmost first among equals. The file has no pattern to split text with and no special tokens,
 *            so it must be one of the known ones, told by the number of its ranks:
 *
 *              128000  Llama 3: its pattern, BOS in front, 256 special tokens from id 128000 on
 *              50256   GPT-2: its pattern, <|endoftext|> as 50256, no BOS. With the class CodeGen25Tokenizer or
 *                      DeciCoderTokenizer (DeciCoder-6B) also
 *                        50257..50286  31, 30 .. 2 spaces; 50287..50294  9, 8 .. 2 tabs: ranks like the others
 *                        50295..50312  <fim_prefix>, <fim_middle>, <fim_suffix> .. <reponame>
 *                        50313..51199  <dummy_0>..<dummy_3>, <sep>, <eom>, <mask_881>..<mask_1>
 *
 *            Tokens of tokenizer_config.json's added_tokens_decoder take the place of Llama 3's special ones.
 * Layout:    a tiktoken file has a line per token: its bytes in base64, a space, its id.
 * Thread:    init
 * Errors:    DATA_LOSS naming the line or the token.
 * Source:    github.com/openai/tiktoken; models/llama3/tokenizer.py of github.com/meta-llama/llama-models;
 *            tokenization_codegen25.py of Salesforce/codegen25-7b-multi.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct tokenizer;
struct tokenizer_config;

#define RANKS_CODEGEN25_IDS 51200

/* The file begins like a tiktoken file; a SentencePiece one never does. */
bool ranks_is_tiktoken(const void *data, size_t size);

MUST_USE status_t ranks_parse_tiktoken(const void *data, size_t size,
                                       const struct tokenizer_config *config,
                                       struct tokenizer **tokenizer_out);

/* {"token spelled as byte_map.h says": id}, for the class CodeGen25Tokenizer or DeciCoderTokenizer. */
MUST_USE status_t ranks_parse_vocab_json(const void *json, size_t size,
                                         const struct tokenizer_config *config,
                                         struct tokenizer **tokenizer_out);

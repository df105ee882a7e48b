/*
 * gpt2_files.h - a tokenizer from vocab.json and merges.txt, the two files of GPT-2
 *
 * What:   what transformers makes of the pair for the classes GPT2Tokenizer and GPT2TokenizerFast, or without a class:
 *         byte-level BPE with GPT-2's pattern, no BOS. Special tokens are <|endoftext|> and those that
 *         tokenizer_config.json names (bos_token, eos_token, unk_token, pad_token, additional_special_tokens); its
 *         added_tokens_decoder may add more.
 * Layout: merges.txt has a line "left right" per merge; a first line that begins with "#version" is none.
 * Thread: init
 * Errors: DATA_LOSS naming the field or the line.
 */
#pragma once

#include "base/bytes.h"
#include "base/status.h"

struct tokenizer;
struct tokenizer_config;

MUST_USE status_t gpt2_files_parse(const struct bytes *vocab_json, const struct bytes *merges_txt,
                                   const struct tokenizer_config *config,
                                   struct tokenizer **tokenizer_out);

/*
 * sentencepiece.h - a tokenizer from a SentencePiece tokenizer.model
 *
 * What:      BPE models: spaces become "▁", with one in front where add_dummy_prefix says so; user-defined pieces are
 *            cut out, the longest first; then the neighbours merge that together are the piece with the highest score,
 *            leftmost first among equals; what has no piece becomes bytes or the unknown piece.
 *            As in transformers, control pieces are special tokens, BOS is put in front where tokenizer_config.json
 *            does not say otherwise, and its added_tokens_decoder may add tokens.
 * Thread:    init
 * Errors:    DATA_LOSS naming the piece or the field, for what cannot be served exactly: unigram models, normalizers
 *            with rules, runs of spaces that would have to be shortened.
 * Source:    github.com/google/sentencepiece.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

struct tokenizer;
struct tokenizer_config;

MUST_USE status_t sentencepiece_parse(const void *data, size_t size,
                                      const struct tokenizer_config *config,
                                      struct tokenizer **tokenizer_out);

/*
 * sentencepiece_file.h - what a SentencePiece tokenizer.model says, as plain structs
 *
 * What:      ModelProto { pieces = 1, trainer_spec = 2, normalizer_spec = 3, denormalizer_spec = 5 }, of which only
 *            what the encoding depends on is kept.
 * Ownership: owns the array of pieces; the texts are borrowed from the file's bytes.
 * Thread:    init
 * Errors:    DATA_LOSS naming the piece or the offset.
 * Source:    sentencepiece_model.proto of github.com/google/sentencepiece.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "coordinator/tokenizer/vocab.h"

enum sentencepiece_type {
    SENTENCEPIECE_NORMAL = 1,
    SENTENCEPIECE_UNKNOWN,
    SENTENCEPIECE_CONTROL,
    SENTENCEPIECE_USER_DEFINED,
    SENTENCEPIECE_UNUSED,
    SENTENCEPIECE_BYTE,
};

enum sentencepiece_model { SENTENCEPIECE_UNIGRAM = 1, SENTENCEPIECE_BPE, SENTENCEPIECE_WORD };

struct sentencepiece_piece {
    struct text_view text;
    float score;
    int type; /* enum sentencepiece_type */
};

struct sentencepiece_file {
    struct sentencepiece_piece *pieces;
    size_t n, capacity;
    int model_type; /* enum sentencepiece_model */
    bool byte_fallback, whitespace_as_suffix;
    struct text_view bos_piece; /* size 0: not named */
    bool add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    size_t n_charsmap_bytes; /* rules of normalizer and denormalizer; 0: identity */
};

MUST_USE status_t sentencepiece_file_parse(const void *data, size_t size,
                                           struct sentencepiece_file *out);
void sentencepiece_file_destroy(struct sentencepiece_file *file); /* accepts a zeroed one */

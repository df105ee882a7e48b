/*
 * model_fixture.h - small tokenizer.model files made in memory, SentencePiece and tiktoken
 *
 * Ownership: the caller initialises the bytes and destroys them.
 * Errors:    helpers fail the running test.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "coordinator/tokenizer/sentencepiece_file.h"
#include "coordinator/tokenizer/tokenizer.h"

struct model_piece {
    const char *text;
    float score;
    int type; /* enum sentencepiece_type; 0: the field is left out, which means NORMAL */
};

enum model_flags {
    MODEL_BYTES = 1,        /* byte_fallback, and the 256 pieces for it behind the others */
    MODEL_NO_PREFIX = 2,    /* add_dummy_prefix is false */
    MODEL_STRIP = 4,        /* remove_extra_whitespaces is true, as when the field is absent */
    MODEL_NO_ESCAPE = 8,    /* escape_whitespaces is false */
    MODEL_CHARSMAP = 16,    /* a normalizer with rules */
    MODEL_SUFFIX = 32,      /* treat_whitespace_as_suffix */
    MODEL_DENORMALIZER = 64 /* a denormalizer with rules */
};

/* model_type: enum sentencepiece_model; 0: the field is left out, which means UNIGRAM. */
void model_fixture_sentencepiece(const struct model_piece *pieces, size_t n, int model_type,
                                 int flags, struct bytes *out);

/*
 * A tiktoken file of n_ranks: a token for every byte, for pairs of bytes, and for pairs before an 'a'. Pairs begin with
 * those that have the second byte below, so that as many as GPT-2 has include none of spaces or of tabs.
 */
#define MODEL_SECOND_BYTE 0x3D
void model_fixture_ranks(size_t n_ranks, struct bytes *out);

/* The bytes of a rank of such a file; returns how many. */
size_t model_fixture_rank(size_t rank, uint8_t out[3]);

/* Appends fields of a protobuf message. */
void model_fixture_varint(struct bytes *out, uint32_t field, uint64_t value);
void model_fixture_bytes(struct bytes *out, uint32_t field, const void *data, size_t size);

/*
 * tokenizer_parts.h - what a tokenizer consists of, inside this folder
 *
 * What:      text -> raw added tokens -> normalizer -> normalized added tokens -> pre-tokenizer -> bpe -> template,
 *            and back by the decoder. tokenizer_json.c fills it, tokenizer.c and detokenizer.c use it.
 * Ownership: struct tokenizer owns all of it.
 * Thread:    init, then any.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/tokenizer/added_tokens.h"
#include "coordinator/tokenizer/bpe.h"
#include "coordinator/tokenizer/normalize.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/vocab.h"

#define PRETOKENIZER_MAX_STEPS 8

enum pretokenizer_kind {
    PRETOKENIZER_SPLIT,
    PRETOKENIZER_PREFIX_SPACE,
    PRETOKENIZER_METASPACE, /* " " becomes META_SPACE; alone, since it is not text any more */
};

#define META_SPACE "\xE2\x96\x81" /* U+2581, how SentencePiece writes a space */

/* Where METASPACE puts one in front of text that does not begin with one. */
enum metaspace_prepend { METASPACE_NEVER, METASPACE_FIRST, METASPACE_ALWAYS };

struct pretokenizer_step {
    int kind;    /* enum pretokenizer_kind */
    int pattern; /* enum split_pattern, of SPLIT */
    int prepend; /* enum metaspace_prepend, of METASPACE; FIRST: at the start of the whole text only */
    bool words; /* of METASPACE: cut in front of every META_SPACE */
};

struct pretokenizer {
    struct pretokenizer_step steps[PRETOKENIZER_MAX_STEPS];
    size_t n_steps;
    bool byte_level; /* words are sequences of bytes, not of characters */
};

#define DECODER_MAX_TEXT 16

struct decoder {
    bool byte_level;    /* tokens are spelled as byte_map.h says; all their bytes make one text */
    bool byte_fallback; /* a token <0xNN> is a byte */
    bool strip_space;   /* one space at the start of the text is dropped */
    bool strip_first;   /* every META_SPACE of the first token is dropped */
    char pattern[DECODER_MAX_TEXT]; /* replaced in every token by `content`; "": nothing is */
    char content[DECODER_MAX_TEXT];
};

#define TEMPLATE_MAX_TOKENS 8

/* Ids put in front of the text and behind it. */
struct template_ids {
    int32_t before[TEMPLATE_MAX_TOKENS], after[TEMPLATE_MAX_TOKENS];
    size_t n_before, n_after;
};

enum token_kind {
    TOKEN_SPECIAL = 1,
    TOKEN_BYTE = 2, /* one byte of a character, see decoder.byte_fallback */
};

struct tokenizer {
    struct vocab pieces;  /* the model's vocabulary, found by text */
    struct vocab decoded; /* of every id, the bytes that decoding gives */
    uint8_t *kinds;       /* [decoded.n] bits of enum token_kind */
    struct bpe bpe;
    struct normalizer normalizer;
    struct pretokenizer pretokenizer;
    struct added_tokens raw_added;        /* looked for in the text as it came */
    struct added_tokens normalized_added; /* looked for after the normalizer */
    struct template_ids template_ids;
    struct decoder decoder;
};

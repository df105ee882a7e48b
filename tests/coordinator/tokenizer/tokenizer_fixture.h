/*
 * tokenizer_fixture.h - small tokenizers made in memory, and the six published ones
 *
 * Ownership: results belong to the caller.
 * Errors:    helpers fail the running test, fixture_try aside.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"
#include "coordinator/tokenizer/tokenizer.h"

/* The fields of a tokenizer.json as JSON text; NULL: the default, a byte-level tokenizer of the letters a to d. */
struct fixture_parts {
    const char *version;
    const char *added_tokens;
    const char *normalizer;
    const char *pre_tokenizer;
    const char *post_processor;
    const char *decoder;
    const char *model;
};

/* The file as text; free() it. */
char *fixture_json(const struct fixture_parts *parts);

MUST_USE status_t fixture_try(const struct fixture_parts *parts, struct tokenizer **out);
struct tokenizer *fixture_parse(const struct fixture_parts *parts);

/* A byte-level tokenizer with a token for each of the 256 bytes, id = byte, and an added special token, id 256. */
struct tokenizer *fixture_bytes(void);

/* The same with these added tokens, ids from 256 on. */
struct tokenizer *fixture_bytes_with(const char *added_tokens);

/* The parts that SentencePiece-style files have: "▁" normalizer and decoder. */
extern const struct fixture_parts fixture_sentencepiece;

#define FIXTURE_N_PUBLISHED 6
extern const char *const fixture_published[FIXTURE_N_PUBLISHED];

/* Skips the test when the published data is not on this machine. */
struct tokenizer *fixture_load_published(const char *name);

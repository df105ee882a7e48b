/*
 * validate.h - every rule a request must keep, from one table
 *
 * What:      ranges, counts and lengths of GenerateRequest, and the fields that this version does not have.
 *            A NaN is in no range.
 * Thread:    any; no state.
 * Errors:    INVALID_ARGUMENT with field, value and limit ("sampling.top_p: 1.5 is not in (0, 1]"), NOT_FOUND for
 *            another model's name, UNIMPLEMENTED naming the field.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/wire/inference.h"

#define VALIDATE_MAX_STOP_STRINGS 16
#define VALIDATE_MAX_STOP_BYTES   256
#define VALIDATE_MAX_STOP_TOKENS  256
#define VALIDATE_MAX_LOGPROBS     20
#define VALIDATE_MAX_LOGIT_BIAS   300
#define VALIDATE_MAX_N            128
#define VALIDATE_MAX_BEAM_WIDTH   16 /* what the worker searches with */
#define VALIDATE_MAX_MESSAGES     1024
#define VALIDATE_MAX_REQUEST_ID   128
#define VALIDATE_MAX_CACHE_SALT   127 /* what the worker's block pool remembers */

struct validate_limits {
    const char *model; /* the served name; borrowed */
    uint32_t n_vocab;
    uint32_t context_tokens;    /* prompt + completion */
    uint64_t completion_tokens; /* of all samples of a request that has several */
    size_t prompt_bytes;        /* of text, before it is tokenized */
};

/* All that can be said before the prompt is tokenized. */
MUST_USE status_t validate_request(const struct wire_generate_request *m,
                                   const struct validate_limits *limits);

/* All that can be said after: never empty, never over the context. */
MUST_USE status_t validate_length(size_t n_prompt_tokens, uint32_t max_tokens,
                                  const struct validate_limits *limits);

/* The text of Tokenize. */
MUST_USE status_t validate_text(const char *field, size_t size,
                                const struct validate_limits *limits);

/* WatchStatusRequest and DrainRequest; 0 is their default. */
MUST_USE status_t validate_interval(uint32_t interval_ms);
MUST_USE status_t validate_grace(double grace_seconds);

/* The ids of Detokenize, and of any other list. */
MUST_USE status_t validate_token_ids(const char *field, const struct wire_token_ids *ids,
                                     uint32_t n_vocab);

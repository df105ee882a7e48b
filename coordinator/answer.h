/*
 * answer.h - what a client is sent for its request, as packed messages
 *
 * What:      the two shapes of one answer. Streamed: a prompt event, one event per token with seq 0, 1, 2, ..., and
 *            a last message with the end and the usage. Whole: everything is kept and packed once, at the end.
 * Ownership: owns the session and what it keeps; the request and the tokenizer are borrowed. Messages are
 *            appended to the caller's buffer; none is appended where the shape has nothing to send.
 * Thread:    one owner at a time.
 */
#pragma once

#include "base/arena.h"
#include "base/bytes.h"
#include "base/status.h"
#include "coordinator/session.h"
#include "proto/wire/inference.h"

enum answer_shape { ANSWER_STREAM, ANSWER_WHOLE };

struct answer {
    int shape;                    /* enum answer_shape */
    const char *request_id;       /* borrowed */
    struct wire_token_ids prompt; /* borrowed */
    bool wants_logprobs;
    const char *const *stop; /* borrowed: the request's stop strings */
    struct session session;
    uint32_t n_tokens;
    struct bytes text; /* stream: of one event; whole: of all */

    /* ANSWER_WHOLE only */
    struct wire_token_info *tokens; /* [capacity], n_tokens used */
    size_t capacity;
    struct arena tops;
};

enum answer_token_flags {
    ANSWER_LAST = 1, /* the token that ended the completion (eos or a stop token) */
};

MUST_USE status_t answer_init(struct answer *a, int shape,
                              const struct wire_generate_request *request,
                              const struct wire_token_ids *prompt,
                              const struct tokenizer *tokenizer);
void answer_destroy(struct answer *a); /* accepts a zeroed answer */

/* The prompt event. */
MUST_USE status_t answer_prompt(struct answer *a, struct bytes *message_out);

/* One token. *stop_out as in session_push. */
MUST_USE status_t answer_token(struct answer *a, const struct wire_token_info *token, int flags,
                               struct bytes *message_out, int *stop_out);

/*
 * The end and the usage. `end` says index and reason, and the stop token where one ended it. `stop` is the stop string
 * that was hit or SESSION_NO_STOP; what was held back may still turn out to be one. *reason_out is what the
 * client was told.
 */
MUST_USE status_t answer_finish(struct answer *a, const struct wire_finished *end, int stop,
                                struct bytes *message_out, int *reason_out);

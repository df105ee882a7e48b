/*
 * answer.h - what a client is sent for its request, as packed messages
 *
 * What:      the two shapes of one answer, of n samples. Streamed: a prompt event, events with seq 0, 1, 2, ... for the tokens
 *            of each sample, one for each unless they come together, and an end for each, the last one with the usage. Whole: everything is kept and packed once,
 *            at the last end.
 *            With `echo` the text of a sample begins with the prompt's, which comes with its first token.
 * Ownership: owns the sessions and what it keeps; the request and the tokenizer are borrowed. Messages are
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

/* One of the n samples. */
struct answer_choice {
    struct session session;
    uint32_t n_tokens, n_events;
    struct bytes text;              /* stream: of one event; whole: of all */
    struct wire_finished finished;  /* its reason is NONE until it has ended */
    struct wire_token_info *tokens; /* [capacity]: stream: of one event; whole: of all */
    size_t n_kept, capacity;
};

struct answer {
    int shape;                    /* enum answer_shape */
    const char *request_id;       /* borrowed */
    struct wire_token_ids prompt; /* borrowed */
    bool wants_logprobs;
    const char *const *stop; /* borrowed: the request's stop strings */
    uint32_t n, n_finished;
    struct answer_choice *choices; /* [n] */
    uint32_t n_tokens;             /* of all of them */
    uint32_t cached_tokens;        /* of the prompt: found in the prefix cache */
    struct bytes echo;             /* the prompt's text, where it is asked for */
    struct arena tops;             /* alternatives of all that is kept */

    /* Of the prompt's tokens, where they are asked for. */
    struct wire_token_info *prompt_logprobs; /* [prompt.n] */
    size_t n_prompt_logprobs;                /* there so far */
};

enum answer_token_flags {
    ANSWER_LAST = 1, /* the token that ended the completion (eos or a stop token) */
    ANSWER_MORE =
        2, /* others follow at once, and one event is for all of them; not with stop strings */
};

MUST_USE status_t answer_init(struct answer *a, int shape,
                              const struct wire_generate_request *request,
                              const struct wire_token_ids *prompt,
                              const struct tokenizer *tokenizer);
void answer_destroy(struct answer *a); /* accepts a zeroed answer */

/* Log probabilities of prompt tokens, from place `first` on, in order. INTERNAL when they are not those that come next. */
MUST_USE status_t answer_prompt_logprobs(struct answer *a, const struct wire_token_info *tokens,
                                         size_t n, uint32_t first);

/* What came of them so far is forgotten: they come once more, from the beginning. */
void answer_forget_prompt_logprobs(struct answer *a);

/* Whether all is there that the prompt event says; it comes before the first token. */
bool answer_knows_prompt(const struct answer *a);

/* The prompt event. */
MUST_USE status_t answer_prompt(struct answer *a, struct bytes *message_out);

/* One token of a sample. *stop_out as in session_push. */
MUST_USE status_t answer_token(struct answer *a, uint32_t index,
                               const struct wire_token_info *token, int flags,
                               struct bytes *message_out, int *stop_out);

/*
 * The end of a sample, and with the last one the usage. `end` says index and reason, and the stop token where one ended it.
 * `stop` is the stop string that was hit or SESSION_NO_STOP; what was held back may still turn out to be one. *reason_out is
 * what the client was told.
 */
MUST_USE status_t answer_finish(struct answer *a, const struct wire_finished *end, int stop,
                                struct bytes *message_out, int *reason_out);

static inline bool answer_is_finished(const struct answer *a)
{
    return a->n_finished == a->n;
}

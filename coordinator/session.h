/*
 * session.h - from token ids to the text a client sees, for one completion
 *
 * What:      token -> detokenizer (never half a character) -> stop strings (hold back what may become one) -> text
 *
 *              worker:   "Hel"   "lo"   " wor"   "ld S"      "TOP ..."
 *              client:   "Hel"   "lo"   " wor"   "ld " (S held)  stop "STOP"
 *
 *            The token that ends a completion (eos, stop_token_ids) is part of its tokens but not of its text,
 *            unless include_stop_str_in_output asks for it. Stop strings are not looked for in the text of the
 *            first min_tokens tokens.
 * Ownership: the tokenizer is borrowed and must outlive the session; strings are copied.
 * Thread:    one owner at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "coordinator/tokenizer/stop_matcher.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "proto/wire/inference.h"

#define SESSION_NO_STOP (-1)

struct session {
    struct detokenizer detokenizer;
    struct stop_matcher *stops; /* NULL: none */
    struct bytes piece;         /* scratch: text of one token */
    bool include_stop;
    uint32_t min_tokens;
    uint32_t n_tokens; /* pushed so far */
};

MUST_USE status_t session_init(struct session *s, const struct wire_generate_request *request,
                               const struct tokenizer *tokenizer);
void session_destroy(struct session *s); /* accepts a zeroed session */

/* The text of the prompt, which the completion's is to follow; before the first push. What is only a part of a character
 * at its end comes with the completion. Stop strings are not looked for in it. */
MUST_USE status_t session_echo(struct session *s, const struct wire_token_ids *prompt,
                               struct bytes *text_out);

/*
 * The next token. Appends what can be shown of its text to *text_out. *stop_out is the index of the stop string that
 * is now complete (nothing may be pushed after it) or SESSION_NO_STOP.
 */
MUST_USE status_t session_push(struct session *s, uint32_t token_id, struct bytes *text_out,
                               int *stop_out);

/* The token that ended the completion: counted, and its text shown only when asked for. */
MUST_USE status_t session_push_last(struct session *s, uint32_t token_id, struct bytes *text_out,
                                    int *stop_out);

/* The completion ended without a stop string: appends what was held back. It may still complete one. */
MUST_USE status_t session_finish(struct session *s, struct bytes *text_out, int *stop_out);

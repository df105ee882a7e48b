#include "coordinator/session.h"

#include <string.h>

/* The text of one token is a few bytes; an added token may be long. */
#define MAX_PIECE_BYTES ((size_t)1024 * 1024)

status_t session_init(struct session *s, const struct wire_generate_request *request,
                      const struct tokenizer *tokenizer)
{
    *s = (struct session){.include_stop = request->stopping.include_stop_str_in_output,
                          .min_tokens = request->stopping.min_tokens};
    if (request->stopping.n_stop > 0) {
        TRY(stop_matcher_new(request->stopping.stop, request->stopping.n_stop, &s->stops));
    }
    detokenizer_init(&s->detokenizer, tokenizer,
                     request->output.skip_special_tokens ? TOKENIZER_SKIP_SPECIAL : 0);
    bytes_init(&s->piece, MAX_PIECE_BYTES);
    return status_ok();
}

void session_destroy(struct session *s)
{
    stop_matcher_free(s->stops);
    bytes_destroy(&s->piece);
    s->stops = NULL;
}

/* Text of the scratch buffer through the stop strings, or past them. */
static status_t pass_on(struct session *s, struct bytes *text_out, int *stop_out)
{
    *stop_out = SESSION_NO_STOP;
    if (s->piece.size == 0) {
        return status_ok();
    }
    if (s->stops == NULL || s->n_tokens <= s->min_tokens) {
        return bytes_append(text_out, s->piece.data, s->piece.size);
    }
    int hit = SESSION_NO_STOP;
    TRY(stop_matcher_push(s->stops, (const char *)s->piece.data, s->piece.size, s->include_stop,
                          text_out, &hit));
    *stop_out = hit;
    return status_ok();
}

/* The piece without NUL bytes. There are none in nearly every piece, and few in any. */
static status_t replace_nuls(struct session *s)
{
    if (s->piece.size == 0 || memchr(s->piece.data, 0, s->piece.size) == NULL) {
        return status_ok();
    }
    struct bytes clean;
    bytes_init(&clean, 3 * MAX_PIECE_BYTES);
    status_t status = status_ok();
    for (size_t i = 0; i < s->piece.size && status_is_ok(&status); i++) {
        status = s->piece.data[i] == 0 ? bytes_append_str(&clean, "\xef\xbf\xbd")
                                       : bytes_append(&clean, &s->piece.data[i], 1);
    }
    bytes_destroy(&s->piece);
    s->piece = clean;
    return status;
}

/* The token's text into the scratch buffer. The model may know ids that the tokenizer does not. */
static status_t decode(struct session *s, uint32_t token_id)
{
    bytes_clear(&s->piece);
    if (token_id >= (uint32_t)tokenizer_vocab_size(s->detokenizer.tokenizer)) {
        return status_ok();
    }
    TRY(detokenizer_push(&s->detokenizer, (int32_t)token_id, &s->piece));
    return replace_nuls(s);
}

status_t session_echo(struct session *s, const struct wire_token_ids *prompt,
                      struct bytes *text_out)
{
    for (size_t i = 0; i < prompt->n; i++) {
        TRY(decode(s, prompt->ids[i]));
        TRY(bytes_append(text_out, s->piece.data, s->piece.size));
    }
    return status_ok();
}

status_t session_push(struct session *s, uint32_t token_id, struct bytes *text_out, int *stop_out)
{
    TRY(decode(s, token_id));
    s->n_tokens++;
    return pass_on(s, text_out, stop_out);
}

status_t session_push_last(struct session *s, uint32_t token_id, struct bytes *text_out,
                           int *stop_out)
{
    if (s->include_stop) {
        return session_push(s, token_id, text_out, stop_out);
    }
    s->n_tokens++;
    *stop_out = SESSION_NO_STOP;
    return status_ok();
}

status_t session_finish(struct session *s, struct bytes *text_out, int *stop_out)
{
    bytes_clear(&s->piece);
    TRY(detokenizer_finish(&s->detokenizer, &s->piece));
    TRY(pass_on(s, text_out, stop_out));
    if (s->stops != NULL && *stop_out == SESSION_NO_STOP) {
        return stop_matcher_finish(s->stops, text_out);
    }
    return status_ok();
}

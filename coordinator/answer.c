#include "coordinator/answer.h"

#include <stdlib.h>
#include <string.h>

/* Far above what a context of tokens can say. */
#define MAX_TEXT_BYTES ((size_t)256 * 1024 * 1024)
#define MAX_TOPS_BYTES ((size_t)1024 * 1024 * 1024)

status_t answer_init(struct answer *a, int shape, const struct wire_generate_request *request,
                     const struct wire_token_ids *prompt, const struct tokenizer *tokenizer)
{
    *a = (struct answer){.shape = shape,
                         .request_id = request->request_id,
                         .prompt = *prompt,
                         .wants_logprobs = request->output.has_logprobs,
                         .stop = request->stopping.stop};
    TRY(session_init(&a->session, request, tokenizer));
    bytes_init(&a->text, MAX_TEXT_BYTES);
    arena_init(&a->tops, MAX_TOPS_BYTES);
    return status_ok();
}

void answer_destroy(struct answer *a)
{
    session_destroy(&a->session);
    bytes_destroy(&a->text);
    arena_destroy(&a->tops);
    free(a->tokens);
    a->tokens = NULL;
}

status_t answer_prompt(struct answer *a, struct bytes *message_out)
{
    if (a->shape != ANSWER_STREAM) {
        return status_ok();
    }
    struct wire_generate_response m = {.request_id = a->request_id, .event = WIRE_EVENT_PROMPT};
    m.prompt.token_ids = a->prompt;
    return wire_generate_response_pack(&m, message_out);
}

/* Text so far as a C string: messages borrow it. The NUL is not counted. */
static status_t terminate(struct bytes *text)
{
    uint8_t *tail;
    TRY(bytes_reserve(text, 1, &tail));
    *tail = '\0';
    return status_ok();
}

// ---- whole answers: keep ----

static status_t keep_token(struct answer *a, const struct wire_token_info *token)
{
    if (a->n_tokens == a->capacity) {
        const size_t capacity = a->capacity > 0 ? 2 * a->capacity : 64;
        struct wire_token_info *grown = realloc(a->tokens, capacity * sizeof *grown);
        if (grown == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens",
                                 capacity);
        }
        a->tokens = grown;
        a->capacity = capacity;
    }
    struct wire_token_info kept = *token;
    if (token->n_top > 0) {
        struct wire_top_logprob *top = arena_calloc(&a->tops, token->n_top, sizeof *top);
        if (top == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for logprobs");
        }
        memcpy(top, token->top, token->n_top * sizeof *top);
        kept.top = top;
    }
    a->tokens[a->n_tokens] = kept;
    return status_ok();
}

static status_t pack_whole(struct answer *a, const struct wire_finished *finished,
                           const struct wire_usage *usage, struct bytes *message_out)
{
    TRY(terminate(&a->text));
    const struct wire_choice choice = {.text = (const char *)a->text.data,
                                       .tokens = a->tokens,
                                       .n_tokens = a->n_tokens,
                                       .finished = *finished};
    const struct wire_complete_response m = {.request_id = a->request_id,
                                             .prompt_token_ids = a->prompt,
                                             .choices = &choice,
                                             .n_choices = 1,
                                             .usage = *usage};
    return wire_complete_response_pack(&m, message_out);
}

// ---- streamed answers: one message per token ----

static status_t pack_token(struct answer *a, const struct wire_token_info *token,
                           struct bytes *message_out)
{
    TRY(terminate(&a->text));
    struct wire_generate_response m = {.request_id = a->request_id, .event = WIRE_EVENT_TOKEN};
    m.token.seq = a->n_tokens;
    m.token.text = (const char *)a->text.data;
    m.token.tokens = token;
    m.token.n_tokens = 1;
    return wire_generate_response_pack(&m, message_out);
}

static status_t pack_end(struct answer *a, const struct wire_finished *finished,
                         const struct wire_usage *usage, struct bytes *message_out)
{
    const struct wire_generate_response m = {.request_id = a->request_id,
                                             .event = WIRE_EVENT_FINISHED,
                                             .finished = *finished,
                                             .has_usage = true,
                                             .usage = *usage};
    return wire_generate_response_pack(&m, message_out);
}

// ---- both ----

status_t answer_token(struct answer *a, const struct wire_token_info *token, int flags,
                      struct bytes *message_out, int *stop_out)
{
    struct wire_token_info shown = *token;
    if (!a->wants_logprobs) {
        shown = (struct wire_token_info){.id = token->id};
    }
    const bool stream = a->shape == ANSWER_STREAM;
    if (stream) {
        bytes_clear(&a->text);
    }
    TRY((flags & ANSWER_LAST) != 0 ? session_push_last(&a->session, token->id, &a->text, stop_out)
                                   : session_push(&a->session, token->id, &a->text, stop_out));
    TRY(stream ? pack_token(a, &shown, message_out) : keep_token(a, &shown));
    a->n_tokens++;
    return status_ok();
}

status_t answer_finish(struct answer *a, const struct wire_finished *end, int stop,
                       struct bytes *message_out, int *reason_out)
{
    const bool stream = a->shape == ANSWER_STREAM;
    if (stream) {
        bytes_clear(&a->text);
    }
    if (stop == SESSION_NO_STOP) {
        TRY(session_finish(&a->session, &a->text, &stop));
    }
    struct wire_finished finished = *end;
    if (stop != SESSION_NO_STOP) {
        finished.reason = WIRE_FINISH_STOP;
        finished.has_stop_token_id = false;
        finished.stop_text = a->stop[stop];
    }
    TRY(terminate(&a->text));
    finished.text = (const char *)a->text.data;
    const struct wire_usage usage = {.prompt_tokens = (uint32_t)a->prompt.n,
                                     .completion_tokens = a->n_tokens};
    TRY(stream ? pack_end(a, &finished, &usage, message_out)
               : pack_whole(a, &finished, &usage, message_out));
    *reason_out = finished.reason;
    return status_ok();
}

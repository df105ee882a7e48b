#include "coordinator/answer.h"

#include <stdlib.h>
#include <string.h>

/* Far above what a context of tokens can say. */
#define MAX_TEXT_BYTES ((size_t)256 * 1024 * 1024)
#define MAX_TOPS_BYTES ((size_t)1024 * 1024 * 1024)

// ---- life ----

/* The prompt's text goes through one session; what the others need of it is the state it leaves. */
static status_t echo_prompt(struct answer *a)
{
    struct session *first = &a->choices[0].session;
    TRY(session_echo(first, &a->prompt, &a->echo));
    for (uint32_t i = 1; i < a->n; i++) {
        a->choices[i].session.detokenizer = first->detokenizer;
    }
    return status_ok();
}

/* The first token of a prompt has nothing before it that could make it likely. */
static status_t init_prompt_logprobs(struct answer *a)
{
    a->prompt_logprobs = calloc(a->prompt.n, sizeof *a->prompt_logprobs);
    if (a->prompt_logprobs == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu prompt logprobs",
                             a->prompt.n);
    }
    a->prompt_logprobs[0] = (struct wire_token_info){.id = a->prompt.ids[0]};
    a->n_prompt_logprobs = 1;
    return status_ok();
}

status_t answer_init(struct answer *a, int shape, const struct wire_generate_request *request,
                     const struct wire_token_ids *prompt, const struct tokenizer *tokenizer)
{
    *a = (struct answer){.shape = shape,
                         .request_id = request->request_id,
                         .prompt = *prompt,
                         .wants_logprobs = request->output.has_logprobs,
                         .stop = request->stopping.stop};
    bytes_init(&a->echo, MAX_TEXT_BYTES);
    arena_init(&a->tops, MAX_TOPS_BYTES);
    a->choices = calloc(request->sampling.n, sizeof *a->choices);
    if (a->choices == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %u samples",
                             request->sampling.n);
    }
    for (uint32_t i = 0; i < request->sampling.n; i++) {
        a->n++;
        bytes_init(&a->choices[i].text, MAX_TEXT_BYTES);
        TRY(session_init(&a->choices[i].session, request, tokenizer));
    }
    if (request->output.echo) {
        TRY(echo_prompt(a));
    }
    return request->output.has_prompt_logprobs ? init_prompt_logprobs(a) : status_ok();
}

void answer_destroy(struct answer *a)
{
    for (uint32_t i = 0; i < a->n; i++) {
        session_destroy(&a->choices[i].session);
        bytes_destroy(&a->choices[i].text);
        free(a->choices[i].tokens);
    }
    free(a->choices);
    free(a->prompt_logprobs);
    bytes_destroy(&a->echo);
    arena_destroy(&a->tops);
    *a = (struct answer){0};
}

// ---- what is kept ----

static status_t keep_tops(struct answer *a, const struct wire_token_info *token,
                          struct wire_token_info *kept_out)
{
    *kept_out = *token;
    if (token->n_top == 0) {
        return status_ok();
    }
    struct wire_top_logprob *top = arena_calloc(&a->tops, token->n_top, sizeof *top);
    if (top == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for logprobs");
    }
    memcpy(top, token->top, token->n_top * sizeof *top);
    kept_out->top = top;
    return status_ok();
}

static status_t keep_token(struct answer *a, struct answer_choice *choice,
                           const struct wire_token_info *token)
{
    if (choice->n_kept == choice->capacity) {
        const size_t capacity = choice->capacity > 0 ? 2 * choice->capacity : 64;
        struct wire_token_info *grown = realloc(choice->tokens, capacity * sizeof *grown);
        if (grown == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens",
                                 capacity);
        }
        choice->tokens = grown;
        choice->capacity = capacity;
    }
    TRY(keep_tops(a, token, &choice->tokens[choice->n_kept]));
    choice->n_kept++;
    return status_ok();
}

/* Text so far as a C string: messages borrow it. The NUL is not counted. */
static status_t terminate(struct bytes *text)
{
    uint8_t *tail;
    TRY(bytes_reserve(text, 1, &tail));
    *tail = '\0';
    return status_ok();
}

// ---- the prompt ----

status_t answer_prompt_logprobs(struct answer *a, const struct wire_token_info *tokens, size_t n,
                                uint32_t first)
{
    if (a->prompt_logprobs == NULL || first != a->n_prompt_logprobs ||
        n > a->prompt.n - a->n_prompt_logprobs) {
        return status_errorf(
            STATUS_INTERNAL, "%zu prompt logprobs came from place %u on, place %zu of %zu was due",
            n, first, a->n_prompt_logprobs, a->prompt_logprobs != NULL ? a->prompt.n : 0);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t at = a->n_prompt_logprobs;
        if (tokens[i].id != a->prompt.ids[at]) {
            return status_errorf(STATUS_INTERNAL, "prompt logprob %zu is of token %u, not %u", at,
                                 tokens[i].id, a->prompt.ids[at]);
        }
        TRY(keep_tops(a, &tokens[i], &a->prompt_logprobs[at]));
        a->n_prompt_logprobs++;
    }
    return status_ok();
}

void answer_forget_prompt_logprobs(struct answer *a)
{
    a->n_prompt_logprobs = a->prompt_logprobs != NULL ? 1 : 0;
}

bool answer_knows_prompt(const struct answer *a)
{
    return a->prompt_logprobs == NULL || a->n_prompt_logprobs == a->prompt.n;
}

status_t answer_prompt(struct answer *a, struct bytes *message_out)
{
    if (a->shape != ANSWER_STREAM) {
        return status_ok();
    }
    struct wire_generate_response m = {.request_id = a->request_id, .event = WIRE_EVENT_PROMPT};
    m.prompt.token_ids = a->prompt;
    m.prompt.cached_tokens = a->cached_tokens;
    m.prompt.logprobs = a->prompt_logprobs;
    m.prompt.n_logprobs = a->n_prompt_logprobs;
    return wire_generate_response_pack(&m, message_out);
}

// ---- whole answers ----

static struct wire_usage usage_of(const struct answer *a)
{
    return (struct wire_usage){.prompt_tokens = (uint32_t)a->prompt.n,
                               .completion_tokens = a->n_tokens,
                               .cached_tokens = a->cached_tokens};
}

static status_t pack_whole(struct answer *a, struct bytes *message_out)
{
    struct wire_choice *choices = arena_calloc(&a->tops, a->n, sizeof *choices);
    if (choices == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %u samples", a->n);
    }
    for (uint32_t i = 0; i < a->n; i++) {
        struct answer_choice *choice = &a->choices[i];
        TRY(terminate(&choice->text));
        choices[i] = (struct wire_choice){.text = (const char *)choice->text.data,
                                          .tokens = choice->tokens,
                                          .n_tokens = choice->n_tokens,
                                          .finished = choice->finished};
    }
    const struct wire_complete_response m = {.request_id = a->request_id,
                                             .prompt_token_ids = a->prompt,
                                             .choices = choices,
                                             .n_choices = a->n,
                                             .usage = usage_of(a),
                                             .prompt_logprobs = a->prompt_logprobs,
                                             .n_prompt_logprobs = a->n_prompt_logprobs};
    return wire_complete_response_pack(&m, message_out);
}

// ---- streamed answers: one message per token, or for those that come together ----

static status_t pack_tokens(struct answer *a, uint32_t index, const struct wire_token_info *tokens,
                            size_t n_tokens, struct bytes *message_out)
{
    struct answer_choice *choice = &a->choices[index];
    TRY(terminate(&choice->text));
    struct wire_generate_response m = {.request_id = a->request_id, .event = WIRE_EVENT_TOKEN};
    m.token.index = index;
    m.token.seq = choice->n_events++;
    m.token.text = (const char *)choice->text.data;
    m.token.tokens = tokens;
    m.token.n_tokens = n_tokens;
    return wire_generate_response_pack(&m, message_out);
}

/* The token's event, with those that were kept for it. */
static status_t stream_token(struct answer *a, uint32_t index, const struct wire_token_info *token,
                             int flags, struct bytes *message_out)
{
    struct answer_choice *choice = &a->choices[index];
    if (choice->n_kept == 0 && (flags & ANSWER_MORE) == 0) {
        return pack_tokens(a, index, token, 1, message_out);
    }
    TRY(keep_token(a, choice, token));
    if ((flags & ANSWER_MORE) == 0) {
        TRY(pack_tokens(a, index, choice->tokens, choice->n_kept, message_out));
        choice->n_kept = 0;
    }
    return status_ok();
}

static status_t pack_end(struct answer *a, uint32_t index, struct bytes *message_out)
{
    struct answer_choice *choice = &a->choices[index];
    TRY(terminate(&choice->text));
    struct wire_generate_response m = {.request_id = a->request_id,
                                       .event = WIRE_EVENT_FINISHED,
                                       .finished = choice->finished,
                                       .has_usage = answer_is_finished(a),
                                       .usage = usage_of(a)};
    m.finished.text = (const char *)choice->text.data;
    return wire_generate_response_pack(&m, message_out);
}

// ---- both ----

/* What the next event appends to: nothing, or the prompt's text, before the first token; in a whole answer what there is. */
static status_t begin_text(const struct answer *a, struct answer_choice *choice)
{
    if (a->shape == ANSWER_STREAM && choice->n_kept == 0) {
        bytes_clear(&choice->text);
    }
    return choice->n_tokens == 0 && a->echo.size > 0
               ? bytes_append(&choice->text, a->echo.data, a->echo.size)
               : status_ok();
}

status_t answer_token(struct answer *a, uint32_t index, const struct wire_token_info *token,
                      int flags, struct bytes *message_out, int *stop_out)
{
    struct answer_choice *choice = &a->choices[index];
    struct wire_token_info shown = *token;
    if (!a->wants_logprobs) {
        shown = (struct wire_token_info){.id = token->id};
    }
    TRY(begin_text(a, choice));
    TRY((flags & ANSWER_LAST) != 0
            ? session_push_last(&choice->session, token->id, &choice->text, stop_out)
            : session_push(&choice->session, token->id, &choice->text, stop_out));
    TRY(a->shape == ANSWER_STREAM ? stream_token(a, index, &shown, flags, message_out)
                                  : keep_token(a, choice, &shown));
    choice->n_tokens++;
    a->n_tokens++;
    return status_ok();
}

status_t answer_finish(struct answer *a, const struct wire_finished *end, int stop,
                       struct bytes *message_out, int *reason_out)
{
    struct answer_choice *choice = &a->choices[end->index];
    TRY(begin_text(a, choice));
    if (stop == SESSION_NO_STOP) {
        TRY(session_finish(&choice->session, &choice->text, &stop));
    }
    choice->finished = *end;
    if (stop != SESSION_NO_STOP) {
        choice->finished.reason = WIRE_FINISH_STOP;
        choice->finished.has_stop_token_id = false;
        choice->finished.stop_text = a->stop[stop];
    }
    a->n_finished++;
    if (a->shape == ANSWER_STREAM) {
        TRY(pack_end(a, end->index, message_out));
    } else if (answer_is_finished(a)) {
        TRY(pack_whole(a, message_out));
    }
    *reason_out = choice->finished.reason;
    return status_ok();
}

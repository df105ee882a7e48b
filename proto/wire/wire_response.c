#include "proto/wire/wire_internal.h"

const char *wire_finish_reason_name(int reason)
{
    static const char *const names[] = {
        [WIRE_FINISH_NONE] = "none",         [WIRE_FINISH_STOP] = "stop",
        [WIRE_FINISH_LENGTH] = "length",     [WIRE_FINISH_CANCELLED] = "cancelled",
        [WIRE_FINISH_DEADLINE] = "deadline", [WIRE_FINISH_ERROR] = "error",
    };
    const bool known = reason >= 0 && (size_t)reason < sizeof names / sizeof names[0];
    return known ? names[reason] : "unknown";
}

_Static_assert(WIRE_FINISH_NONE == (int)KVASIR__V1__FINISHED__REASON__NONE &&
                   WIRE_FINISH_STOP == (int)KVASIR__V1__FINISHED__REASON__STOP &&
                   WIRE_FINISH_LENGTH == (int)KVASIR__V1__FINISHED__REASON__LENGTH &&
                   WIRE_FINISH_CANCELLED == (int)KVASIR__V1__FINISHED__REASON__CANCELLED &&
                   WIRE_FINISH_DEADLINE == (int)KVASIR__V1__FINISHED__REASON__DEADLINE &&
                   WIRE_FINISH_ERROR == (int)KVASIR__V1__FINISHED__REASON__ERROR,
               "reasons are copied as integers");

// ---- token infos, also of the link ----

static Kvasir__V1__TopLogprob **pack_top(struct wire_packer *p, const struct wire_token_info *from)
{
    Kvasir__V1__TopLogprob **top =
        wire_pack_messages(p, &kvasir__v1__top_logprob__descriptor, from->n_top);
    for (size_t i = 0; top != NULL && i < from->n_top; i++) {
        top[i]->id = from->top[i].id;
        top[i]->logprob = from->top[i].logprob;
    }
    return top;
}

Kvasir__V1__TokenInfo **wire_pack_token_infos(struct wire_packer *p,
                                              const struct wire_token_info *from, size_t n)
{
    Kvasir__V1__TokenInfo **to = wire_pack_messages(p, &kvasir__v1__token_info__descriptor, n);
    for (size_t i = 0; to != NULL && i < n; i++) {
        to[i]->id = from[i].id;
        if (from[i].has_logprob) {
            to[i]->_logprob_case = KVASIR__V1__TOKEN_INFO___LOGPROB_LOGPROB;
            to[i]->logprob = from[i].logprob;
        }
        to[i]->rank = from[i].rank;
        if (from[i].n_top > 0) {
            to[i]->n_top = from[i].n_top;
            to[i]->top = pack_top(p, &from[i]);
        }
    }
    return to;
}

static status_t unpack_top(struct arena *arena, const Kvasir__V1__TokenInfo *from,
                           struct wire_token_info *to)
{
    void *array;
    TRY(wire_unpack_array(arena, from->n_top, sizeof *to->top, &array));
    struct wire_top_logprob *top = array;
    for (size_t i = 0; i < from->n_top; i++) {
        top[i].id = from->top[i]->id;
        top[i].logprob = from->top[i]->logprob;
    }
    to->top = top;
    to->n_top = from->n_top;
    return status_ok();
}

status_t wire_unpack_token_infos(struct arena *arena, Kvasir__V1__TokenInfo *const *from, size_t n,
                                 const struct wire_token_info **out)
{
    void *array;
    TRY(wire_unpack_array(arena, n, sizeof **out, &array));
    struct wire_token_info *to = array;
    for (size_t i = 0; i < n; i++) {
        to[i].id = from[i]->id;
        to[i].has_logprob = from[i]->_logprob_case != 0;
        to[i].logprob = to[i].has_logprob ? from[i]->logprob : 0.0f;
        to[i].rank = from[i]->rank;
        if (from[i]->n_top > 0) {
            TRY(unpack_top(arena, from[i], &to[i]));
        }
    }
    *out = to;
    return status_ok();
}

// ---- parts of both responses ----

static void pack_usage(const struct wire_usage *from, Kvasir__V1__Usage *to)
{
    kvasir__v1__usage__init(to);
    to->prompt_tokens = from->prompt_tokens;
    to->completion_tokens = from->completion_tokens;
    to->cached_tokens = from->cached_tokens;
}

static struct wire_usage unpack_usage(const Kvasir__V1__Usage *from)
{
    if (from == NULL) {
        return (struct wire_usage){0};
    }
    return (struct wire_usage){
        .prompt_tokens = from->prompt_tokens,
        .completion_tokens = from->completion_tokens,
        .cached_tokens = from->cached_tokens,
    };
}

static void pack_finished(const struct wire_finished *from, Kvasir__V1__Finished *to)
{
    kvasir__v1__finished__init(to);
    to->index = from->index;
    to->reason = (Kvasir__V1__Finished__Reason)from->reason;
    if (from->stop_text != NULL) {
        to->stopped_by_case = KVASIR__V1__FINISHED__STOPPED_BY_STOP_TEXT;
        to->stop_text = wire_pack_text(from->stop_text);
    } else if (from->has_stop_token_id) {
        to->stopped_by_case = KVASIR__V1__FINISHED__STOPPED_BY_STOP_TOKEN_ID;
        to->stop_token_id = from->stop_token_id;
    }
    to->text = wire_pack_text(from->text);
    if (from->has_cumulative_logprob) {
        to->_cumulative_logprob_case = KVASIR__V1__FINISHED___CUMULATIVE_LOGPROB_CUMULATIVE_LOGPROB;
        to->cumulative_logprob = from->cumulative_logprob;
    }
}

static struct wire_finished unpack_finished(const Kvasir__V1__Finished *from)
{
    struct wire_finished to = {.text = ""};
    if (from == NULL) {
        return to;
    }
    to.index = from->index;
    to.reason = (int)from->reason;
    if (from->stopped_by_case == KVASIR__V1__FINISHED__STOPPED_BY_STOP_TOKEN_ID) {
        to.has_stop_token_id = true;
        to.stop_token_id = from->stop_token_id;
    } else if (from->stopped_by_case == KVASIR__V1__FINISHED__STOPPED_BY_STOP_TEXT) {
        to.stop_text = from->stop_text;
    }
    to.text = from->text;
    if (from->_cumulative_logprob_case != 0) {
        to.has_cumulative_logprob = true;
        to.cumulative_logprob = from->cumulative_logprob;
    }
    return to;
}

// ---- GenerateResponse ----

/* The three events; one of them is used. */
union events {
    Kvasir__V1__PromptInfo prompt;
    Kvasir__V1__TokenOutput token;
    Kvasir__V1__Finished finished;
};

static void pack_prompt_info(struct wire_packer *p, const struct wire_generate_response *from,
                             Kvasir__V1__PromptInfo *to)
{
    kvasir__v1__prompt_info__init(to);
    to->n_token_ids = from->prompt.token_ids.n;
    to->token_ids = wire_pack_ids(from->prompt.token_ids.ids);
    to->cached_tokens = from->prompt.cached_tokens;
    to->n_logprobs = from->prompt.n_logprobs;
    to->logprobs = wire_pack_token_infos(p, from->prompt.logprobs, from->prompt.n_logprobs);
}

static void pack_token_output(struct wire_packer *p, const struct wire_generate_response *from,
                              Kvasir__V1__TokenOutput *to)
{
    kvasir__v1__token_output__init(to);
    to->index = from->token.index;
    to->seq = from->token.seq;
    to->text = wire_pack_text(from->token.text);
    to->n_tokens = from->token.n_tokens;
    to->tokens = wire_pack_token_infos(p, from->token.tokens, from->token.n_tokens);
}

static void pack_event(struct wire_packer *p, const struct wire_generate_response *from,
                       union events *events, Kvasir__V1__GenerateResponse *to)
{
    switch (from->event) {
    case WIRE_EVENT_PROMPT:
        pack_prompt_info(p, from, &events->prompt);
        to->event_case = KVASIR__V1__GENERATE_RESPONSE__EVENT_PROMPT;
        to->prompt = &events->prompt;
        break;
    case WIRE_EVENT_TOKEN:
        pack_token_output(p, from, &events->token);
        to->event_case = KVASIR__V1__GENERATE_RESPONSE__EVENT_TOKEN;
        to->token = &events->token;
        break;
    case WIRE_EVENT_FINISHED:
        pack_finished(&from->finished, &events->finished);
        to->event_case = KVASIR__V1__GENERATE_RESPONSE__EVENT_FINISHED;
        to->finished = &events->finished;
        break;
    default:
        break;
    }
}

status_t wire_generate_response_pack(const struct wire_generate_response *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);

    Kvasir__V1__GenerateResponse response = KVASIR__V1__GENERATE_RESPONSE__INIT;
    union events events;
    Kvasir__V1__Usage usage;
    response.request_id = wire_pack_text(m->request_id);
    pack_event(&p, m, &events, &response);
    if (m->has_usage) {
        pack_usage(&m->usage, &usage);
        response.usage = &usage;
    }
    return wire_pack_finish(&p, &response.base, out);
}

static status_t unpack_event(struct arena *arena, const Kvasir__V1__GenerateResponse *from,
                             struct wire_generate_response *to)
{
    switch (from->event_case) {
    case KVASIR__V1__GENERATE_RESPONSE__EVENT_PROMPT:
        to->event = WIRE_EVENT_PROMPT;
        to->prompt.token_ids =
            wire_unpack_token_ids(from->prompt->token_ids, from->prompt->n_token_ids);
        to->prompt.cached_tokens = from->prompt->cached_tokens;
        to->prompt.n_logprobs = from->prompt->n_logprobs;
        return wire_unpack_token_infos(arena, from->prompt->logprobs, from->prompt->n_logprobs,
                                       &to->prompt.logprobs);
    case KVASIR__V1__GENERATE_RESPONSE__EVENT_TOKEN:
        to->event = WIRE_EVENT_TOKEN;
        to->token.index = from->token->index;
        to->token.seq = from->token->seq;
        to->token.text = from->token->text;
        to->token.n_tokens = from->token->n_tokens;
        return wire_unpack_token_infos(arena, from->token->tokens, from->token->n_tokens,
                                       &to->token.tokens);
    case KVASIR__V1__GENERATE_RESPONSE__EVENT_FINISHED:
        to->event = WIRE_EVENT_FINISHED;
        to->finished = unpack_finished(from->finished);
        return status_ok();
    default:
        return status_ok();
    }
}

status_t wire_generate_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                       struct wire_generate_response *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION_LINK};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__generate_response__descriptor, &message));
    const Kvasir__V1__GenerateResponse *from = (const Kvasir__V1__GenerateResponse *)message;

    struct wire_generate_response m = {
        .request_id = from->request_id,
        .token = {.text = ""},
        .finished = {.text = ""},
        .has_usage = from->usage != NULL,
        .usage = unpack_usage(from->usage),
    };
    TRY(unpack_event(arena, from, &m));
    *out = m;
    return status_ok();
}

// ---- CompleteResponse ----

static Kvasir__V1__Choice **pack_choices(struct wire_packer *p, const struct wire_choice *from,
                                         size_t n)
{
    Kvasir__V1__Choice **to = wire_pack_messages(p, &kvasir__v1__choice__descriptor, n);
    Kvasir__V1__Finished *finished = wire_pack_alloc(p, n, sizeof *finished);
    if (to == NULL || finished == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        pack_finished(&from[i].finished, &finished[i]);
        finished[i].text = wire_pack_text(NULL);
        to[i]->text = wire_pack_text(from[i].text);
        to[i]->n_tokens = from[i].n_tokens;
        to[i]->tokens = wire_pack_token_infos(p, from[i].tokens, from[i].n_tokens);
        to[i]->finished = &finished[i];
    }
    return to;
}

status_t wire_complete_response_pack(const struct wire_complete_response *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);

    Kvasir__V1__CompleteResponse response = KVASIR__V1__COMPLETE_RESPONSE__INIT;
    Kvasir__V1__Usage usage;
    pack_usage(&m->usage, &usage);
    response.request_id = wire_pack_text(m->request_id);
    response.n_prompt_token_ids = m->prompt_token_ids.n;
    response.prompt_token_ids = wire_pack_ids(m->prompt_token_ids.ids);
    response.n_choices = m->n_choices;
    response.choices = pack_choices(&p, m->choices, m->n_choices);
    response.usage = &usage;
    response.n_prompt_logprobs = m->n_prompt_logprobs;
    response.prompt_logprobs = wire_pack_token_infos(&p, m->prompt_logprobs, m->n_prompt_logprobs);
    return wire_pack_finish(&p, &response.base, out);
}

static status_t unpack_choices(struct arena *arena, const Kvasir__V1__CompleteResponse *from,
                               struct wire_complete_response *to)
{
    void *array;
    TRY(wire_unpack_array(arena, from->n_choices, sizeof *to->choices, &array));
    struct wire_choice *choices = array;
    for (size_t i = 0; i < from->n_choices; i++) {
        const Kvasir__V1__Choice *choice = from->choices[i];
        choices[i].text = choice->text;
        choices[i].finished = unpack_finished(choice->finished);
        choices[i].n_tokens = choice->n_tokens;
        TRY(wire_unpack_token_infos(arena, choice->tokens, choice->n_tokens, &choices[i].tokens));
    }
    to->choices = choices;
    to->n_choices = from->n_choices;
    return status_ok();
}

status_t wire_complete_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                       struct wire_complete_response *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION_LINK};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__complete_response__descriptor, &message));
    const Kvasir__V1__CompleteResponse *from = (const Kvasir__V1__CompleteResponse *)message;

    struct wire_complete_response m = {
        .request_id = from->request_id,
        .prompt_token_ids = wire_unpack_token_ids(from->prompt_token_ids, from->n_prompt_token_ids),
        .usage = unpack_usage(from->usage),
        .n_prompt_logprobs = from->n_prompt_logprobs,
    };
    TRY(unpack_choices(arena, from, &m));
    TRY(wire_unpack_token_infos(arena, from->prompt_logprobs, from->n_prompt_logprobs,
                                &m.prompt_logprobs));
    *out = m;
    return status_ok();
}

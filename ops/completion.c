#include "ops/completion.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define MAX_TEXT_BYTES ((size_t)1 << 30)

// ---- life ----

status_t completion_init(struct completion *c, const struct wire_generate_request *request,
                         enum completion_print print)
{
    *c = (struct completion){.print = print,
                             .n = request->sampling.n,
                             .choices = calloc(request->sampling.n, sizeof *c->choices)};
    if (c->choices == NULL) {
        c->n = 0;
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %u samples",
                             request->sampling.n);
    }
    for (uint32_t i = 0; i < c->n; i++) {
        struct completion_choice *choice = &c->choices[i];
        bytes_init(&choice->text, MAX_TEXT_BYTES);
        choice->ids = json_array();
        if (request->output.has_logprobs) {
            choice->logprobs = json_array();
            choice->tops = request->output.logprobs > 0 ? json_array() : NULL;
        }
    }
    return status_ok();
}

void completion_destroy(struct completion *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        bytes_destroy(&c->choices[i].text);
        json_decref(c->choices[i].ids);
        json_decref(c->choices[i].logprobs);
        json_decref(c->choices[i].tops);
    }
    free(c->choices);
    json_decref(c->prompt_logprobs);
    *c = (struct completion){0};
}

// ---- taking in ----

static json_t *json_logprob(float logprob)
{
    return isfinite(logprob) ? json_real((double)logprob) : json_null();
}

static json_t *json_tops(const struct wire_token_info *token)
{
    json_t *tops = json_array();
    for (size_t i = 0; i < token->n_top; i++) {
        json_array_append_new(tops,
                              json_pack("{sisosi}", "id", (int)token->top[i].id, "logprob",
                                        json_logprob(token->top[i].logprob), "rank", (int)i + 1));
    }
    return tops;
}

static void take_prompt(struct completion *c, const struct wire_generate_response *response)
{
    if (response->prompt.n_logprobs == 0) {
        return;
    }
    c->prompt_logprobs = json_array();
    for (size_t i = 0; i < response->prompt.n_logprobs; i++) {
        const struct wire_token_info *token = &response->prompt.logprobs[i];
        json_array_append_new(
            c->prompt_logprobs,
            json_pack("{sisosiso}", "id", (int)token->id, "logprob",
                      token->has_logprob ? json_logprob(token->logprob) : json_null(), "rank",
                      (int)token->rank, "top", json_tops(token)));
    }
}

static status_t add_text(const struct completion *c, struct completion_choice *choice,
                         const char *text)
{
    if (text == NULL) {
        return status_ok();
    }
    if (c->print == COMPLETION_PRINT_TEXT && c->n == 1) {
        fputs(text, stdout);
        fflush(stdout);
    }
    return bytes_append_str(&choice->text, text);
}

static status_t take_token(struct completion *c, const struct wire_generate_response *response)
{
    if (response->token.index >= c->n) {
        return status_errorf(STATUS_DATA_LOSS, "a token of sample %u came, of %u",
                             response->token.index, c->n);
    }
    struct completion_choice *choice = &c->choices[response->token.index];
    if (response->token.seq != choice->next_seq) {
        return status_errorf(STATUS_DATA_LOSS, "token event %u came where %u was due",
                             response->token.seq, choice->next_seq);
    }
    choice->next_seq++;
    c->last_ns = clock_now_ns(clock_system());
    c->first_ns = c->first_ns == 0 ? c->last_ns : c->first_ns;
    for (size_t i = 0; i < response->token.n_tokens; i++, c->n_tokens++) {
        const struct wire_token_info *token = &response->token.tokens[i];
        json_array_append_new(choice->ids, json_integer(token->id));
        if (token->has_logprob && choice->logprobs != NULL) {
            json_array_append_new(choice->logprobs, json_logprob(token->logprob));
        }
        if (choice->tops != NULL) {
            json_array_append_new(choice->tops, json_tops(token));
        }
    }
    return add_text(c, choice, response->token.text);
}

static status_t take_end(struct completion *c, const struct wire_generate_response *response)
{
    if (response->finished.index >= c->n) {
        return status_errorf(STATUS_DATA_LOSS, "the end of sample %u came, of %u",
                             response->finished.index, c->n);
    }
    struct completion_choice *choice = &c->choices[response->finished.index];
    choice->reason = response->finished.reason;
    choice->has_cumulative_logprob = response->finished.has_cumulative_logprob;
    choice->cumulative_logprob = response->finished.cumulative_logprob;
    return add_text(c, choice, response->finished.text);
}

status_t completion_take(void *user, const struct wire_generate_response *response)
{
    struct completion *c = user;
    if (response->has_usage) {
        c->usage = response->usage;
    }
    switch (response->event) {
    case WIRE_EVENT_PROMPT:
        take_prompt(c, response);
        return status_ok();
    case WIRE_EVENT_TOKEN:
        return take_token(c, response);
    case WIRE_EVENT_FINISHED:
        return take_end(c, response);
    default:
        return status_ok();
    }
}

// ---- printing ----

void completion_end_text(const struct completion *c)
{
    if (c->print != COMPLETION_PRINT_TEXT) {
        return;
    }
    for (uint32_t i = 0; i < c->n; i++) {
        const struct bytes *text = &c->choices[i].text;
        if (c->n > 1 && text->size > 0) {
            fprintf(stdout, "--- %u\n", i);
            fwrite(text->data, 1, text->size, stdout);
        }
        if (text->size > 0) {
            fputc('\n', stdout);
        }
    }
    fflush(stdout); // before what goes to stderr
}

static json_t *json_choice(const struct completion_choice *choice)
{
    const struct bytes *text = &choice->text;
    json_t *object = json_pack("{ss%sOss}", "text", text->size > 0 ? (const char *)text->data : "",
                               text->size, "token_ids", choice->ids, "finish_reason",
                               wire_finish_reason_name(choice->reason));
    if (choice->has_cumulative_logprob) {
        json_object_set_new(object, "cumulative_logprob", json_real(choice->cumulative_logprob));
    }
    if (choice->logprobs != NULL) {
        json_object_set(object, "logprobs", choice->logprobs);
    }
    if (choice->tops != NULL) {
        json_object_set(object, "top_logprobs", choice->tops);
    }
    return object;
}

static json_t *json_completion(const struct completion *c)
{
    if (c->n == 1) {
        return json_choice(&c->choices[0]);
    }
    json_t *choices = json_array();
    for (uint32_t i = 0; i < c->n; i++) {
        json_t *choice = json_choice(&c->choices[i]);
        json_object_set_new(choice, "index", json_integer(i));
        json_array_append_new(choices, choice);
    }
    return json_pack("{so}", "choices", choices);
}

void completion_print_json(const struct completion *c, FILE *out)
{
    json_t *object = json_completion(c);
    json_object_set_new(object, "usage",
                        json_pack("{sisisi}", "prompt_tokens", (int)c->usage.prompt_tokens,
                                  "completion_tokens", (int)c->usage.completion_tokens,
                                  "cached_tokens", (int)c->usage.cached_tokens));
    if (c->prompt_logprobs != NULL) {
        json_object_set(object, "prompt_logprobs", c->prompt_logprobs);
    }
    json_dumpf(object, out, JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(object);
}

void completion_print_stats(const struct completion *c, uint64_t begin_ns, FILE *out)
{
    const double ttft_s = (double)(c->first_ns - begin_ns) / 1e9;
    const double decode_s = (double)(c->last_ns - c->first_ns) / 1e9;
    fprintf(out, "%u prompt tokens, %u generated, first after %.1f ms", c->usage.prompt_tokens,
            c->usage.completion_tokens, ttft_s * 1e3);
    if (c->n_tokens > 1 && decode_s > 0) {
        fprintf(out, ", then %.1f tokens/s", (c->n_tokens - 1) / decode_s);
    }
    fprintf(out, " (%s)\n", wire_finish_reason_name(c->choices[0].reason));
}

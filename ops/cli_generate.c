/*
 * cli_generate.c - kvasir generate: one completion, streamed to stdout
 */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "coordinator/tokenizer/fim.h"
#include "ops/cli.h"
#include "ops/client.h"
#include "ops/generate_options.h"

struct generate_options {
    struct generate_common common;
    const char *file, *suffix, *tokenizer;
    bool json, stats;
};

#define AT(field) offsetof(struct generate_options, field)

static const struct config_row rows[] = {
    GENERATE_COMMON_ROWS(struct generate_options),
    {.name = "file",
     .type = CONFIG_STRING,
     .offset = AT(file),
     .help = "read the prompt from a file, - is stdin"},
    {.name = "suffix",
     .type = CONFIG_STRING,
     .offset = AT(suffix),
     .help = "fill in between PROMPT and this text (DeciCoder)"},
    {.name = "tokenizer",
     .type = CONFIG_STRING,
     .offset = AT(tokenizer),
     .help = "with --suffix and no --model: directory with the tokenizer"},
    {.name = "stats",
     .type = CONFIG_BOOL,
     .offset = AT(stats),
     .default_text = "false",
     .help = "print tokens, time and rate to stderr at the end"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "print one object {text, token_ids, finish_reason, usage} at the end"},
};

/* What is to be continued: the text, or with --suffix the ids that were made of it. */
struct prompt {
    struct bytes text;
    struct token_list ids;
};

/* What came back so far. */
struct completion {
    bool stream; /* print as it comes */
    struct bytes text;
    json_t *ids, *logprobs;
    int reason;
    struct wire_usage usage;
    const struct clock *clock;
    uint64_t first_ns, last_ns;
    uint32_t n_tokens;
    uint32_t next_seq;
};

static status_t add_text(struct completion *c, const char *text)
{
    if (text == NULL) {
        return status_ok();
    }
    if (c->stream) {
        fputs(text, stdout);
        fflush(stdout);
    }
    return bytes_append_str(&c->text, text);
}

static status_t on_response(void *user, const struct wire_generate_response *response)
{
    struct completion *c = user;
    if (response->has_usage) {
        c->usage = response->usage;
    }
    if (response->event == WIRE_EVENT_TOKEN) {
        if (response->token.seq != c->next_seq) {
            return status_errorf(STATUS_DATA_LOSS, "token event %u came where %u was due",
                                 response->token.seq, c->next_seq);
        }
        c->next_seq++;
        c->last_ns = clock_now_ns(c->clock);
        c->first_ns = c->first_ns == 0 ? c->last_ns : c->first_ns;
        for (size_t i = 0; i < response->token.n_tokens; i++, c->n_tokens++) {
            const struct wire_token_info *token = &response->token.tokens[i];
            json_array_append_new(c->ids, json_integer(token->id));
            if (token->has_logprob) {
                json_array_append_new(c->logprobs, json_real((double)token->logprob));
            }
        }
        return add_text(c, response->token.text);
    }
    if (response->event == WIRE_EVENT_FINISHED) {
        c->reason = response->finished.reason;
        return add_text(c, response->finished.text);
    }
    return status_ok();
}

static void print_json(const struct completion *c)
{
    json_t *object = json_pack(
        "{ss%sOss s{sisisi}}", "text", c->text.size > 0 ? (const char *)c->text.data : "",
        c->text.size, "token_ids", c->ids, "finish_reason", wire_finish_reason_name(c->reason),
        "usage", "prompt_tokens", (int)c->usage.prompt_tokens, "completion_tokens",
        (int)c->usage.completion_tokens, "cached_tokens", (int)c->usage.cached_tokens);
    if (json_array_size(c->logprobs) > 0) {
        json_object_set(object, "logprobs", c->logprobs);
    }
    json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
    fputc('\n', stdout);
    json_decref(object);
}

static void print_stats(const struct completion *c, uint64_t begin_ns)
{
    const double ttft_s = (double)(c->first_ns - begin_ns) / 1e9;
    const double decode_s = (double)(c->last_ns - c->first_ns) / 1e9;
    fprintf(stderr, "%u prompt tokens, %u generated, first after %.1f ms", c->usage.prompt_tokens,
            c->usage.completion_tokens, ttft_s * 1e3);
    if (c->n_tokens > 1 && decode_s > 0) {
        fprintf(stderr, ", then %.1f tokens/s", (c->n_tokens - 1) / decode_s);
    }
    fprintf(stderr, " (%s)\n", wire_finish_reason_name(c->reason));
}

static void set_prompt(const struct prompt *prompt, struct wire_generate_request *request)
{
    if (prompt->ids.n > 0) {
        request->prompt_kind = WIRE_PROMPT_TOKENS;
        request->prompt_token_ids =
            (struct wire_token_ids){.ids = (const uint32_t *)prompt->ids.ids, .n = prompt->ids.n};
        return;
    }
    request->prompt_kind = WIRE_PROMPT_TEXT;
    request->prompt = (const char *)prompt->text.data;
    request->prompt_bytes = prompt->text.size;
}

static status_t generate(const struct generate_options *options, const char *address,
                         const struct prompt *prompt)
{
    struct generate_lists lists;
    struct wire_generate_request request;
    TRY(generate_common_request(&options->common, &lists, &request));
    set_prompt(prompt, &request);
    struct client *client = NULL;
    TRY(client_open(address, &client));
    struct completion c = {.stream = !options->json,
                           .ids = json_array(),
                           .logprobs = json_array(),
                           .clock = clock_system()};
    bytes_init(&c.text, 64u << 20);
    const uint64_t begin_ns = clock_now_ns(c.clock);
    const struct client_generate_args args = {.request = &request,
                                              .timeout_ns =
                                                  generate_common_timeout(&options->common),
                                              .on_response = on_response,
                                              .user = &c};
    const status_t s = client_generate(client, &args);
    if (s.code == STATUS_OK && options->json) {
        print_json(&c);
    } else if (!options->json && c.text.size > 0) {
        fputc('\n', stdout);
        fflush(stdout); // before what goes to stderr
    }
    if (s.code == STATUS_OK && options->stats) {
        print_stats(&c, begin_ns);
    }
    json_decref(c.ids);
    json_decref(c.logprobs);
    bytes_destroy(&c.text);
    client_close(client);
    return s;
}

static status_t text_of(const struct generate_options *options, const struct config_set *set,
                        struct bytes *prompt)
{
    if (options->file != NULL && set->n_positional == 0) {
        return cli_read_text(options->file, prompt);
    }
    if (options->file != NULL || set->n_positional != 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "one PROMPT is needed, %zu given%s" STATUS_FIX
                             "quote it: kvasir generate \"Once upon a time\"",
                             set->n_positional, options->file != NULL ? " besides --file" : "");
    }
    bytes_init(prompt, SIZE_MAX);
    return bytes_append_str(prompt, set->positional[0]);
}

/* The server knows no suffix: the prompt is made here, from the model's own tokenizer. */
static status_t encode_suffix(const struct generate_options *options, struct prompt *prompt)
{
    const char *dir =
        options->tokenizer != NULL ? options->tokenizer : options->common.server.model;
    if (dir == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--suffix needs the model's tokenizer" STATUS_FIX
                             "--tokenizer DIR, or --model DIR");
    }
    struct tokenizer *tokenizer;
    TRY(tokenizer_load(dir, &tokenizer));
    const struct fim_text before = {.data = (const char *)prompt->text.data,
                                    .size = prompt->text.size};
    const struct fim_text behind = {.data = options->suffix, .size = strlen(options->suffix)};
    const status_t s = fim_encode(tokenizer, before, behind, &prompt->ids);
    tokenizer_free(tokenizer);
    return s;
}

static status_t prompt_of(const struct generate_options *options, const struct config_set *set,
                          struct prompt *prompt)
{
    if (options->tokenizer != NULL && options->suffix == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--tokenizer is for --suffix alone");
    }
    TRY(text_of(options, set, &prompt->text));
    return options->suffix != NULL ? encode_suffix(options, prompt) : status_ok();
}

static void prompt_destroy(struct prompt *prompt)
{
    bytes_destroy(&prompt->text);
    token_list_destroy(&prompt->ids);
}

int cli_generate(const struct cli_command *command, int argc, char **argv)
{
    struct generate_options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    struct prompt prompt = {0};
    struct private_server server = {0};
    status_t s = prompt_of(&options, &set, &prompt);
    const char *address = options.common.address;
    if (s.code == STATUS_OK && options.common.server.model != NULL) {
        const status_t started = private_server_start(&server, &options.common.server, &code);
        if (started.code != STATUS_OK) { // the server has said why
            prompt_destroy(&prompt);
            config_destroy(&set);
            return code;
        }
        address = server.address;
    }
    if (s.code == STATUS_OK) {
        s = generate(&options, address, &prompt);
    }
    private_server_stop(&server);
    prompt_destroy(&prompt);
    config_destroy(&set);
    return cli_report(&s);
}

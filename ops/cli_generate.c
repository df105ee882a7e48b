/*
 * cli_generate.c - kvasir generate: the completions of one prompt, streamed to stdout
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "coordinator/tokenizer/fim.h"
#include "ops/cli.h"
#include "ops/client.h"
#include "ops/completion.h"
#include "ops/generate_options.h"

struct generate_options {
    struct generate_common common;
    const char *file, *suffix, *tokenizer, *prompt_token_ids;
    int64_t n, prompt_logprobs, beam_width;
    double length_penalty;
    int early_stopping; /* enum wire_early_stopping: the choices are in its order */
    bool json, stats, echo;
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
    {.name = "prompt-token-ids",
     .type = CONFIG_STRING,
     .offset = AT(prompt_token_ids),
     .help = "continue these ids in the place of PROMPT: 1,415,9"},
    {.name = "n",
     .type = CONFIG_INT,
     .offset = AT(n),
     .default_text = "1",
     .min = 1,
     .max = 1e9,
     .help = "samples to generate"},
    {.name = "beam-width",
     .type = CONFIG_INT,
     .offset = AT(beam_width),
     .default_text = "0",
     .min = 0,
     .max = 1e9,
     .help = "beams to search instead of sampling, at most 16; 0: none. The --n best are printed"},
    GENERATE_NUMBER_ROW("length-penalty", AT(length_penalty), "1.0",
                        "exponent of the length by which a beam's score is divided"),
    {.name = "early-stopping",
     .type = CONFIG_CHOICE,
     .offset = AT(early_stopping),
     .default_text = "false",
     .choices = "false|true|never",
     .help = "when a beam search ends: false: by a guess, true: when as many have ended, "
             "never: when none can be better"},
    {.name = "prompt-logprobs",
     .type = CONFIG_INT,
     .offset = AT(prompt_logprobs),
     .default_text = "-1",
     .min = -1,
     .max = 20,
     .help = "with --json, log probabilities of the prompt and this many alternatives; -1: none"},
    GENERATE_BOOL_ROW("echo", AT(echo), "false", "begin with the prompt"),
    {.name = "stats",
     .type = CONFIG_BOOL,
     .offset = AT(stats),
     .default_text = "false",
     .help = "print tokens, time and rate to stderr at the end"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "print one object {text, token_ids, finish_reason, usage, ...} at the end"},
};

/* What is to be continued: the text, or with --suffix the ids that were made of it. */
struct prompt {
    struct bytes text;
    struct token_list ids;
};

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

static status_t make_request(const struct generate_options *options, const struct prompt *prompt,
                             struct arena *arena, struct wire_generate_request *request_out)
{
    TRY(generate_common_request(&options->common, arena, request_out));
    request_out->sampling.n = (uint32_t)options->n;
    request_out->sampling.beam_width = (uint32_t)options->beam_width;
    request_out->sampling.length_penalty = (float)options->length_penalty;
    request_out->sampling.early_stopping = options->early_stopping;
    request_out->output.echo = options->echo;
    request_out->output.has_prompt_logprobs = options->prompt_logprobs >= 0;
    request_out->output.prompt_logprobs =
        options->prompt_logprobs > 0 ? (uint32_t)options->prompt_logprobs : 0;
    set_prompt(prompt, request_out);
    if (options->prompt_token_ids == NULL) {
        return status_ok();
    }
    request_out->prompt_kind = WIRE_PROMPT_TOKENS;
    return generate_parse_ids("--prompt-token-ids", options->prompt_token_ids, arena,
                              &request_out->prompt_token_ids);
}

static status_t complete(const struct generate_options *options, const char *address,
                         const struct wire_generate_request *request)
{
    struct client *client = NULL;
    TRY(client_open(address, &client));
    struct completion c;
    const uint64_t begin_ns = clock_now_ns(clock_system());
    const struct client_generate_args args = {.request = request,
                                              .timeout_ns =
                                                  generate_common_timeout(&options->common),
                                              .on_response = completion_take,
                                              .user = &c};
    status_t s = completion_init(&c, request,
                                 options->json ? COMPLETION_PRINT_NOTHING : COMPLETION_PRINT_TEXT);
    if (s.code == STATUS_OK) {
        s = client_generate(client, &args);
        completion_end_text(&c);
    }
    if (s.code == STATUS_OK && options->json) {
        completion_print_json(&c, stdout);
    }
    if (s.code == STATUS_OK && options->stats) {
        completion_print_stats(&c, begin_ns, stderr);
    }
    completion_destroy(&c);
    client_close(client);
    return s;
}

static status_t generate(const struct generate_options *options, const char *address,
                         const struct prompt *prompt)
{
    struct arena arena;
    struct wire_generate_request request;
    arena_init(&arena, GENERATE_MAX_LIST_BYTES);
    status_t s = make_request(options, prompt, &arena, &request);
    if (s.code == STATUS_OK) {
        s = complete(options, address, &request);
    }
    arena_destroy(&arena);
    return s;
}

static status_t text_of(const struct generate_options *options, const struct config_set *set,
                        struct bytes *prompt)
{
    if (options->prompt_token_ids != NULL && options->file == NULL && set->n_positional == 0) {
        return status_ok();
    }
    if (options->prompt_token_ids == NULL && options->file != NULL && set->n_positional == 0) {
        return cli_read_text(options->file, prompt);
    }
    if (options->file != NULL || options->prompt_token_ids != NULL || set->n_positional != 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "one PROMPT is needed, %zu given%s" STATUS_FIX
                             "quote it: kvasir generate \"Once upon a time\"",
                             set->n_positional,
                             options->file != NULL               ? " besides --file"
                             : options->prompt_token_ids != NULL ? " besides --prompt-token-ids"
                                                                 : "");
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

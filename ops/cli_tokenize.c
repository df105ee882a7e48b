/*
 * cli_tokenize.c - kvasir tokenize and detokenize: the model's tokenizer without a server
 */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/tokenizer.h"
#include "ops/cli.h"

struct tokenize_options {
    const char *model, *file;
    bool special_tokens, parse_special, skip_special, json;
};

#define AT(field) offsetof(struct tokenize_options, field)
#define MODEL_ROW                                                    \
    {                                                                \
        .name = "model", .type = CONFIG_STRING, .offset = AT(model), \
        .help = "directory with the tokenizer's files"               \
    }
#define JSON_ROW                                                                          \
    {                                                                                     \
        .name = "json", .type = CONFIG_BOOL, .offset = AT(json), .default_text = "false", \
        .help = "print JSON"                                                              \
    }

static const struct config_row tokenize_rows[] = {
    MODEL_ROW,
    {.name = "file",
     .type = CONFIG_STRING,
     .offset = AT(file),
     .help = "read the text from a file, - is stdin"},
    {.name = "special-tokens",
     .type = CONFIG_BOOL,
     .offset = AT(special_tokens),
     .default_text = "true",
     .help = "put BOS in front where the model wants it"},
    {.name = "parse-special",
     .type = CONFIG_BOOL,
     .offset = AT(parse_special),
     .default_text = "false",
     .help = "special tokens written out in the text become their ids"},
    JSON_ROW,
};

static const struct config_row detokenize_rows[] = {
    MODEL_ROW,
    {.name = "skip-special-tokens",
     .type = CONFIG_BOOL,
     .offset = AT(skip_special),
     .default_text = "false",
     .help = "leave special tokens out"},
    JSON_ROW,
};

static status_t load(const struct tokenize_options *options, struct tokenizer **tokenizer_out)
{
    if (options->model == NULL) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT,
            "--model is missing" STATUS_FIX
            "--model DIR, a directory with tokenizer.json, tokenizer.model, or vocab.json "
            "and merges.txt");
    }
    return tokenizer_load(options->model, tokenizer_out);
}

static void print_ids(const struct token_list *ids, bool as_json)
{
    if (as_json) {
        printf("{\"token_ids\": [");
    }
    for (size_t i = 0; i < ids->n; i++) {
        printf("%s%d", i == 0 ? "" : (as_json ? ", " : " "), ids->ids[i]);
    }
    printf(as_json ? "]}\n" : "\n");
}

static status_t tokenize(const struct tokenize_options *options, const struct bytes *text)
{
    struct tokenizer *tokenizer = NULL;
    struct token_list ids = {0};
    TRY(load(options, &tokenizer));
    const int flags = (options->special_tokens ? TOKENIZER_ADD_SPECIAL : 0) |
                      (options->parse_special ? TOKENIZER_PARSE_SPECIAL : 0);
    const status_t s =
        tokenizer_encode(tokenizer, (const char *)text->data, text->size, flags, &ids);
    if (s.code == STATUS_OK) {
        print_ids(&ids, options->json);
    }
    token_list_destroy(&ids);
    tokenizer_free(tokenizer);
    return s;
}

static status_t text_of(const struct tokenize_options *options, const struct config_set *set,
                        struct bytes *text)
{
    if (options->file != NULL) {
        return set->n_positional == 0
                   ? cli_read_text(options->file, text)
                   : status_errorf(STATUS_INVALID_ARGUMENT, "both --file and a text are given");
    }
    if (set->n_positional != 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "one TEXT is needed, %zu given" STATUS_FIX "quote it, or use --file",
                             set->n_positional);
    }
    bytes_init(text, SIZE_MAX);
    return bytes_append_str(text, set->positional[0]);
}

int cli_tokenize(const struct cli_command *command, int argc, char **argv)
{
    struct tokenize_options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(tokenize_rows, &options);
    const int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    struct bytes text = {0};
    status_t s = text_of(&options, &set, &text);
    if (s.code == STATUS_OK) {
        s = tokenize(&options, &text);
    }
    bytes_destroy(&text);
    config_destroy(&set);
    return cli_report(&s);
}

static status_t parse_ids(const struct config_set *set, int32_t *ids)
{
    for (size_t i = 0; i < set->n_positional; i++) {
        char *end;
        errno = 0;
        const long id = strtol(set->positional[i], &end, 10);
        if (errno != 0 || *end != '\0' || end == set->positional[i] || id < 0 || id > INT32_MAX) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "'%s' is not a token id",
                                 set->positional[i]);
        }
        ids[i] = (int32_t)id;
    }
    return status_ok();
}

static void print_text(const struct bytes *text, bool as_json)
{
    if (!as_json) {
        fwrite(text->data, 1, text->size, stdout);
        fputc('\n', stdout);
        return;
    }
    json_t *object = json_pack("{ss%}", "text", (const char *)text->data, text->size);
    json_dumpf(object, stdout, 0);
    json_decref(object);
    fputc('\n', stdout);
}

static status_t detokenize(const struct tokenize_options *options, const struct config_set *set)
{
    struct tokenizer *tokenizer = NULL;
    struct bytes text;
    bytes_init(&text, SIZE_MAX);
    int32_t *ids = calloc(set->n_positional + 1, sizeof *ids);
    if (ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %zu ids", set->n_positional);
    }
    status_t s;
    TRY_GOTO(s, parse_ids(set, ids), undo_ids);
    TRY_GOTO(s, load(options, &tokenizer), undo_ids);
    const int flags = options->skip_special ? TOKENIZER_SKIP_SPECIAL : 0;
    s = tokenizer_decode(tokenizer, ids, set->n_positional, flags, &text);
    if (s.code == STATUS_OK) {
        print_text(&text, options->json);
    }
    bytes_destroy(&text);
    tokenizer_free(tokenizer);
undo_ids:
    free(ids);
    return s;
}

int cli_detokenize(const struct cli_command *command, int argc, char **argv)
{
    struct tokenize_options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(detokenize_rows, &options);
    const int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    const status_t s = detokenize(&options, &set);
    config_destroy(&set);
    return cli_report(&s);
}

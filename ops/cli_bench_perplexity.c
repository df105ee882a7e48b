/*
 * cli_bench_perplexity.c - kvasir bench perplexity MODEL --file TEXT
 *
 * The worker knows no text: this command makes its tokens and hands them over in a file.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "coordinator/tokenizer/tokenizer.h"
#include "ops/bench_worker.h"
#include "ops/cli_bench.h"

struct options {
    struct bench_worker_options worker;
    const char *file, *context, *stride, *load_format;
    int64_t max_tokens;
    bool special, json;
};

#define AT(field) offsetof(struct options, field)

static const struct config_row rows[] = {
    BENCH_WORKER_ROWS(struct options),
    {.name = "file",
     .type = CONFIG_STRING,
     .offset = AT(file),
     .help = "the text, UTF-8; - is stdin"},
    {.name = "load-format",
     .type = CONFIG_STRING,
     .offset = AT(load_format),
     .default_text = "auto",
     .help = "auto reads safetensors; dummy makes weights up from config.json"},
    {.name = "context",
     .type = CONFIG_STRING,
     .offset = AT(context),
     .default_text = "0",
     .help = "tokens of a window; 0: 2048, or the model's when it has less"},
    {.name = "stride",
     .type = CONFIG_STRING,
     .offset = AT(stride),
     .default_text = "0",
     .help = "tokens from one window to the next; 0: windows do not overlap"},
    {.name = "max-tokens",
     .type = CONFIG_INT,
     .offset = AT(max_tokens),
     .default_text = "0",
     .min = 0,
     .max = 1e9,
     .help = "only the text's first tokens; 0: all of them"},
    {.name = "special-tokens",
     .type = CONFIG_BOOL,
     .offset = AT(special),
     .default_text = "true",
     .help = "begin the text with BOS where the tokenizer says so"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "print one object"},
};

struct run {
    const struct options *options;
    struct token_list ids;
    size_t n_bytes; /* of the text these are tokens of */
};

static void on_result(void *user, json_t *r)
{
    const struct run *run = user;
    const double nll = bench_worker_number(r, "nll");
    const double bits = nll / log(2) / (double)run->n_bytes;
    if (run->options->json) {
        json_object_set_new(r, "file", json_string(run->options->file));
        json_object_set_new(r, "bytes", json_integer((json_int_t)run->n_bytes));
        json_object_set_new(r, "bits_per_byte", json_real(bits));
        json_dumpf(r, stdout, JSON_REAL_PRECISION(15));
        fputc('\n', stdout);
        return;
    }
    printf("perplexity %.6f (%.0f of %.0f tokens scored, %.0f windows of %.0f, stride %.0f)\n",
           bench_worker_number(r, "perplexity"), bench_worker_number(r, "scored"),
           bench_worker_number(r, "tokens"), bench_worker_number(r, "windows"),
           bench_worker_number(r, "context"), bench_worker_number(r, "stride"));
    printf("%.6f nats a token, %.6f bits a byte\n", nll / bench_worker_number(r, "scored"), bits);
}

/* Of a text that is cut, the bytes that the tokens left stand for. */
static status_t cut(struct run *run, const struct tokenizer *tokenizer)
{
    const size_t most = (size_t)run->options->max_tokens;
    if (most == 0 || run->ids.n <= most) {
        return status_ok();
    }
    struct bytes text;
    bytes_init(&text, SIZE_MAX);
    run->ids.n = most;
    const status_t s =
        tokenizer_decode(tokenizer, run->ids.ids, most, TOKENIZER_SKIP_SPECIAL, &text);
    run->n_bytes = text.size;
    bytes_destroy(&text);
    return s;
}

static status_t encode(struct run *run, const char *model)
{
    struct tokenizer *tokenizer = NULL;
    struct bytes text = {0};
    status_t s;
    TRY_GOTO(s, cli_read_text(run->options->file, &text), done);
    TRY_GOTO(s, tokenizer_load(model, &tokenizer), done);
    run->n_bytes = text.size;
    const int flags = run->options->special ? TOKENIZER_ADD_SPECIAL : 0;
    TRY_GOTO(s, tokenizer_encode(tokenizer, (const char *)text.data, text.size, flags, &run->ids),
             done);
    s = cut(run, tokenizer);
done:
    tokenizer_free(tokenizer);
    bytes_destroy(&text);
    return s;
}

static status_t write_ids(const struct token_list *ids, int fd, const char *path)
{
    FILE *file = fdopen(fd, "w");
    if (file == NULL) {
        close(fd);
        return status_errorf(STATUS_UNAVAILABLE, "%s: %s", path, strerror(errno));
    }
    for (size_t i = 0; i < ids->n; i++) {
        fprintf(file, "%d\n", ids->ids[i]);
    }
    const bool failed = ferror(file) != 0;
    return fclose(file) != 0 || failed
               ? status_errorf(STATUS_UNAVAILABLE, "cannot write %s: %s", path, strerror(errno))
               : status_ok();
}

static status_t measure(struct run *run, const char *model, int *code_out)
{
    char path[] = "/tmp/kvasir-tokens-XXXXXX";
    TRY(encode(run, model));
    const int fd = mkstemp(path);
    if (fd < 0) {
        return status_errorf(STATUS_UNAVAILABLE, "cannot make a file in /tmp: %s", strerror(errno));
    }
    const status_t s = write_ids(&run->ids, fd, path);
    if (s.code == STATUS_OK) {
        struct bench_worker_run worker = {
            .part = "perplexity", .model = model, .options = &run->options->worker};
        bench_worker_flag(&worker, "--load-format", run->options->load_format);
        bench_worker_flag(&worker, "--tokens", path);
        bench_worker_flag(&worker, "--context", run->options->context);
        bench_worker_flag(&worker, "--stride", run->options->stride);
        const status_t ended = bench_worker_start(&worker, on_result, run, code_out);
        (void)ended; // the worker has said why
    }
    unlink(path);
    return s;
}

int cli_bench_perplexity(const struct cli_command *command, int argc, char **argv)
{
    struct options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    code = 0;
    struct run run = {.options = &options};
    status_t s =
        set.n_positional == 1 && options.file != NULL
            ? measure(&run, set.positional[0], &code)
            : status_errorf(STATUS_INVALID_ARGUMENT, "MODEL and --file are needed" STATUS_FIX
                                                     "kvasir bench perplexity MODEL --file TEXT");
    token_list_destroy(&run.ids);
    config_destroy(&set);
    return s.code != STATUS_OK ? cli_report(&s) : code;
}

/*
 * cli_bench_serve.c - kvasir bench serve: load on a server, in the words of `vllm bench serve`
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "ops/bench_driver.h"
#include "ops/bench_report.h"
#include "ops/cli_bench.h"
#include "ops/client.h"
#include "ops/private_server.h"
#include "proto/rpc/rpc.h"

struct options {
    const char *address, *request_rate, *dataset, *goodput, *percentiles, *save_result, *compare,
        *model_name;
    struct private_server_options server;
    int64_t num_prompts, input_len, output_len, shared_prefix_len, max_concurrency, num_warmups,
        seed, n, beam_width;
    double sigma, temperature, timeout_s;
    int lengths; /* enum bench_lengths */
    int64_t cancel_after;
    bool ignore_eos, retry, json, progress;
};

#define AT(field) offsetof(struct options, field)

#define STRING_ROW(name_, field_, help_)                                              \
    {                                                                                 \
        .name = (name_), .type = CONFIG_STRING, .offset = AT(field_), .help = (help_) \
    }
#define COUNT_ROW(name_, field_, default_, min_, help_)                                        \
    {                                                                                          \
        .name = (name_), .type = CONFIG_INT, .offset = AT(field_), .default_text = (default_), \
        .min = (min_), .max = 1e9, .help = (help_)                                             \
    }
#define FLAG_ROW(name_, field_, default_, help_)                                                \
    {                                                                                           \
        .name = (name_), .type = CONFIG_BOOL, .offset = AT(field_), .default_text = (default_), \
        .help = (help_)                                                                         \
    }
#define SERVER_ROW(name_, field_) STRING_ROW(name_, server.field_, "with --model: as for serve")

static const struct config_row rows[] = {
    {.name = "address",
     .type = CONFIG_STRING,
     .offset = AT(address),
     .default_text = "127.0.0.1:50051",
     .help = "server to load, HOST:PORT or unix:PATH"},
    STRING_ROW("model", server.model, "directory: start a private server for this run"),
    {.name = "tensor-parallel-size",
     .alias = "-tp",
     .type = CONFIG_STRING,
     .offset = AT(server.tensor_parallel_size),
     .help = "with --model: as for serve"},
    SERVER_ROW("kv-placement", kv_placement),
    SERVER_ROW("load-format", load_format),
    SERVER_ROW("dtype", dtype),
    SERVER_ROW("kv-cache-dtype", kv_cache_dtype),
    SERVER_ROW("max-model-len", max_model_len),
    SERVER_ROW("max-num-seqs", max_num_seqs),
    SERVER_ROW("max-num-batched-tokens", max_num_batched_tokens),
    SERVER_ROW("threads", threads),
    SERVER_ROW("device", device),
    SERVER_ROW("log-level", log_level),
    STRING_ROW("served-model-name", model_name, "model to ask for"),
    COUNT_ROW("num-prompts", num_prompts, "100", 0,
              "requests; with --dataset its first ones, 0: all of them"),
    {.name = "request-rate",
     .type = CONFIG_STRING,
     .offset = AT(request_rate),
     .default_text = "inf",
     .help = "requests a second, arriving as a Poisson process; inf: all at once"},
    {.name = "max-concurrency",
     .alias = "--concurrency",
     .type = CONFIG_INT,
     .offset = AT(max_concurrency),
     .default_text = "0",
     .min = 0,
     .max = 1e6,
     .help = "requests under way at most; 0: no bound"},
    COUNT_ROW("input-len", input_len, "128", 1, "prompt tokens, drawn from the vocabulary"),
    COUNT_ROW("output-len", output_len, "128", 1, "tokens wanted of each request"),
    {.name = "length-distribution",
     .type = CONFIG_CHOICE,
     .offset = AT(lengths),
     .default_text = "fixed",
     .choices = "fixed|lognormal",
     .help = "both lengths: as given, or drawn with these means and cut to the context"},
    {.name = "sigma",
     .type = CONFIG_FLOAT,
     .offset = AT(sigma),
     .default_text = "0.5",
     .min = 0,
     .max = 5,
     .help = "with lognormal: deviation of the logarithm of a length"},
    COUNT_ROW("shared-prefix-len", shared_prefix_len, "0", 0,
              "tokens in front of every prompt, the same for all: for the prefix cache"),
    STRING_ROW(
        "dataset", dataset,
        "JSON lines {\"prompt\": text or ids, \"output_len\": N} instead of made-up prompts"),
    COUNT_ROW("num-warmups", num_warmups, "1", 0, "requests before the run, not counted"),
    FLAG_ROW("ignore-eos", ignore_eos, "false", "always generate the tokens wanted"),
    COUNT_ROW("n", n, "1", 1,
              "samples of each request; tokens and latencies are of all of them together"),
    COUNT_ROW("beam-width", beam_width, "0", 0,
              "search this many beams instead of sampling, and answer with the n best"),
    {.name = "temperature",
     .type = CONFIG_FLOAT,
     .offset = AT(temperature),
     .default_text = "0",
     .min = 0,
     .max = 100,
     .help = "0 is greedy"},
    {.name = "seed",
     .type = CONFIG_INT,
     .offset = AT(seed),
     .default_text = "0",
     .min = 0,
     .max = 0x1p62,
     .help = "same seed: same prompts, lengths, arrivals and sampling"},
    {.name = "timeout",
     .type = CONFIG_FLOAT,
     .offset = AT(timeout_s),
     .default_text = "0",
     .min = 0,
     .max = 1e7,
     .help = "deadline of a request in seconds; 0: none"},
    {.name = "cancel-after",
     .type = CONFIG_INT,
     .offset = AT(cancel_after),
     .default_text = "-1",
     .min = -1,
     .max = 1e9,
     .help = "cancel each request after some number of tokens up to this; -1: none"},
    FLAG_ROW("retry", retry, "false",
             "ask again when a full server says so; else such a request has failed"),
    STRING_ROW("goodput", goodput, "bounds of a good request in ms: ttft:200,tpot:50,e2el:5000"),
    {.name = "metric-percentiles",
     .type = CONFIG_STRING,
     .offset = AT(percentiles),
     .default_text = "99",
     .help = "of each latency: 50,90,99"},
    FLAG_ROW("json", json, "false", "print one object with vLLM's names"),
    STRING_ROW("save-result", save_result, "write that object to a file, too"),
    STRING_ROW("compare", compare, "an object saved before: print both and the ratio"),
    FLAG_ROW("progress", progress, "true", "say on stderr how far the run is"),
};

// ---- options that are lists ----

static status_t parse_number(const char *text, char **end, double *value_out)
{
    errno = 0;
    *value_out = strtod(text, end);
    if (errno != 0 || *end == text || !(*value_out >= 0) || isinf(*value_out)) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "'%s' is not a number of at least 0", text);
    }
    return status_ok();
}

static status_t parse_rate(const char *text, double *rate_out)
{
    char *end;
    if (strcmp(text, "inf") == 0) {
        *rate_out = 0;
        return status_ok();
    }
    const status_t s = parse_number(text, &end, rate_out);
    if (s.code != STATUS_OK || *end != '\0' || *rate_out <= 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--request-rate %s: requests a second, or inf", text);
    }
    return status_ok();
}

static status_t parse_percentiles(const char *text, struct bench_report_options *report)
{
    const char *at = text;
    for (report->n_percentiles = 0; *at != '\0';) {
        char *end;
        double percent = 0;
        const status_t s = parse_number(at, &end, &percent);
        if (s.code != STATUS_OK || percent > 100 || (*end != ',' && *end != '\0') ||
            report->n_percentiles == BENCH_MAX_PERCENTILES) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "--metric-percentiles %s: at most %d numbers up to 100", text,
                                 BENCH_MAX_PERCENTILES);
        }
        report->percentiles[report->n_percentiles++] = percent;
        at = *end == ',' ? end + 1 : end;
    }
    return status_ok();
}

static status_t parse_goodput(const char *text, struct bench_report_options *report)
{
    const struct {
        const char *name;
        double *bound;
    } bounds[] = {{"ttft:", &report->goodput_ttft_ms},
                  {"tpot:", &report->goodput_tpot_ms},
                  {"e2el:", &report->goodput_e2el_ms}};

    for (const char *at = text; at != NULL && *at != '\0';) {
        bool known = false;
        for (size_t i = 0; i < sizeof bounds / sizeof bounds[0] && !known; i++) {
            const size_t n = strlen(bounds[i].name);
            char *end;
            known = strncmp(at, bounds[i].name, n) == 0 &&
                    parse_number(at + n, &end, bounds[i].bound).code == STATUS_OK &&
                    *bounds[i].bound > 0 && (*end == ',' || *end == '\0');
            if (known) {
                at = *end == ',' ? end + 1 : end;
            }
        }
        if (!known) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "--goodput %s: ttft:MS, tpot:MS and e2el:MS with commas", text);
        }
    }
    return status_ok();
}

// ---- the run ----

struct run {
    const struct options *options;
    struct private_server server; /* of --model */
    const char *address;
    struct bench_workload_options workload;
    struct bench_driver_options driver;
    struct bench_report_options report;
    uint32_t *eos_ids;
    char model[256];
    json_t *old; /* of --compare; NULL: none */
};

static status_t ask_model(struct run *run)
{
    struct arena arena;
    struct wire_model_info info;
    struct client *client = NULL;
    arena_init(&arena, 16u << 20);
    TRY(client_open(run->address, &client));
    const status_t s = client_model_info(client, &arena, &info);
    if (s.code == STATUS_OK) {
        const size_t n = info.eos_token_ids.n;
        run->workload.vocab_size = info.vocab_size;
        run->workload.context_length = info.context_length;
        run->eos_ids = calloc(n + 1, sizeof *run->eos_ids);
        for (size_t i = 0; run->eos_ids != NULL && i < n; i++) {
            run->eos_ids[i] = info.eos_token_ids.ids[i];
        }
        run->workload.eos_ids = run->eos_ids;
        run->workload.n_eos_ids = run->eos_ids != NULL ? n : 0;
        snprintf(run->model, sizeof run->model, "%s", info.name);
    }
    client_close(client);
    arena_destroy(&arena);
    return s;
}

static status_t load_old(struct run *run)
{
    json_error_t error;
    if (run->options->compare == NULL) {
        return status_ok();
    }
    run->old = json_load_file(run->options->compare, 0, &error);
    return run->old != NULL ? status_ok()
                            : status_errorf(STATUS_DATA_LOSS, "--compare %s: %s",
                                            run->options->compare, error.text);
}

/* Everything that can be wrong with the command line, before a server is started or asked. */
static status_t set_up(struct run *run)
{
    const struct options *o = run->options;
    double rate = 0;
    TRY(parse_rate(o->request_rate, &rate));
    if (o->num_prompts == 0 && o->dataset == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--num-prompts 0 is for --dataset alone");
    }
    TRY(parse_percentiles(o->percentiles, &run->report));
    TRY(parse_goodput(o->goodput, &run->report));
    run->workload = (struct bench_workload_options){
        .n_prompts = (size_t)o->num_prompts,
        .input_len = (uint32_t)o->input_len,
        .output_len = (uint32_t)o->output_len,
        .lengths = o->lengths,
        .sigma = o->sigma,
        .shared_prefix_len = (uint32_t)o->shared_prefix_len,
        .request_rate = rate,
        .seed = (uint64_t)o->seed,
        .dataset = o->dataset,
    };
    run->report.model = run->model;
    run->report.request_rate = rate;
    run->report.max_concurrency = (uint32_t)o->max_concurrency;
    run->driver = (struct bench_driver_options){
        .model_name = o->model_name,
        .max_concurrency = (uint32_t)o->max_concurrency,
        .n = (uint32_t)o->n,
        .beam_width = (uint32_t)o->beam_width,
        .temperature = o->temperature,
        .seed = (uint64_t)o->seed,
        .timeout_ns = o->timeout_s > 0 ? (uint64_t)(o->timeout_s * 1e9) : RPC_NO_DEADLINE,
        .ignore_eos = o->ignore_eos,
        .cancel_after = o->cancel_after,
        .retry = o->retry,
        .progress = o->progress ? "bench serve" : NULL,
    };
    return load_old(run);
}

/* Prompts of another seed: nothing of the run itself is in a cache afterwards, but for the shared prefix of another seed. */
static status_t warm_up(const struct run *run)
{
    if (run->options->num_warmups == 0) {
        return status_ok();
    }
    struct bench_workload_options options = run->workload;
    struct bench_driver_options driver = run->driver;
    struct bench_workload workload;
    struct bench_record record;
    options.n_prompts = (size_t)run->options->num_warmups;
    options.seed = ~run->workload.seed;
    options.request_rate = 0;
    driver.retry = true;
    driver.cancel_after = -1;
    driver.progress = NULL;
    TRY(bench_workload_make(&options, &workload));
    status_t s;
    TRY_GOTO(s, bench_driver_run(&driver, &workload, &record), undo_workload);
    for (size_t i = 0; i < record.n && s.code == STATUS_OK; i++) {
        s = record.requests[i].status;
    }
    bench_record_destroy(&record);
undo_workload:
    bench_workload_destroy(&workload);
    return status_wrapf(s, "warm-up");
}

static status_t print_result(const struct run *run, const struct bench_record *record)
{
    const struct options *o = run->options;
    json_t *report = bench_report_make(&run->report, record);
    if (report == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the report");
    }
    status_t s = status_ok();
    if (o->save_result != NULL &&
        json_dump_file(report, o->save_result, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) != 0) {
        s = status_errorf(STATUS_UNAVAILABLE, "--save-result %s: %s", o->save_result,
                          strerror(errno));
    }
    if (o->json) {
        json_dumpf(report, stdout, JSON_REAL_PRECISION(9));
        fputc('\n', stdout);
    } else {
        bench_report_print(report, &run->report, stdout);
    }
    if (run->old != NULL) {
        bench_report_compare(report, run->old, o->json ? stderr : stdout);
    }
    json_decref(report);
    return s;
}

static status_t measure(struct run *run)
{
    struct bench_workload workload;
    struct bench_record record;
    run->driver.address = run->address;
    TRY(ask_model(run));
    TRY(bench_workload_make(&run->workload, &workload));
    status_t s;
    TRY_GOTO(s, warm_up(run), undo_workload);
    TRY_GOTO(s, bench_driver_run(&run->driver, &workload, &record), undo_workload);
    s = print_result(run, &record);
    fflush(stdout);
    if (s.code == STATUS_OK) {
        s = bench_report_verdict(&record, stderr);
    }
    bench_record_destroy(&record);
undo_workload:
    bench_workload_destroy(&workload);
    return s;
}

static int run_with_server(struct run *run)
{
    int code = 0;
    run->address = run->options->address;
    if (run->options->server.model != NULL) {
        const status_t started = private_server_start(&run->server, &run->options->server, &code);
        if (started.code != STATUS_OK) { // the server has said why
            return code;
        }
        run->address = run->server.address;
    }
    const status_t s = measure(run);
    private_server_stop(&run->server);
    return cli_report(&s);
}

int cli_bench_serve(const struct cli_command *command, int argc, char **argv)
{
    struct options options = {0}; // a private server has settings without a row here
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    struct run run = {.options = &options};
    status_t s =
        set.n_positional == 0
            ? set_up(&run)
            : status_errorf(STATUS_INVALID_ARGUMENT, "unexpected argument '%s'", set.positional[0]);
    code = s.code == STATUS_OK ? run_with_server(&run) : cli_report(&s);
    json_decref(run.old);
    free(run.eos_ids);
    config_destroy(&set);
    return code;
}

/*
 * cli_bench_engine.c - kvasir bench engine MODEL: tokens a second without a server
 */
#include <jansson.h>
#include <string.h>

#include "ops/bench_worker.h"
#include "ops/cli_bench.h"

struct options {
    struct bench_worker_options worker;
    const char *batch, *prompt, *generate, *steps_ahead, *seed, *load_format;
    bool trace, floor, json;
};

#define AT(field) offsetof(struct options, field)

#define TEXT_ROW(name_, field_, default_, help_)                                                  \
    {                                                                                             \
        .name = (name_), .type = CONFIG_STRING, .offset = AT(field_), .default_text = (default_), \
        .help = (help_)                                                                           \
    }

static const struct config_row rows[] = {
    BENCH_WORKER_ROWS(struct options),
    TEXT_ROW("load-format", load_format, "auto",
             "auto reads safetensors; dummy makes weights up from config.json"),
    TEXT_ROW("batch", batch, "1", "sequences at once; several sizes with commas: 1,16,64"),
    TEXT_ROW("prompt", prompt, "512", "tokens of each prompt, drawn from the vocabulary"),
    TEXT_ROW("generate", generate, "64", "tokens generated of each"),
    TEXT_ROW("steps-ahead", steps_ahead, "1", "steps prepared while one is computed, 0 to 3"),
    TEXT_ROW("seed", seed, "0", "of made-up weights and prompts"),
    {.name = "trace",
     .type = CONFIG_BOOL,
     .offset = AT(trace),
     .default_text = "false",
     .help = "a table of the ops of decoding; on a GPU waits for each, which slows small ones"},
    {.name = "floor",
     .type = CONFIG_BOOL,
     .offset = AT(floor),
     .default_text = "false",
     .help = "measure a copy and a square matmul first; --trace does, too"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "print an object for each batch"},
};

static const char *text(const json_t *object, const char *key)
{
    const char *value = json_string_value(json_object_get(object, key));
    return value != NULL ? value : "?";
}

// ---- the trace ----

/* A row: its time, and what it would take at the rates that were measured. */
static void print_op(const char *name, const json_t *op, double decode_s, double floor_s)
{
    const double seconds = bench_worker_number(op, "seconds"),
                 bytes = bench_worker_number(op, "bytes");
    const double flops = bench_worker_number(op, "flops");
    printf("  %-22s %9.0f %10.2f %6.1f %9.2f %9.2f", name, bench_worker_number(op, "calls"),
           seconds * 1e3, 100 * seconds / decode_s, bytes * 1e-6, flops * 1e-6);
    if (floor_s > 0 && seconds > 0) {
        printf(" %9.2f %8.1f\n", floor_s * 1e3, 100 * floor_s / seconds);
    } else {
        printf(" %9s %8s\n", "-", "-");
    }
}

/* Ops are rank 0's: so is its share of what all ranks reach together. */
static void print_trace(const json_t *result)
{
    const double ranks = bench_worker_number(result, "ranks"),
                 decode_s = bench_worker_number(result, "decode_s");
    const double copy = bench_worker_number(result, "copy_bytes_s") / ranks;
    const double matmul = bench_worker_number(result, "matmul_flops_s") / ranks;
    double seconds = 0, floor_s = 0;
    size_t i;
    json_t *op;
    printf(
        "\n  ops of %d decode steps on rank 0; floor: the larger of bytes at %.1f GB/s (copy) and "
        "flops at\n  %.1f GFLOP/s (square matmul), measured before on all ranks at once; more than "
        "100 %%: from a cache%s\n\n",
        (int)bench_worker_number(result, "generate"), copy * 1e-9, matmul * 1e-9,
        strcmp(text(result, "device"), "cpu") == 0 ? "" : "; each op was waited for");
    printf("  %-22s %9s %10s %6s %9s %9s %9s %8s\n", "op", "calls", "ms", "% step", "MB", "MFLOP",
           "floor ms", "% floor");
    json_array_foreach(json_object_get(result, "ops"), i, op)
    {
        const double moved_s = bench_worker_number(op, "bytes") / copy,
                     computed_s = bench_worker_number(op, "flops") / matmul;
        const double least_s = moved_s > computed_s ? moved_s : computed_s;
        print_op(text(op, "op"), op, decode_s, least_s);
        seconds += bench_worker_number(op, "seconds");
        floor_s += least_s;
    }
    printf("  %-22s %9s %10.2f %6.1f\n", ranks > 1 ? "collectives and host" : "host", "",
           (decode_s - seconds) * 1e3, 100 * (decode_s - seconds) / decode_s);
    printf("  %-22s %9s %10.2f %6.1f %9s %9s %9.2f %8.1f\n", "all", "", decode_s * 1e3, 100.0, "",
           "", floor_s * 1e3, 100 * floor_s / decode_s);
}

// ---- results ----

struct printer {
    const struct options *options;
    int n;
};

static void print_head(const json_t *r)
{
    printf("%s on %s, %d rank%s, weights %s, KV %s%s\n", text(r, "model"), text(r, "device"),
           (int)bench_worker_number(r, "ranks"), bench_worker_number(r, "ranks") > 1 ? "s" : "",
           text(r, "dtype"), text(r, "kv_dtype"),
           strcmp(text(r, "load_format"), "dummy") == 0 ? ", made-up weights" : "");
    printf("%6s %7s %9s %14s %13s %9s %9s %10s\n", "batch", "prompt", "generate", "prefill tok/s",
           "decode tok/s", "step ms", "p99 ms", "peak MB");
}

static void on_result(void *user, json_t *r)
{
    struct printer *printer = user;
    if (printer->options->json) {
        json_dumpf(r, stdout, JSON_REAL_PRECISION(9));
        fputc('\n', stdout);
        fflush(stdout);
        return;
    }
    if (printer->n++ == 0 || printer->options->trace) {
        print_head(r);
    }
    printf("%6.0f %7.0f %9.0f %14.1f %13.1f %9.3f %9.3f %10.1f\n", bench_worker_number(r, "batch"),
           bench_worker_number(r, "prompt"), bench_worker_number(r, "generate"),
           bench_worker_number(r, "prefill_tok_s"), bench_worker_number(r, "decode_tok_s"),
           bench_worker_number(r, "median_step_s") * 1e3,
           bench_worker_number(r, "p99_step_s") * 1e3, bench_worker_number(r, "peak_bytes") * 1e-6);
    if (json_object_get(r, "ops") != NULL) {
        print_trace(r);
        fputc('\n', stdout);
    } else if (json_object_get(r, "copy_bytes_s") != NULL && printer->n == 1) {
        printf("  copy %.1f GB/s, matmul %.1f GFLOP/s, all ranks together\n",
               bench_worker_number(r, "copy_bytes_s") * 1e-9,
               bench_worker_number(r, "matmul_flops_s") * 1e-9);
    }
    fflush(stdout);
}

int cli_bench_engine(const struct cli_command *command, int argc, char **argv)
{
    struct options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    if (set.n_positional != 1) {
        const status_t s = status_errorf(STATUS_INVALID_ARGUMENT,
                                         "one MODEL directory is needed, %zu given" STATUS_FIX
                                         "kvasir bench engine MODEL --batch 1,16",
                                         set.n_positional);
        config_destroy(&set);
        return cli_report(&s);
    }
    struct printer printer = {.options = &options};
    struct bench_worker_run run = {
        .part = "engine", .model = set.positional[0], .options = &options.worker};
    bench_worker_flag(&run, "--load-format", options.load_format);
    bench_worker_flag(&run, "--batch", options.batch);
    bench_worker_flag(&run, "--prompt", options.prompt);
    bench_worker_flag(&run, "--generate", options.generate);
    bench_worker_flag(&run, "--steps-ahead", options.steps_ahead);
    bench_worker_flag(&run, "--seed", options.seed);
    bench_worker_switch(&run, options.trace ? "--trace" : "--no-trace");
    bench_worker_switch(&run, options.floor || options.trace ? "--floor" : "--no-floor");
    const status_t s = bench_worker_start(&run, on_result, &printer, &code);
    (void)s; // the worker has said why
    config_destroy(&set);
    return code;
}

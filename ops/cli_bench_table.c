/*
 * cli_bench_table.c - kvasir bench table: the model cards' rows, on this machine
 *
 * Each row is what the card measured: a batch of prompts and completions of one length, made-up weights and tokens. Beside it
 * stands the roofline of the same row at the copy and matmul rates that the same run measured.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "ops/bench_cards.h"
#include "ops/bench_worker.h"
#include "ops/cli_bench.h"
#include "parallel/spec.h"

struct options {
    struct bench_worker_options worker;
    double scale;
    const char *only;
    bool json;
};

static const struct config_row rows[] = {
    BENCH_WORKER_ROWS(struct options),
    {.name = "scale",
     .type = CONFIG_FLOAT,
     .offset = offsetof(struct options, scale),
     .default_text = "1",
     .min = 1e-4,
     .max = 1,
     .help = "part of the layers, the batch and both lengths that is computed"},
    {.name = "only",
     .type = CONFIG_STRING,
     .offset = offsetof(struct options, only),
     .help = "rows whose model and GPU contain this: DeciLM-7B, 'A10 '"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, json),
     .default_text = "false",
     .help = "print an object for each row"},
};

struct table {
    const struct options *options;
    const struct bench_card *card;
    struct bench_card_scaled scaled;
    struct model_spec spec;
    char dir[64];
    json_t *last; /* what the worker said of the row before; NULL: nothing */
    int n_measured;
};

// ---- the roofline ----

/*
 * Perfect kernels one after another at the measured rates: a decode step reads the weights once or computes B rows, whichever
 * takes longer, and reads B caches of P + G/2 tokens on average; a prompt computes P rows and its attention.
 *   tokens/s = B G / (G step + B prompt)
 */
static double bound_tok_s(const struct model_spec *spec, const json_t *r)
{
    const double bytes_s = bench_worker_number(r, "copy_bytes_s"),
                 flops_s = bench_worker_number(r, "matmul_flops_s");
    const double batch = bench_worker_number(r, "batch"), prompt = bench_worker_number(r, "prompt");
    const double generate = bench_worker_number(r, "generate");
    const int dtype = strcmp(json_string_value(json_object_get(r, "dtype")), "float32") == 0
                          ? DTYPE_F32
                          : DTYPE_BF16;
    const int kv_dtype = strcmp(json_string_value(json_object_get(r, "kv_dtype")), "float32") == 0
                             ? DTYPE_F32
                             : DTYPE_BF16;
    // Of the embedding one row a token is read: nothing.
    const double head = (double)spec->n_vocab * spec->n_hidden;
    const double layers = (double)spec_parameters(spec) - 2 * head;
    const double weights_s = (layers + head) * (double)dtype_bytes(dtype) / bytes_s;
    const double matmuls_s = 2 * (layers + head) * batch / flops_s;
    const double kv_s =
        batch * (prompt + generate / 2) * (double)spec_kv_bytes_per_token(spec, kv_dtype) / bytes_s;
    const double step_s = fmax(weights_s, matmuls_s) + kv_s;
    const double attention = 2 * prompt * prompt * spec->n_heads * spec->head_dim * spec->n_layers;
    const double prompt_s = (2 * layers * prompt + 2 * head + attention) / flops_s;
    return batch * generate / (generate * step_s + batch * prompt_s);
}

// ---- rows ----

static void print_head(const json_t *r, const struct options *o)
{
    printf(
        "made-up weights of the published shapes on %s, %.0f rank%s; copy %.1f GB/s, square matmul "
        "%.1f GFLOP/s\n",
        json_string_value(json_object_get(r, "device")), bench_worker_number(r, "ranks"),
        bench_worker_number(r, "ranks") > 1 ? "s" : "",
        bench_worker_number(r, "copy_bytes_s") * 1e-9,
        bench_worker_number(r, "matmul_flops_s") * 1e-9);
    if (o->scale < 1) {
        printf(
            "scale %g: layers, batch and both lengths are cut to that part and rounded up; width, "
            "heads and\nvocabulary are whole. The card's figures are of the whole model on its GPU "
            "and not to be compared.\n",
            o->scale);
    }
    printf("* the card does not say its lengths: 512/512 is assumed\n\n");
    printf("%-13s %-5s %-7s %10s %6s %9s | %7s %10s %6s | %10s %10s %8s\n", "model", "GPU",
           "engine", "card P/G", "B", "tok/s", "layers", "P/G", "B", "tok/s", "roofline",
           "reached");
}

static void print_row(const struct table *t, const json_t *r, double tok_s, double bound)
{
    char card[32], scaled[32];
    snprintf(card, sizeof card, "%d/%d%s", t->card->prompt, t->card->generate,
             t->card->lengths_assumed ? "*" : "");
    snprintf(scaled, sizeof scaled, "%.0f/%.0f", bench_worker_number(r, "prompt"),
             bench_worker_number(r, "generate"));
    printf("%-13s %-5s %-7s %10s %6d %9.0f | %7d %10s %6.0f | %10.1f %10.1f %7.1f%%\n",
           t->card->model->name, t->card->gpu, t->card->engine, card, t->card->batch,
           t->card->published_tok_s, t->scaled.n_layers, scaled, bench_worker_number(r, "batch"),
           tok_s, bound, 100 * tok_s / bound);
}

static void show(struct table *t, const json_t *r)
{
    const double generated = bench_worker_number(r, "batch") * bench_worker_number(r, "generate");
    const double tok_s =
        generated / (bench_worker_number(r, "prefill_s") + bench_worker_number(r, "decode_s"));
    const double bound = bound_tok_s(&t->spec, r);
    if (!t->options->json) {
        if (t->n_measured == 0) {
            print_head(r, t->options);
        }
        print_row(t, r, tok_s, bound);
    } else {
        json_t *row =
            json_pack("{ss ss si si si sf sf si si}", "card_gpu", t->card->gpu, "card_engine",
                      t->card->engine, "card_prompt", (int)t->card->prompt, "card_generate",
                      (int)t->card->generate, "card_batch", (int)t->card->batch, "card_tok_s",
                      t->card->published_tok_s, "scale", t->options->scale, "layers",
                      (int)t->scaled.n_layers, "card_layers", (int)t->card->model->n_layers);
        json_object_update(row, (json_t *)r); // only read: the function is older than const
        json_object_set_new(row, "suite", json_string("table"));
        json_object_set_new(row, "model", json_string(t->card->model->name));
        json_object_set_new(row, "output_throughput", json_real(tok_s));
        json_object_set_new(row, "bound_tok_s", json_real(bound));
        json_dumpf(row, stdout, JSON_REAL_PRECISION(9));
        fputc('\n', stdout);
        json_decref(row);
    }
    t->n_measured++;
    fflush(stdout);
}

static void on_result(void *user, json_t *r)
{
    struct table *t = user;
    json_decref(t->last);
    t->last = json_incref(r);
    show(t, r);
}

static void say_not_measured(const struct table *t, int code)
{
    fprintf(t->options->json ? stderr : stdout,
            "%-13s %-5s %-7s %d/%d, batch %d, %d layers: not measured, %s (exit code %d)\n",
            t->card->model->name, t->card->gpu, t->card->engine, t->scaled.prompt,
            t->scaled.generate, t->scaled.batch, t->scaled.n_layers,
            code == 75 || code == 78 ? "it does not fit this machine" : "the worker failed", code);
}

static status_t write_config(struct table *t, char *path, size_t path_bytes)
{
    TRY(file_join(path, path_bytes, t->dir, "config.json"));
    json_t *config = bench_cards_config(t->card->model, t->scaled.n_layers);
    const int failed = config == NULL ? -1 : json_dump_file(config, path, JSON_INDENT(1));
    json_decref(config);
    return failed == 0
               ? status_ok()
               : status_errorf(STATUS_UNAVAILABLE, "cannot write %s: %s", path, strerror(errno));
}

static status_t measure(struct table *t, int *code_out)
{
    char path[128], batch[16], prompt[16], generate[16];
    TRY(write_config(t, path, sizeof path));
    spec_destroy(&t->spec);
    t->spec = (struct model_spec){.n_layers = 0};
    status_t s = spec_load(t->dir, &t->spec);
    if (s.code == STATUS_OK) {
        snprintf(batch, sizeof batch, "%d", t->scaled.batch);
        snprintf(prompt, sizeof prompt, "%d", t->scaled.prompt);
        snprintf(generate, sizeof generate, "%d", t->scaled.generate);
        struct bench_worker_run run = {
            .part = "engine", .model = t->dir, .options = &t->options->worker};
        bench_worker_flag(&run, "--load-format", "dummy");
        bench_worker_flag(&run, "--batch", batch);
        bench_worker_flag(&run, "--prompt", prompt);
        bench_worker_flag(&run, "--generate", generate);
        bench_worker_switch(&run, "--floor");
        bench_worker_switch(&run, "--no-trace");
        const status_t ended = bench_worker_start(&run, on_result, t, code_out);
        (void)ended; // the worker has said why
    }
    unlink(path);
    return s;
}

static bool is_wanted(const struct bench_card *card, const char *only)
{
    char text[64];
    snprintf(text, sizeof text, "%s %s ", card->model->name, card->gpu);
    return only == NULL || strstr(text, only) != NULL;
}

/* Two engines' figures of one workload on a card are one of ours. */
static bool is_same(const struct bench_card *a, const struct bench_card *b)
{
    return a->model == b->model && a->batch == b->batch && a->prompt == b->prompt &&
           a->generate == b->generate;
}

/* *code_out: of a worker that could not. */
static status_t take_row(struct table *t, const struct bench_card *card, int *code_out)
{
    const struct bench_card *before = t->card;
    t->card = card;
    if (t->last != NULL && is_same(before, card)) {
        show(t, t->last);
        return status_ok();
    }
    json_decref(t->last);
    t->last = NULL;
    bench_cards_scale(card, t->options->scale, &t->scaled);
    TRY(measure(t, code_out));
    if (*code_out != 0) {
        say_not_measured(t, *code_out);
    }
    return status_ok();
}

/* *code_out: the first row's that could not be measured; the table goes on. */
static status_t measure_rows(struct table *t, int *code_out)
{
    size_t n;
    const struct bench_card *cards = bench_cards(&n);
    for (size_t i = 0; i < n; i++) {
        if (!is_wanted(&cards[i], t->options->only)) {
            continue;
        }
        int code = 0;
        TRY(take_row(t, &cards[i], &code));
        *code_out = *code_out != 0 ? *code_out : code;
    }
    if (t->n_measured == 0 && *code_out == 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "--only '%s': no such row", t->options->only);
    }
    return status_ok();
}

int cli_bench_table(const struct cli_command *command, int argc, char **argv)
{
    struct options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    code = 0;
    struct table t = {.options = &options, .dir = "/tmp/kvasir-bench-XXXXXX"};
    status_t s = status_ok();
    if (mkdtemp(t.dir) == NULL) {
        s = status_errorf(STATUS_UNAVAILABLE, "cannot make a directory in /tmp: %s",
                          strerror(errno));
    } else {
        s = measure_rows(&t, &code);
        json_decref(t.last);
        spec_destroy(&t.spec);
        rmdir(t.dir);
    }
    config_destroy(&set);
    return s.code != STATUS_OK ? cli_report(&s) : code;
}

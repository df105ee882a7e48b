/*
 * cli_plan.c - kvasir plan MODEL: the layout before anything is started
 */
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "ops/cli.h"
#include "ops/plan_auto.h"
#include "ops/plan_rates.h"
#include "parallel/cost_place.h"
#include "parallel/cost_report.h"
#include "parallel/plan_draw.h"
#include "parallel/plan_fit.h"
#include "parallel/plan_memory.h"
#include "parallel/plan_options.h"
#include "parallel/plan_print.h"

struct options {
    struct plan_options plan;
    struct plan_rates_options rates; /* rates.device is of device_names */
    int64_t max_num_seqs, max_num_batched_tokens, max_model_len, kv_cache_bytes, memory_bytes;
    int64_t swap_bytes;
    double memory_share;
    const char *workload;
    int64_t concurrency, n_gpus, gpus_per_node;
    int objective; /* enum cost_objective */
    bool find;     /* --auto */
    bool json, table;
    const char *svg;
};

static const struct config_row rows[] = {
    PLAN_OPTIONS_ROWS(struct options),
    {.name = "max-model-len",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, max_model_len),
     .default_text = "0",
     .min = 0,
     .max = 16777216,
     .help = "longest prompt + completion in tokens; 0: the model's"},
    {.name = "max-num-seqs",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, max_num_seqs),
     .default_text = "64",
     .min = 1,
     .max = 65536,
     .help = "sequences a worker group computes at once"},
    {.name = "max-num-batched-tokens",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, max_num_batched_tokens),
     .default_text = "512",
     .min = 1,
     .max = 1048576,
     .help = "tokens of one step, prompts and completions together"},
    {.name = "kv-cache-memory",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, kv_cache_bytes),
     .default_text = "0",
     .min = 0,
     .max = 0x1p50,
     .help = "bytes of KV cache per rank; 0: what those sequences need"},
    {.name = "swap-space",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, swap_bytes),
     .default_text = "0",
     .min = 0,
     .max = 0x1p50,
     .help = "bytes of host memory per rank where KV of preempted sequences waits; 0: none"},
    {.name = "device",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct options, rates.device),
     .default_text = "cpu",
     .choices = PLAN_RATES_DEVICES,
     .help = "whose buffers and workspaces are counted (with --gpu cuda's), and what is measured"},
    {.name = "memory-bytes",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, memory_bytes),
     .default_text = "0",
     .min = 0,
     .max = 0x1p50,
     .help = "memory of each rank's device, for a plan that has to fit; 0: not looked at"},
    {.name = "gpu-memory-utilization",
     .type = CONFIG_FLOAT,
     .offset = offsetof(struct options, memory_share),
     .default_text = "0.9",
     .min = 0.01,
     .max = 1.0,
     .help = "of that memory, what a rank may use"},
    {.name = "gpu",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct options, rates.gpu),
     .default_text = "none",
     .choices = "none|" COST_GPU_CHOICES,
     .help = "predict speed and room on these, from data sheets; --kv-placement auto goes by it"},
    {.name = "all-reduce",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct options, rates.all_reduce),
     .default_text = "own",
     .choices = COST_COMM_CHOICES,
     .help = "how ranks add up on --gpu: own kernels, or NCCL"},
    {.name = "measure",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, rates.measure),
     .default_text = "false",
     .help = "predict for this machine: time the model's ops here first, on -tp ranks"},
    {.name = "rates",
     .type = CONFIG_STRING,
     .offset = offsetof(struct options, rates.file),
     .help = "file of measured rates: read, or with --measure written"},
    {.name = "workload",
     .type = CONFIG_STRING,
     .offset = offsetof(struct options, workload),
     .default_text = "512/512",
     .help = "tokens of a prompt and of its completion, P/G, to predict for"},
    {.name = "concurrency",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, concurrency),
     .default_text = "0",
     .min = 0,
     .max = 1048576,
     .help = "sequences at once to predict for; 0: --max-num-seqs, with --auto as many as fit"},
    {.name = "auto",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, find),
     .default_text = "false",
     .help = "rank -tp, -pp, replicas and placements on --gpus GPUs by what is predicted"},
    {.name = "objective",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct options, objective),
     .default_text = "throughput",
     .choices = COST_OBJECTIVE_CHOICES,
     .help = "of --auto: most tokens/s, or the quickest token (one sequence unless --concurrency)"},
    {.name = "gpus",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, n_gpus),
     .default_text = "8",
     .min = 1,
     .max = 256,
     .help = "GPUs there are, for --auto"},
    {.name = "gpus-per-node",
     .type = CONFIG_INT,
     .offset = offsetof(struct options, gpus_per_node),
     .default_text = "8",
     .min = 1,
     .max = 256,
     .help = "GPUs that a fast link joins; further ones are reached over the network"},
    {.name = "table",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, table),
     .default_text = "false",
     .help = "print every cut as numbers in the place of the picture"},
    {.name = "svg",
     .type = CONFIG_STRING,
     .offset = offsetof(struct options, svg),
     .help = "file to draw the picture into as well, as SVG"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, json),
     .default_text = "false",
     .help = "print JSON"},
};

static const char *device_name(const struct options *options)
{
    static const char *const names[] = {"cpu", "cuda"};
    return names[options->rates.gpu > 0 ? 1 : options->rates.device];
}

/* KV of the size asked for is refused where it does not fit, and otherwise takes what is left. */
static status_t fit(struct plan_memory_request *request, const struct options *options,
                    uint64_t usable_bytes)
{
    const int64_t asked = request->blocks_per_lane;
    TRY(plan_fit(request, usable_bytes));
    if (options->kv_cache_bytes == 0) {
        return status_ok();
    }
    if (asked > request->blocks_per_lane) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "--kv-cache-memory %lld does not fit: a device has %.3f GB, and room "
                             "for %lld tokens of KV in all" STATUS_FIX "leave it out",
                             (long long)options->kv_cache_bytes, (double)usable_bytes / 1e9,
                             (long long)request->blocks_per_lane * PLAN_BLOCK_TOKENS *
                                 request->plan->n_lanes);
    }
    request->blocks_per_lane = asked;
    return status_ok();
}

static status_t memory_request(const struct plan_print_args *args, const struct options *options,
                               struct plan_memory_request *request_out)
{
    const int32_t most = args->spec->max_positions;
    const struct plan_device *device;
    TRY(plan_device_find(device_name(options), &device));
    TRY(spec_check_context(args->spec, options->max_model_len));
    struct plan_memory_request request = {
        .plan = args->plan,
        .spec = args->spec,
        .device = device,
        .dtype = args->dtype,
        .quantization = args->quantization,
        .kv_dtype = args->kv_dtype,
        .embedding_dtype = args->spec->dtype,
        .max_seqs = (int32_t)options->max_num_seqs,
        .max_rows = (int32_t)options->max_num_batched_tokens,
        .max_model_len = options->max_model_len > 0 ? (int32_t)options->max_model_len : most,
    };
    plan_memory_set_kv(&request, (uint64_t)options->kv_cache_bytes);
    plan_memory_set_swap(&request, (uint64_t)options->swap_bytes);
    if (options->memory_bytes > 0) {
        const double usable = options->memory_share * (double)options->memory_bytes;
        TRY(fit(&request, options, (uint64_t)usable));
    }
    *request_out = request;
    return status_ok();
}

/* Of a replica: more gain little, and wait long. */
enum { AUTO_MAX_SEQS = 1024 };

/* "512/512" */
static status_t parse_workload(const struct options *options, struct cost_workload *workload_out)
{
    char *end = NULL;
    const long p = strtol(options->workload, &end, 10);
    const long g = *end == '/' ? strtol(end + 1, &end, 10) : 0;
    if (p < 1 || g < 1 || p > 1 << 24 || g > 1 << 24 || *end != '\0') {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--workload '%.40s' is not P/G, tokens of a prompt and of its "
                             "completion" STATUS_FIX "--workload 512/512",
                             options->workload);
    }
    *workload_out = (struct cost_workload){
        .n_prompt = (int32_t)p,
        .n_generate = (int32_t)g,
        .concurrency = (int32_t)options->concurrency,
        .chunk_rows = (int32_t)options->max_num_batched_tokens,
    };
    return status_ok();
}

/* Measured times are those of plain weights. */
static status_t check_rates(const struct options *options, const struct cost_rates *rates)
{
    if (rates->n_matmuls > 0 && options->plan.quantization != QUANTIZATION_NONE) {
        return status_errorf(STATUS_UNIMPLEMENTED,
                             "predictions from measured rates for --quantization %s" STATUS_FIX
                             "--gpu " COST_GPU_CHOICES ", or without --quantization",
                             dtype_quantization_name(options->plan.quantization));
    }
    return status_ok();
}

/* A plan with what is predicted of it, or without where no rates are known. */
struct subject {
    struct model_spec spec;
    struct plan plan;
    struct cost_rates rates;
    struct cost_report report;
    bool has_report;
};

static int weight_dtype(const struct options *options, const struct model_spec *spec)
{
    return dtype_resolve(options->plan.dtype, spec->dtype);
}

static int kv_dtype(const struct options *options, const struct model_spec *spec)
{
    return dtype_resolve(options->plan.kv_dtype, weight_dtype(options, spec));
}

static status_t predict(const struct options *options, const char *dir, struct subject *s)
{
    struct cost_workload workload;
    TRY(parse_workload(options, &workload));
    TRY(plan_rates_get(&options->rates, &options->plan, dir, &s->rates));
    TRY(check_rates(options, &s->rates));
    workload.concurrency =
        workload.concurrency > 0 ? workload.concurrency : (int32_t)options->max_num_seqs;
    const struct cost_model model = {.plan = &s->plan,
                                     .spec = &s->spec,
                                     .rates = &s->rates,
                                     .dtype = weight_dtype(options, &s->spec),
                                     .quantization = options->plan.quantization,
                                     .kv_dtype = kv_dtype(options, &s->spec),
                                     .ranks_per_node = (int32_t)options->gpus_per_node};
    const struct plan_device *device;
    TRY(plan_device_find(device_name(options), &device));
    struct plan_memory_request memory = {.spec = &s->spec,
                                         .device = device,
                                         .embedding_dtype = s->spec.dtype,
                                         .dtype = model.dtype,
                                         .kv_dtype = model.kv_dtype,
                                         .max_seqs = workload.concurrency,
                                         .max_rows = workload.chunk_rows,
                                         .max_model_len = workload.n_prompt + workload.n_generate};
    struct plan_request request = {.tp = (int32_t)options->plan.tp,
                                   .pp = (int32_t)options->plan.pp};
    if (options->plan.placement == PLAN_AUTO) {
        TRY(cost_place(&model, &workload, &memory, options->memory_share, &request, &s->plan));
    } else {
        TRY(plan_options_make(&options->plan, &s->spec, &s->plan));
    }
    memory.plan = &s->plan;
    cost_report_make(&model, &workload, &memory, options->memory_share, &s->report);
    s->has_report = true;
    return status_ok();
}

static status_t write_svg(const char *path, const struct subject *subject)
{
    struct bytes text;
    bytes_init(&text, 64u << 20);
    const struct plan_draw_args args = {
        .plan = &subject->plan, .spec = &subject->spec, .title = subject->spec.name};
    status_t s = plan_draw_svg(&args, &text);
    if (status_is_ok(&s)) {
        s = cli_write_file(path, &text);
    }
    bytes_destroy(&text);
    return s;
}

/* The picture in what the terminal says it can show. */
static int view(const struct options *options)
{
    setlocale(LC_CTYPE, "");
    const bool utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    return options->table ? PLAN_PRINT_TABLE : utf8 ? PLAN_PRINT_UTF8 : PLAN_PRINT_ASCII;
}

static status_t print_plan(const char *dir, const struct options *options, struct bytes *out)
{
    struct subject subject = {.has_report = false};
    status_t s;
    TRY_GOTO(s, spec_load(dir, &subject.spec), done);
    TRY_GOTO(s,
             plan_rates_wanted(&options->rates)
                 ? predict(options, dir, &subject)
                 : plan_options_make(&options->plan, &subject.spec, &subject.plan),
             done);
    struct plan_memory_request memory;
    const struct plan_print_args args = {
        .plan = &subject.plan,
        .spec = &subject.spec,
        .dtype = weight_dtype(options, &subject.spec),
        .quantization = options->plan.quantization,
        .kv_dtype = kv_dtype(options, &subject.spec),
        .memory = &memory,
        .view = view(options),
        .cost = subject.has_report ? &subject.report : NULL,
    };
    TRY_GOTO(s, memory_request(&args, options, &memory), done);
    s = options->json ? plan_print_json(&args, out) : plan_print_text(&args, out);
    if (status_is_ok(&s) && !options->json && subject.has_report) {
        s = cost_report_print(&subject.report, out);
    }
    if (status_is_ok(&s) && options->svg != NULL) {
        s = write_svg(options->svg, &subject);
    }
done:
    plan_destroy(&subject.plan);
    spec_destroy(&subject.spec);
    return s;
}

// ---- which plan ----

static status_t search(const struct options *options, const char *dir,
                       const struct model_spec *spec, struct bytes *out)
{
    struct cost_rates rates;
    struct cost_search found = {.n = 0};
    struct cost_search_request request = {
        .spec = spec,
        .rates = &rates,
        .dtype = weight_dtype(options, spec),
        .quantization = options->plan.quantization,
        .kv_dtype = kv_dtype(options, spec),
        .placement = options->plan.placement,
        .objective = options->objective,
        .n_gpus = (int32_t)options->n_gpus,
        .gpus_per_node = (int32_t)options->gpus_per_node,
        .max_seqs = (int32_t)(options->concurrency > 0 ? options->concurrency : AUTO_MAX_SEQS),
        .utilization = options->memory_share,
    };
    if (!plan_rates_wanted(&options->rates)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--auto needs to know the device" STATUS_FIX "--gpu " COST_GPU_CHOICES
                             ", or --measure, or --rates FILE");
    }
    TRY(plan_device_find(device_name(options), &request.device));
    TRY(parse_workload(options, &request.workload));
    if (request.objective == COST_LATENCY && request.workload.concurrency == 0) {
        request.workload.concurrency = 1;
    }
    TRY(plan_rates_get(&options->rates, &options->plan, dir, &rates));
    TRY(check_rates(options, &rates));
    TRY(cost_search_run(&request, &found));
    status_t s = plan_auto_check(&request, &found);
    if (status_is_ok(&s)) {
        s = options->json ? plan_auto_print_json(&request, &found, out)
                          : plan_auto_print(&request, &found, out);
    }
    cost_search_destroy(&found);
    return s;
}

static status_t print_search(const char *dir, const struct options *options, struct bytes *out)
{
    struct model_spec spec = {0};
    TRY(spec_load(dir, &spec));
    const status_t s = search(options, dir, &spec, out);
    spec_destroy(&spec);
    return s;
}

static status_t run(const char *dir, const struct options *options)
{
    struct bytes text;
    bytes_init(&text, 256u << 20);
    const status_t s =
        options->find ? print_search(dir, options, &text) : print_plan(dir, options, &text);
    if (status_is_ok(&s)) {
        fwrite(text.data, 1, text.size, stdout);
        fputs(options->json ? "\n" : "", stdout);
    }
    bytes_destroy(&text);
    return s;
}

int cli_plan(const struct cli_command *command, int argc, char **argv)
{
    struct options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    const int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    status_t s;
    if (set.n_positional != 1) {
        s = status_errorf(STATUS_INVALID_ARGUMENT,
                          "one MODEL directory is needed, %zu given" STATUS_FIX
                          "kvasir plan MODEL -tp 2",
                          set.n_positional);
    } else {
        s = run(set.positional[0], &options);
    }
    config_destroy(&set);
    return cli_report(&s);
}

/*
 * cli_plan.c - kvasir plan MODEL: the layout before anything is started
 */
#include <string.h>

#include "ops/cli.h"
#include "parallel/plan_fit.h"
#include "parallel/plan_memory.h"
#include "parallel/plan_options.h"
#include "parallel/plan_print.h"

struct options {
    struct plan_options plan;
    int64_t max_num_seqs, max_num_batched_tokens, max_model_len, kv_cache_bytes, memory_bytes;
    double memory_share;
    int device; /* of device_names */
    bool json;
};

static const char *const device_names[] = {"cpu", "cuda"};

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
    {.name = "device",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct options, device),
     .default_text = "cpu",
     .choices = "cpu|cuda",
     .help = "whose buffers and workspaces are counted"},
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
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, json),
     .default_text = "false",
     .help = "print JSON"},
};

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
    TRY(plan_device_find(device_names[options->device], &device));
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
    if (options->memory_bytes > 0) {
        const double usable = options->memory_share * (double)options->memory_bytes;
        TRY(fit(&request, options, (uint64_t)usable));
    }
    *request_out = request;
    return status_ok();
}

static status_t print_plan(const char *dir, const struct options *options)
{
    struct model_spec spec = {0};
    struct plan plan = {0};
    struct bytes text;
    bytes_init(&text, 256u << 20);
    TRY(spec_load(dir, &spec));
    status_t s;
    TRY_GOTO(s, plan_options_make(&options->plan, &spec, &plan), undo_spec);
    const int dtype = dtype_resolve(options->plan.dtype, spec.dtype);
    struct plan_memory_request memory;
    const struct plan_print_args args = {.plan = &plan,
                                         .spec = &spec,
                                         .dtype = dtype,
                                         .quantization = options->plan.quantization,
                                         .kv_dtype = dtype_resolve(options->plan.kv_dtype, dtype),
                                         .memory = &memory};
    TRY_GOTO(s, memory_request(&args, options, &memory), undo_plan);
    s = options->json ? plan_print_json(&args, &text) : plan_print_text(&args, &text);
    if (s.code == STATUS_OK) {
        fwrite(text.data, 1, text.size, stdout);
        fputs(options->json ? "\n" : "", stdout);
    }
    bytes_destroy(&text);
undo_plan:
    plan_destroy(&plan);
undo_spec:
    spec_destroy(&spec);
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
        s = print_plan(set.positional[0], &options);
    }
    config_destroy(&set);
    return cli_report(&s);
}

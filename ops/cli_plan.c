/*
 * cli_plan.c - kvasir plan MODEL: the layout before anything is started
 */
#include <string.h>

#include "ops/cli.h"
#include "parallel/plan_print.h"

struct plan_options {
    int64_t tp, pp;
    int placement;       /* enum plan_placement: the choices are in its order */
    int dtype, kv_dtype; /* enum dtype_wanted */
    bool json;
};

#define AT(field) offsetof(struct plan_options, field)

static const struct config_row rows[] = {
    {.name = "tensor-parallel-size",
     .alias = "-tp",
     .type = CONFIG_INT,
     .offset = AT(tp),
     .default_text = "1",
     .min = 1,
     .max = 1024,
     .help = "ranks that share every layer"},
    {.name = "pipeline-parallel-size",
     .alias = "-pp",
     .type = CONFIG_INT,
     .offset = AT(pp),
     .default_text = "1",
     .min = 1,
     .max = 1024,
     .help = "stages of consecutive layers"},
    {.name = "kv-placement",
     .type = CONFIG_CHOICE,
     .offset = AT(placement),
     .default_text = "auto",
     .choices = "auto|share|replicate",
     .help = "KV heads on several ranks: shared by sequence or copied"},
    {.name = "dtype",
     .type = CONFIG_CHOICE,
     .offset = AT(dtype),
     .default_text = "auto",
     .choices = DTYPE_CHOICES,
     .help = "type of the weights in memory; auto: the checkpoint's"},
    {.name = "kv-cache-dtype",
     .type = CONFIG_CHOICE,
     .offset = AT(kv_dtype),
     .default_text = "auto",
     .choices = DTYPE_CHOICES,
     .help = "type of stored keys and values; auto: as --dtype"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = AT(json),
     .default_text = "false",
     .help = "print JSON"},
};

static status_t print_plan(const char *dir, const struct plan_options *options)
{
    struct model_spec spec = {0};
    struct plan plan = {0};
    struct bytes text;
    bytes_init(&text, 256u << 20);
    TRY(spec_load(dir, &spec));
    const struct plan_request request = {
        .tp = (int32_t)options->tp, .pp = (int32_t)options->pp, .placement = options->placement};
    status_t s;
    TRY_GOTO(s, plan_make(&spec, &request, &plan), undo_spec);
    const int dtype = dtype_resolve(options->dtype, spec.dtype);
    const struct plan_print_args args = {.plan = &plan,
                                         .spec = &spec,
                                         .dtype = dtype,
                                         .kv_dtype = dtype_resolve(options->kv_dtype, dtype)};
    s = options->json ? plan_print_json(&args, &text) : plan_print_text(&args, &text);
    if (s.code == STATUS_OK) {
        fwrite(text.data, 1, text.size, stdout);
        fputs(options->json ? "\n" : "", stdout);
    }
    bytes_destroy(&text);
    plan_destroy(&plan);
undo_spec:
    spec_destroy(&spec);
    return s;
}

int cli_plan(const struct cli_command *command, int argc, char **argv)
{
    struct plan_options options;
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

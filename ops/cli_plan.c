/*
 * cli_plan.c - kvasir plan MODEL: the layout before anything is started
 */
#include <string.h>

#include "ops/cli.h"
#include "parallel/plan_options.h"
#include "parallel/plan_print.h"

struct options {
    struct plan_options plan;
    bool json;
};

static const struct config_row rows[] = {
    PLAN_OPTIONS_ROWS(struct options),
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct options, json),
     .default_text = "false",
     .help = "print JSON"},
};

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
    const struct plan_print_args args = {.plan = &plan,
                                         .spec = &spec,
                                         .dtype = dtype,
                                         .kv_dtype = dtype_resolve(options->plan.kv_dtype, dtype)};
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

/*
 * cli_doctor.c - kvasir doctor: is this machine, and this model directory, fit to serve?
 */
#include <jansson.h>

#include "ops/cli.h"
#include "ops/doctor_checks.h"

struct doctor_options {
    const char *listen;
    bool json;
};

static const struct config_row rows[] = {
    {.name = "listen",
     .type = CONFIG_STRING,
     .offset = offsetof(struct doctor_options, listen),
     .default_text = "127.0.0.1:50051",
     .help = "the address a server would take"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct doctor_options, json),
     .default_text = "false",
     .help = "print JSON"},
};

#define MAX_FINDINGS 64

static const char *const verdicts[] =
    {[DOCTOR_OK] = "OK", [DOCTOR_WARN] = "WARN", [DOCTOR_FAIL] = "FAIL"};

static void print_json(const struct doctor_finding *findings, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_pack("{ssssssss}", "check", findings[i].name, "verdict",
                                              verdicts[findings[i].verdict], "fact",
                                              findings[i].fact, "fix", findings[i].fix));
    }
    json_dumpf(list, stdout, JSON_INDENT(2));
    fputc('\n', stdout);
    json_decref(list);
}

static void print_text(const struct doctor_finding *findings, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        printf("%-4s  %-14s %s\n", verdicts[findings[i].verdict], findings[i].name,
               findings[i].fact);
        if (findings[i].fix[0] != '\0') {
            printf("      %-14s fix: %s\n", "", findings[i].fix);
        }
    }
}

int cli_doctor(const struct cli_command *command, int argc, char **argv)
{
    struct doctor_options options;
    struct config_set set;
    const struct cli_table table = CLI_TABLE(rows, &options);
    int code = cli_load(command, &table, &set, argc, argv);
    if (code >= 0) {
        return code;
    }
    struct doctor_finding findings[MAX_FINDINGS];
    const struct doctor_context context = {.model = set.n_positional > 0 ? set.positional[0] : NULL,
                                           .listen = options.listen};
    const size_t n = doctor_run(&context, findings, MAX_FINDINGS);
    if (options.json) {
        print_json(findings, n);
    } else {
        print_text(findings, n);
    }
    code = 0;
    for (size_t i = 0; i < n; i++) {
        if (findings[i].verdict == DOCTOR_FAIL) {
            code = findings[i].of_model ? 65 : 78;
        }
    }
    config_destroy(&set);
    return code;
}

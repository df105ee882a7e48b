/*
 * cli_doctor.c - kvasir doctor: is this machine, and this model directory, fit to serve?
 */
#include <sysexits.h>

#include <jansson.h>

#include "ops/cli.h"
#include "ops/doctor_checks.h"
#include "ops/doctor_model.h"

enum subject { CHECK_ALL, CHECK_MACHINE, CHECK_MODEL };

struct doctor_options {
    const char *listen;
    int check; /* enum subject: the choices are in its order */
    bool scan_weights, json;
};

static const struct config_row rows[] = {
    {.name = "listen",
     .type = CONFIG_STRING,
     .offset = offsetof(struct doctor_options, listen),
     .default_text = "127.0.0.1:50051",
     .help = "the address a server would take"},
    {.name = "check",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct doctor_options, check),
     .default_text = "all",
     .choices = "all|machine|model",
     .help = "what to look at; model: the directory alone"},
    {.name = "scan-weights",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct doctor_options, scan_weights),
     .default_text = "false",
     .help = "read every weight and look for NaN and infinity"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct doctor_options, json),
     .default_text = "false",
     .help = "print JSON"},
};

static const char *const verdicts[] =
    {[DOCTOR_OK] = "OK", [DOCTOR_WARN] = "WARN", [DOCTOR_FAIL] = "FAIL"};

/* A file name in a fact may be any bytes; JSON is UTF-8. */
static json_t *json_text(const char *text)
{
    json_t *string = json_string(text);
    if (string != NULL) {
        return string;
    }
    char ascii[STATUS_MSG_BYTES];
    snprintf(ascii, sizeof ascii, "%s", text);
    for (char *c = ascii; *c != '\0'; c++) {
        if ((unsigned char)*c >= 0x80) {
            *c = '?';
        }
    }
    return json_string(ascii);
}

static void print_json(const struct doctor_findings *list)
{
    json_t *array = json_array();
    for (size_t i = 0; i < list->n; i++) {
        const struct doctor_finding *f = &list->items[i];
        json_array_append_new(array, json_pack("{sssssoso}", "check", f->name, "verdict",
                                               verdicts[f->verdict], "fact", json_text(f->fact),
                                               "fix", json_text(f->fix)));
    }
    json_dumpf(array, stdout, JSON_INDENT(2));
    fputc('\n', stdout);
    json_decref(array);
}

static void print_text(const struct doctor_findings *list)
{
    for (size_t i = 0; i < list->n; i++) {
        const struct doctor_finding *f = &list->items[i];
        printf("%-4s  %-14s %s\n", verdicts[f->verdict], f->name, f->fact);
        if (f->fix[0] != '\0') {
            printf("      %-14s fix: %s\n", "", f->fix);
        }
    }
}

/* A model that cannot be served is 65, whatever else there is. */
static int exit_code(const struct doctor_findings *list)
{
    int code = 0;
    for (size_t i = 0; i < list->n; i++) {
        const struct doctor_finding *f = &list->items[i];
        if (f->verdict == DOCTOR_FAIL && code != EX_DATAERR) {
            code = f->about == DOCTOR_MODEL ? EX_DATAERR : EX_CONFIG;
        }
    }
    return code;
}

static status_t look(const struct doctor_options *options, const struct config_set *set,
                     struct doctor_findings *list)
{
    if (set->n_positional > 1 || (set->n_positional == 0 && options->check == CHECK_MODEL)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "%zu MODEL directories given" STATUS_FIX "kvasir doctor MODEL",
                             set->n_positional);
    }
    if (options->check != CHECK_MODEL) {
        const struct doctor_context context = {.listen = options->listen};
        doctor_checks_run(&context, list);
    }
    if (set->n_positional == 1 && options->check != CHECK_MACHINE) {
        const struct doctor_model_options model = {.dir = set->positional[0],
                                                   .scan_weights = options->scan_weights};
        doctor_model_run(&model, list);
    }
    return status_ok();
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
    struct doctor_findings list = {.n = 0};
    const status_t s = look(&options, &set, &list);
    if (!status_is_ok(&s)) {
        code = cli_report(&s);
    } else {
        (options.json ? print_json : print_text)(&list);
        code = exit_code(&list);
    }
    config_destroy(&set);
    return code;
}

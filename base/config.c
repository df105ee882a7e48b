#include "base/config.h"

#include <assert.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config_parts.h"

#define MAX_STRING_BYTES ((size_t)4 * 1024 * 1024)
#define ENV_PREFIX       "KVASIR_"

static status_t load_defaults(struct config_set *set)
{
    for (size_t i = 0; i < set->n_rows; i++) {
        const struct config_row *row = &set->rows[i];
        if (row->default_text == NULL) {
            assert(row->type == CONFIG_STRING);
            static const char *const unset = NULL;
            memcpy((char *)set->target + row->offset, &unset, sizeof unset);
            continue;
        }
        const status_t s =
            config_value_set(set, i, row->default_text, CONFIG_FROM_DEFAULT, row->name);
        if (!status_is_ok(&s)) {
            return status_errorf(STATUS_INTERNAL, "the default of a setting is wrong: %s", s.msg);
        }
    }
    return status_ok();
}

// ---- environment ----

/* A value that is set and not empty: `KVASIR_X= program` unsets. */
static const char *env_value(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* "MAX_NUM_SEQS=8" -> "max-num-seqs"; returns its length. */
static size_t lower_name(const char *entry, char name[CONFIG_LABEL_BYTES])
{
    size_t size = strcspn(entry, "=");
    if (size >= CONFIG_LABEL_BYTES) {
        size = CONFIG_LABEL_BYTES - 1;
    }
    for (size_t i = 0; i < size; i++) {
        const int letter = entry[i] == '_' ? '-' : tolower((unsigned char)entry[i]);
        name[i] = (char)letter;
    }
    name[size] = '\0';
    return size;
}

/* KVASIR_MAX_NUM_SEQ is a slip; KVASIR_OTHER_PROGRAMS_SETTING is none of our business. */
static status_t check_env_name(const struct config_set *set, const char *entry)
{
    static const size_t prefix = sizeof ENV_PREFIX - 1;
    if (strncmp(entry, ENV_PREFIX, prefix) != 0) {
        return status_ok();
    }
    char name[CONFIG_LABEL_BYTES];
    const size_t size = lower_name(entry + prefix, name);
    // Short names are near each other by chance.
    if (size < 6 || config_names_find(set, name, size) < set->n_rows) {
        return status_ok();
    }
    const char *meant = config_names_nearest(set, name, 1);
    if (meant == NULL) {
        return status_ok();
    }
    char meant_env[CONFIG_LABEL_BYTES];
    config_names_to_env(meant, meant_env);
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "unknown setting %.*s in the environment" STATUS_FIX "did you mean %s?",
                         (int)strcspn(entry, "="), entry, meant_env);
}

static status_t load_env(struct config_set *set)
{
    for (size_t i = 0; i < set->n_rows; i++) {
        char label[CONFIG_LABEL_BYTES];
        config_names_to_env(set->rows[i].name, label);
        const char *value = env_value(label);
        if (value != NULL) {
            TRY(config_value_set(set, i, value, CONFIG_FROM_ENV, label));
        }
    }
    for (char **entry = environ; entry != NULL && *entry != NULL; entry++) {
        TRY(check_env_name(set, *entry));
    }
    return status_ok();
}

// ---- flags ----

/*
 * The first walk over the arguments: what must be known before any value is set. The first wrong flag is
 * kept for later, because a --help further right makes it not matter.
 */
static status_t survey_args(struct config_set *set, int argc, char **argv, const char **file_out)
{
    struct config_args args = {.argc = argc, .argv = argv, .next = 1};
    struct config_arg arg = {.kind = CONFIG_ARG_POSITIONAL};
    status_t first = status_ok();
    while (arg.kind != CONFIG_ARG_END) {
        const status_t s = config_args_next(set, &args, &arg);
        if (!status_is_ok(&s)) {
            first = status_is_ok(&first) ? s : first;
            continue;
        }
        set->help_wanted |= arg.kind == CONFIG_ARG_HELP;
        set->version_wanted |= arg.kind == CONFIG_ARG_VERSION;
        *file_out = arg.kind == CONFIG_ARG_FILE ? arg.text : *file_out;
    }
    return set->help_wanted || set->version_wanted ? status_ok() : first;
}

/* The second walk: values and positional arguments. */
static status_t load_args(struct config_set *set, int argc, char **argv)
{
    struct config_args args = {.argc = argc, .argv = argv, .next = 1};
    for (;;) {
        struct config_arg arg;
        TRY(config_args_next(set, &args, &arg));
        switch (arg.kind) {
        case CONFIG_ARG_END:
            return status_ok();
        case CONFIG_ARG_POSITIONAL:
            set->positional[set->n_positional++] = arg.text;
            break;
        case CONFIG_ARG_SETTING: {
            char label[CONFIG_LABEL_BYTES];
            snprintf(label, sizeof label, "--%s", set->rows[arg.row].name);
            TRY(config_value_set(set, arg.row, arg.text, CONFIG_FROM_FLAG, label));
            break;
        }
        default:
            break; // --config was seen by the first walk
        }
    }
}

// ---- all together ----

static status_t load_all(struct config_set *set, int argc, char **argv)
{
    const char *file = env_value(ENV_PREFIX "CONFIG");
    TRY(load_defaults(set));
    TRY(survey_args(set, argc, argv, &file));
    if (set->help_wanted || set->version_wanted) {
        return status_ok();
    }
    if (file != NULL) {
        TRY(config_file_load(set, file));
    }
    TRY(load_env(set));
    return load_args(set, argc, argv);
}

status_t config_load(struct config_set *set, const struct config_row *rows, size_t n_rows,
                     void *target, int argc, char **argv)
{
    *set = (struct config_set){.rows = rows, .n_rows = n_rows, .target = target};
    if (n_rows > CONFIG_MAX_ROWS) {
        return status_errorf(STATUS_INTERNAL, "table of %zu settings, limit %d", n_rows,
                             CONFIG_MAX_ROWS);
    }
    arena_init(&set->strings, MAX_STRING_BYTES);
    const size_t max_positional = argc > 0 ? (size_t)argc : 1;
    set->positional = arena_calloc(&set->strings, max_positional, sizeof *set->positional);
    status_t s = set->positional == NULL
                     ? status_errorf(STATUS_INVALID_ARGUMENT, "%d arguments are too many", argc)
                     : load_all(set, argc, argv);
    if (!status_is_ok(&s)) {
        config_destroy(set);
    }
    return s;
}

void config_destroy(struct config_set *set)
{
    arena_destroy(&set->strings);
    *set = (struct config_set){0};
}

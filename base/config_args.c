#include "base/config_parts.h"

#include <string.h>

/* How far a typed name may be from the one it is taken for: one slip in three characters. */
static size_t allowed_slips(const char *name)
{
    const size_t third = strlen(name) / 3;
    return third > 2 ? third : 2;
}

/* A known name that begins with the typed text: people shorten. */
static const char *find_longer(const struct config_set *set, const char *typed)
{
    for (size_t i = 0; i < set->n_rows; i++) {
        if (strncmp(set->rows[i].name, typed, strlen(typed)) == 0) {
            return set->rows[i].name;
        }
    }
    return NULL;
}

static status_t unknown_flag(const struct config_set *set, const char *token, size_t size)
{
    char flag[CONFIG_LABEL_BYTES];
    snprintf(flag, sizeof flag, "%.*s", (int)(size < 64 ? size : 64), token);
    const char *typed = flag + strspn(flag, "-");
    const char *prefix = "--";
    if (strncmp(typed, "no-", 3) == 0) {
        typed += 3;
        prefix = "--no-";
    }
    const char *meant = typed[0] != '\0' ? find_longer(set, typed) : NULL;
    if (meant == NULL) {
        meant = config_names_nearest(set, typed, allowed_slips(typed));
    }
    if (meant == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "unknown flag %s" STATUS_FIX "see --help for those there are", flag);
    }
    return status_errorf(STATUS_INVALID_ARGUMENT, "unknown flag %s" STATUS_FIX "did you mean %s%s?",
                         flag, prefix, meant);
}

static size_t find_alias(const struct config_set *set, const char *text, size_t size)
{
    for (size_t i = 0; i < set->n_rows; i++) {
        const char *alias = set->rows[i].alias;
        if (alias != NULL && strlen(alias) == size && memcmp(alias, text, size) == 0) {
            return i;
        }
    }
    return set->n_rows;
}

/* Row of "--name" or of an alias, without its value; n_rows when there is none. */
static size_t find_flag(const struct config_set *set, const char *flag, size_t size)
{
    if (size > 2 && memcmp(flag, "--", 2) == 0) {
        const size_t row = config_names_find(set, flag + 2, size - 2);
        if (row < set->n_rows) {
            return row;
        }
    }
    return find_alias(set, flag, size);
}

/* Row of "--no-name" where name is a bool; n_rows when there is none. */
static size_t find_negated(const struct config_set *set, const char *flag, size_t size)
{
    if (size > 5 && memcmp(flag, "--no", 4) == 0 && (flag[4] == '-' || flag[4] == '_')) {
        const size_t row = config_names_find(set, flag + 5, size - 5);
        if (row < set->n_rows && set->rows[row].type == CONFIG_BOOL) {
            return row;
        }
    }
    return set->n_rows;
}

static bool is_flag(const char *flag, size_t size, const char *name)
{
    return strlen(name) == size && memcmp(flag, name, size) == 0;
}

/* The value after `flag value`: the next argument, unless that is plainly a flag itself. */
static status_t take_value(const struct config_set *set, struct config_args *args, const char *flag,
                           const char **text_out)
{
    const char *next = args->next < args->argc ? args->argv[args->next] : NULL;
    if (next == NULL || strncmp(next, "--", 2) == 0 ||
        find_alias(set, next, strlen(next)) < set->n_rows) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s needs a value", flag);
    }
    args->next++;
    *text_out = next;
    return status_ok();
}

/* The flags every program has. */
static status_t next_builtin(const struct config_set *set, struct config_args *args,
                             const char *token, size_t size, struct config_arg *arg_out)
{
    if (is_flag(token, size, "--help") || is_flag(token, size, "-h")) {
        *arg_out = (struct config_arg){.kind = CONFIG_ARG_HELP};
        return status_ok();
    }
    if (is_flag(token, size, "--version")) {
        *arg_out = (struct config_arg){.kind = CONFIG_ARG_VERSION};
        return status_ok();
    }
    if (is_flag(token, size, "--config")) {
        struct config_arg arg = {.kind = CONFIG_ARG_FILE};
        if (token[size] == '=') {
            arg.text = token + size + 1;
        } else {
            TRY(take_value(set, args, "--config", &arg.text));
        }
        *arg_out = arg;
        return status_ok();
    }
    return unknown_flag(set, token, size);
}

/* A token that begins with '-': flag[0..size), then '=' and a value or the end. */
static status_t next_flag(const struct config_set *set, struct config_args *args, const char *token,
                          struct config_arg *arg_out)
{
    const size_t size = strcspn(token, "=");
    const bool has_value = token[size] == '=';
    struct config_arg arg = {.kind = CONFIG_ARG_SETTING};

    arg.row = find_flag(set, token, size);
    if (arg.row < set->n_rows) {
        if (has_value) {
            arg.text = token + size + 1;
        } else if (set->rows[arg.row].type == CONFIG_BOOL) {
            arg.text = "true";
        } else {
            TRY(take_value(set, args, token, &arg.text));
        }
        *arg_out = arg;
        return status_ok();
    }

    arg.row = find_negated(set, token, size);
    if (arg.row < set->n_rows) {
        if (has_value) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "%.*s takes no value", (int)size, token);
        }
        arg.text = "false";
        *arg_out = arg;
        return status_ok();
    }
    return next_builtin(set, args, token, size, arg_out);
}

status_t config_args_next(const struct config_set *set, struct config_args *args,
                          struct config_arg *arg_out)
{
    if (args->next < args->argc && !args->flags_ended &&
        strcmp(args->argv[args->next], "--") == 0) {
        args->flags_ended = true;
        args->next++;
    }
    if (args->next >= args->argc) {
        *arg_out = (struct config_arg){.kind = CONFIG_ARG_END};
        return status_ok();
    }
    const char *token = args->argv[args->next++];
    // A single "-" is a value by custom: standard input.
    if (args->flags_ended || token[0] != '-' || token[1] == '\0') {
        *arg_out = (struct config_arg){.kind = CONFIG_ARG_POSITIONAL, .text = token};
        return status_ok();
    }
    return next_flag(set, args, token, arg_out);
}

/*
 * config.h - one table per process says every setting's name, type, default and help
 *
 * What:      value of a setting = flag > environment KVASIR_NAME > file (`name = value` lines, # comments)
 *            > default. `--max-num-seqs 8`, `--max-num-seqs=8`, `--max_num_seqs 8`, KVASIR_MAX_NUM_SEQS=8 and
 *            `max-num-seqs = 8` are the same setting; of the same flag given twice the last one counts.
 *            An unknown flag or line is an error with the nearest known name as its fix. The environment is
 *            shared with programs that have other tables, so there only a name that is one slip away from
 *            a known one is an error.
 *            Effective values and where each came from can be printed (log line, --help).
 * Ownership: strings are copied into the config_set and live as long as it.
 * Thread:    init
 * Errors:    INVALID_ARGUMENT naming the setting, the value and what is allowed; those of file_read for the
 *            file; INTERNAL when the table itself is wrong. After a failure nothing is owned.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/arena.h"
#include "base/log.h"

enum config_type {
    CONFIG_INT,    /* int64_t; 8, 32k, 2M: powers of 1024 for K/M/G, of 1000 for k/m/g */
    CONFIG_FLOAT,  /* double, finite */
    CONFIG_BOOL,   /* bool; a flag without value is true, --no-NAME is false */
    CONFIG_STRING, /* const char *; NULL when the default is NULL */
    CONFIG_CHOICE, /* int: index into choices ("auto|cpu|cuda") */
};

struct config_row {
    const char *name;         /* "max-num-seqs" */
    int type;                 /* enum config_type */
    size_t offset;            /* of the field in the process's config struct */
    const char *default_text; /* NULL: unset (strings only) */
    const char *help;         /* one line */
    const char *alias;        /* "-tp", "-c" or NULL */
    const char *choices;      /* CONFIG_CHOICE: "auto|cpu|cuda" */
    double min, max;          /* numbers; both 0: no bound */
};

enum config_origin { CONFIG_FROM_DEFAULT, CONFIG_FROM_FILE, CONFIG_FROM_ENV, CONFIG_FROM_FLAG };

#define CONFIG_MAX_ROWS 128

struct config_set {
    const struct config_row *rows; /* borrowed, static */
    size_t n_rows;
    void *target; /* borrowed: the struct the offsets point into */
    struct arena strings;
    uint8_t origin[CONFIG_MAX_ROWS]; /* enum config_origin, by row */
    const char **positional;         /* the arguments that are not settings, borrowed from argv */
    size_t n_positional;
    bool help_wanted;    /* --help or -h was seen */
    bool version_wanted; /* --version was seen */
};

/*
 * Fills target: defaults, then the file named by --config or KVASIR_CONFIG (when given), then the
 * environment, then argv[1..]. "--" ends the flags. With --help, -h or --version among the flags only the
 * defaults are filled in and nothing else is looked at: help must not fail.
 */
MUST_USE status_t config_load(struct config_set *set, const struct config_row *rows, size_t n_rows,
                              void *target, int argc, char **argv);
void config_destroy(struct config_set *set);

/* The settings as an aligned --help list: flag, alias, choices, default, help. */
void config_print_help(const struct config_set *set, FILE *out);

/* One info line with every effective value that is not its default. */
void config_log(const struct config_set *set, const log_t *log);

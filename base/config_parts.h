/*
 * config_parts.h - the pieces config.c is made of; for base/config*.c alone
 *
 * Thread: init
 */
#pragma once

#include "base/config.h"

#define CONFIG_LABEL_BYTES 256

// ---- config_value.c ----

/* Parses text into the row's field; label ("--max-num-seqs") names the setting in messages. */
MUST_USE status_t config_value_set(struct config_set *set, size_t row, const char *text, int origin,
                                   const char *label);

// ---- config_names.c ----

/* Index of the row named text[0..size), '_' and '-' being equal; n_rows when there is none. */
size_t config_names_find(const struct config_set *set, const char *text, size_t size);

/* The known name text was probably meant to be, at most max_slips edits away; NULL when none is near. */
const char *config_names_nearest(const struct config_set *set, const char *text, size_t max_slips);

/* Single-character insertions, deletions, changes and swaps of neighbours that make a into b. */
size_t config_names_distance(const char *a, const char *b);

/* "max-num-seqs" -> "KVASIR_MAX_NUM_SEQS" */
void config_names_to_env(const char *name, char buf[CONFIG_LABEL_BYTES]);

// ---- config_args.c ----

enum config_arg_kind {
    CONFIG_ARG_END,
    CONFIG_ARG_POSITIONAL, /* text */
    CONFIG_ARG_SETTING,    /* row, text */
    CONFIG_ARG_FILE,       /* text: the path after --config */
    CONFIG_ARG_HELP,
    CONFIG_ARG_VERSION,
};

struct config_arg {
    int kind; /* enum config_arg_kind */
    size_t row;
    const char *text;
};

struct config_args {
    int argc;
    char **argv;
    int next; /* starts at 1 */
    bool flags_ended;
};

/* The next argument; goes past it even when it is wrong. */
MUST_USE status_t config_args_next(const struct config_set *set, struct config_args *args,
                                   struct config_arg *arg_out);

// ---- config_file.c ----

MUST_USE status_t config_file_load(struct config_set *set, const char *path);

/*
 * cli.h - what the commands of `kvasir` share
 *
 * What:      a command is a row of the table in main.c: name, one line of help, function. Each takes its own
 *            arguments (argv[0] is the command's name) and returns an exit code of sysexits.
 * Thread:    owner:main
 */
#pragma once

#include "base/config.h"
#include "base/status.h"
#include "proto/rpc/rpc.h"

struct cli_command {
    const char *name;
    const char *usage; /* arguments after the name */
    const char *help;  /* one line */
    int (*run)(const struct cli_command *command, int argc, char **argv);
};

/* A command's settings and the struct they go into. */
struct cli_table {
    const struct config_row *rows;
    size_t n_rows;
    void *target;
};

#define CLI_TABLE(rows_, target_)                                                        \
    (struct cli_table)                                                                   \
    {                                                                                    \
        .rows = (rows_), .n_rows = sizeof(rows_) / sizeof(rows_)[0], .target = (target_) \
    }

int cli_serve(const struct cli_command *command, int argc, char **argv);
int cli_generate(const struct cli_command *command, int argc, char **argv);
int cli_bench(const struct cli_command *command, int argc, char **argv);
int cli_chat(const struct cli_command *command, int argc, char **argv);
int cli_plan(const struct cli_command *command, int argc, char **argv);
int cli_tokenize(const struct cli_command *command, int argc, char **argv);
int cli_detokenize(const struct cli_command *command, int argc, char **argv);
int cli_doctor(const struct cli_command *command, int argc, char **argv);
int cli_status(const struct cli_command *command, int argc, char **argv);
int cli_not_built(const struct cli_command *command, int argc, char **argv);

/* Prints the failure and returns its exit code; 0 when OK. */
int cli_report(const status_t *s);

/*
 * Loads the settings of a command. Returns -1 when the command should go on; otherwise an exit code: help was
 * printed, or the arguments were wrong and that was said.
 */
int cli_load(const struct cli_command *command, const struct cli_table *table,
             struct config_set *set, int argc, char **argv);

/* Reads all of a file, or of stdin for "-", as text. */
MUST_USE status_t cli_read_text(const char *path, struct bytes *out);

/* Writes a file anew. UNAVAILABLE naming it and why. */
MUST_USE status_t cli_write_file(const char *path, const struct bytes *text);

/* The path of a program that lies beside this one. */
MUST_USE status_t cli_sibling(const char *name, char *buf, size_t buf_bytes);

/* In a child that becomes mpirun on this host: what it needs there, unless the user has set it. */
void cli_allow_mpirun(void);

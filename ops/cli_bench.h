/*
 * cli_bench.h - the parts of `kvasir bench`
 *
 * What:      each is a command of its own: argv[0] is its name ("serve"), command its row with the whole name.
 * Thread:    owner:main
 */
#pragma once

#include "ops/cli.h"

int cli_bench_serve(const struct cli_command *command, int argc, char **argv);
int cli_bench_engine(const struct cli_command *command, int argc, char **argv);
int cli_bench_table(const struct cli_command *command, int argc, char **argv);
int cli_bench_perplexity(const struct cli_command *command, int argc, char **argv);

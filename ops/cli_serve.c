/*
 * cli_serve.c - kvasir serve MODEL: the coordinator, with mpirun as launcher
 *
 * The coordinator's own table says what the options are; this command only becomes it.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ops/cli.h"

int cli_serve(const struct cli_command *command, int argc, char **argv)
{
    (void)command;
    char program[4096];
    char launcher[] = "--launcher=mpirun";
    char name[] = "kvasir serve"; // what --help calls itself
    status_t s = cli_sibling("kvasir-coordinator", program, sizeof program);
    if (s.code != STATUS_OK) {
        return cli_report(&s);
    }
    char **args = calloc((size_t)argc + 3, sizeof *args);
    if (args == NULL) {
        return 70;
    }
    int n = 0;
    args[n++] = name;
    args[n++] = launcher; // first: a later --launcher wins
    for (int i = 1; i < argc; i++) {
        args[n++] = argv[i];
    }
    execv(program, args);
    free(args);
    s = status_errorf(STATUS_UNAVAILABLE, "cannot run %s", program);
    return cli_report(&s);
}

/*
 * main.c - kvasir: one command for serving, asking, planning and looking
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"
#include "ops/cli.h"

static const struct cli_command commands[] = {
    {"serve", "MODEL [options]", "serve a model over gRPC", cli_serve},
    {"generate", "[options] PROMPT", "stream a completion to stdout", cli_generate},
    {"chat", "[options]", "talk with a served model", cli_chat},
    {"plan", "MODEL [options]", "show how a model is laid out over ranks", cli_plan},
    {"status", "[options]", "show what a running server is doing", cli_status},
    {"tokenize", "--model DIR [options] [--] TEXT", "text to token ids, without a server",
     cli_tokenize},
    {"detokenize", "--model DIR ID...", "token ids to text, without a server", cli_detokenize},
    {"doctor", "[MODEL] [options]", "check this machine, and a model directory", cli_doctor},
    {"batch", "submit|status|list|results|cancel", "batch jobs (not built in this version)",
     cli_not_built},
    {"bench", "serve|engine|table|perplexity [options]", "measure servers, engines and models",
     cli_bench},
    {"top", "", "live view of a server (not built in this version; see status)", cli_not_built},
};

enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fprintf(out, "usage: kvasir COMMAND [options]\n\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        fprintf(out, "  %-11s %s\n", commands[i].name, commands[i].help);
    }
    fprintf(
        out,
        "\n`kvasir COMMAND --help` lists a command's options. Every option can also be set in the\n"
        "environment (KVASIR_MAX_TOKENS=32) or in a file named by --config.\n"
        "Exit codes: 64 usage, 65 bad model or data, 69 unavailable, 70 internal, 75 try again,\n"
        "77 permission, 78 configuration.\n");
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_help(stderr);
        return 64;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("kvasir %s\n", version_string());
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(&commands[i], argc - 1, argv + 1);
        }
    }
    const status_t s =
        status_errorf(STATUS_INVALID_ARGUMENT,
                      "unknown command '%s'" STATUS_FIX "kvasir --help lists them", argv[1]);
    return cli_report(&s);
}

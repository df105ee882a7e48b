/*
 * cli_bench.c - kvasir bench: which of its parts
 */
#include <string.h>

#include "ops/cli_bench.h"

static const struct cli_command parts[] = {
    {"bench serve", "--address A | --model DIR [options]",
     "load a server and print what vLLM's bench serve prints", cli_bench_serve},
    {"bench engine", "MODEL [options]", "tokens a second of the engine alone, without gRPC",
     cli_bench_engine},
    {"bench table", "[options]", "the model cards' tables on this machine, beside its roofline",
     cli_bench_table},
    {"bench perplexity", "MODEL --file TEXT [options]", "how well a model predicts a text",
     cli_bench_perplexity},
};

enum { N_PARTS = sizeof parts / sizeof parts[0] };

/* "serve" of "bench serve". */
static const char *part_name(const struct cli_command *part)
{
    return part->name + strlen("bench ");
}

static void print_help(const struct cli_command *command, FILE *out)
{
    fprintf(out, "usage: kvasir %s PART [options]\n\n%s.\n\n", command->name, command->help);
    for (int i = 0; i < N_PARTS; i++) {
        fprintf(out, "  %-11s %s\n", part_name(&parts[i]), parts[i].help);
    }
    fputs("\n`kvasir bench PART --help` lists a part's options.\n", out);
}

int cli_bench(const struct cli_command *command, int argc, char **argv)
{
    if (argc < 2) {
        print_help(command, stderr);
        return 64;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help(command, stdout);
        return 0;
    }
    for (int i = 0; i < N_PARTS; i++) {
        if (strcmp(argv[1], part_name(&parts[i])) == 0) {
            return parts[i].run(&parts[i], argc - 1, argv + 1);
        }
    }
    const status_t s = status_errorf(
        STATUS_INVALID_ARGUMENT,
        "bench: unknown part '%s'" STATUS_FIX "kvasir bench --help lists them", argv[1]);
    return cli_report(&s);
}

#include "ops/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/program.h"
#include "base/version.h"

#define MAX_TEXT_BYTES (64u << 20)

int cli_report(const status_t *s)
{
    if (s->code == STATUS_OK) {
        return 0;
    }
    status_print(stderr, s);
    return status_exit_code(s);
}

int cli_load(const struct cli_command *command, const struct cli_table *table,
             struct config_set *set, int argc, char **argv)
{
    const status_t s = config_load(set, table->rows, table->n_rows, table->target, argc, argv);
    if (s.code != STATUS_OK) {
        return cli_report(&s);
    }
    if (set->help_wanted) {
        printf("usage: kvasir %s %s\n\n%s.\n\n", command->name, command->usage, command->help);
        config_print_help(set, stdout);
        config_destroy(set);
        return 0;
    }
    if (set->version_wanted) {
        printf("kvasir %s\n", version_string());
        config_destroy(set);
        return 0;
    }
    return -1;
}

static status_t read_stdin(struct bytes *out)
{
    uint8_t chunk[65536];
    ssize_t n;
    while ((n = read(STDIN_FILENO, chunk, sizeof chunk)) > 0) {
        TRY(bytes_append(out, chunk, (size_t)n));
    }
    return n == 0 ? status_ok() : status_errorf(STATUS_UNKNOWN, "cannot read stdin");
}

status_t cli_read_text(const char *path, struct bytes *out)
{
    bytes_init(out, MAX_TEXT_BYTES);
    return strcmp(path, "-") == 0 ? read_stdin(out) : file_read(path, MAX_TEXT_BYTES, out);
}

status_t cli_write_file(const char *path, const struct bytes *text)
{
    FILE *file = fopen(path, "we");
    bool written = file != NULL && fwrite(text->data, 1, text->size, file) == text->size;
    const int error = errno;
    if (file != NULL) {
        written = fclose(file) == 0 && written;
    }
    return written
               ? status_ok()
               : status_errorf(STATUS_UNAVAILABLE, "cannot write %s: %s", path, strerror(error));
}

status_t cli_sibling(const char *name, char *buf, size_t buf_bytes)
{
    TRY(program_path(name, buf, buf_bytes));
    if (access(buf, X_OK) != 0) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "%s is not there or not executable" STATUS_FIX
                             "install or build all programs of kvasir together",
                             buf);
    }
    return status_ok();
}

void cli_allow_mpirun(void)
{
    if (geteuid() == 0) {
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    }
    setenv("OMPI_MCA_plm", "isolated", 0); // on this host alone mpirun needs no ssh
}

int cli_not_built(const struct cli_command *command, int argc, char **argv)
{
    (void)argc;
    (void)argv;
    const status_t s = status_errorf(STATUS_UNIMPLEMENTED, "kvasir %s is not built in version %s",
                                     command->name, version_number());
    return cli_report(&s);
}

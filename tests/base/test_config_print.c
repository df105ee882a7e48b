#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config.h"

struct settings {
    int64_t n;
    double x;
    bool on, off;
    const char *text;
    int choice;
};

static const struct config_row rows[] = {
    {.name = "tensor-parallel-size",
     .type = CONFIG_INT,
     .offset = offsetof(struct settings, n),
     .default_text = "1",
     .help = "ranks that share each layer",
     .alias = "-tp",
     .min = 1,
     .max = 64},
    {.name = "temperature",
     .type = CONFIG_FLOAT,
     .offset = offsetof(struct settings, x),
     .default_text = "0.5",
     .help = "a long line of help that goes on and on, further than the hundred columns that a "
             "terminal is taken to have, and so is broken at a space",
     .min = 0,
     .max = 1e18},
    {.name = "stream",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct settings, on),
     .default_text = "true",
     .help = "print nothing until the end"},
    {.name = "json",
     .type = CONFIG_BOOL,
     .offset = offsetof(struct settings, off),
     .default_text = "false",
     .help = "print one object"},
    {.name = "system-prompt",
     .type = CONFIG_STRING,
     .offset = offsetof(struct settings, text),
     .help = "text before everything"},
    {.name = "a-choice-with-a-rather-long-name",
     .type = CONFIG_CHOICE,
     .offset = offsetof(struct settings, choice),
     .default_text = "auto",
     .help = "which",
     .choices = "auto|cpu|cuda"},
};

#define N_ROWS (sizeof rows / sizeof rows[0])

static char *help_text(void)
{
    struct config_set set;
    struct settings c;
    char *argv[] = {(char[]){"program"}};
    assert_status_ok(config_load(&set, rows, N_ROWS, &c, 1, argv));
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    config_print_help(&set, out);
    fclose(out);
    config_destroy(&set);
    return text;
}

static void test_config_print_help_shows_every_setting(void **state)
{
    (void)state;
    char *text = help_text();
    static const char *const wanted[] = {
        "  -tp, --tensor-parallel-size N  ranks that share each layer (1 to 64; default 1)\n",
        "(at least 0; default 0.5)\n",
        "       --no-stream               print nothing until the end\n",
        "       --json                    print one object\n",
        "       --system-prompt TEXT      text before everything\n",
        "       --a-choice-with-a-rather-long-name auto|cpu|cuda\n",
        "cuda\n                                 which (default auto)\n",
        "  -h,  --help                    print this and leave\n",
        "--config FILE",
        "KVASIR_MAX_NUM_SEQS",
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (strstr(text, wanted[i]) == NULL) {
            fail_msg("help lacks \"%s\":\n%s", wanted[i], text);
        }
    }
    free(text);
}

static void test_config_print_help_fits_100_columns(void **state)
{
    (void)state;
    char *text = help_text();
    size_t n_lines = 0;
    for (char *rest = text; rest != NULL;) {
        const char *line = strsep(&rest, "\n");
        assert_true(strlen(line) <= 100);
        n_lines++;
    }
    assert_true(n_lines > N_ROWS + 3);
    free(text);
}

static const char *logged(char **argv, int argc, char *buf, size_t buf_bytes)
{
    struct config_set set;
    struct settings c;
    assert_status_ok(config_load(&set, rows, N_ROWS, &c, argc, argv));
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    const log_t log = {.fd = fds[1], .level = LOG_INFO, .rank = -1, .module = "test"};
    config_log(&set, &log);
    close(fds[1]);
    const ssize_t n = read(fds[0], buf, buf_bytes - 1);
    assert_true(n > 0);
    buf[n] = '\0';
    close(fds[0]);
    config_destroy(&set);
    return strstr(buf, "event=");
}

static void test_config_log_shows_what_was_set(void **state)
{
    (void)state;
    char buf[4096];
    char *argv[] = {(char[]){"program"},
                    (char[]){"-tp=4"},
                    (char[]){"--temperature=0.25"},
                    (char[]){"--json"},
                    (char[]){"--system-prompt=be \"kind\""},
                    (char[]){"--a-choice-with-a-rather-long-name=cuda"}};
    assert_string_equal(
        logged(argv, 6, buf, sizeof buf),
        "event=\"settings\" tensor-parallel-size=4 temperature=0.25 json=true "
        "system-prompt=\"be \\\"kind\\\"\" a-choice-with-a-rather-long-name=cuda\n");
}

static void test_config_log_without_settings(void **state)
{
    (void)state;
    char buf[4096];
    char *argv[] = {(char[]){"program"}};
    assert_string_equal(logged(argv, 1, buf, sizeof buf), "event=\"settings\" all=default\n");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_print_help_shows_every_setting),
        cmocka_unit_test(test_config_print_help_fits_100_columns),
        cmocka_unit_test(test_config_log_shows_what_was_set),
        cmocka_unit_test(test_config_log_without_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/config.h"
#include "base/file.h"

struct settings {
    int64_t max_num_seqs;
    int64_t tensor_parallel_size;
    double temperature;
    bool stream;
    bool ignore_eos;
    const char *served_model_name;
    const char *listen;
    int device;
};

enum { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA };

#define FIELD(name) offsetof(struct settings, name)

static const struct config_row rows[] = {
    {.name = "max-num-seqs",
     .type = CONFIG_INT,
     .offset = FIELD(max_num_seqs),
     .default_text = "64",
     .help = "sequences in a step",
     .min = 1,
     .max = 4096},
    {.name = "tensor-parallel-size",
     .type = CONFIG_INT,
     .offset = FIELD(tensor_parallel_size),
     .default_text = "1",
     .help = "ranks that share each layer",
     .alias = "-tp"},
    {.name = "temperature",
     .type = CONFIG_FLOAT,
     .offset = FIELD(temperature),
     .default_text = "1.0",
     .help = "0 is greedy",
     .min = 0,
     .max = 100},
    {.name = "stream",
     .type = CONFIG_BOOL,
     .offset = FIELD(stream),
     .default_text = "true",
     .help = "text as it comes"},
    {.name = "ignore-eos",
     .type = CONFIG_BOOL,
     .offset = FIELD(ignore_eos),
     .default_text = "false",
     .help = "go on"},
    {.name = "served-model-name",
     .type = CONFIG_STRING,
     .offset = FIELD(served_model_name),
     .help = "name for clients"},
    {.name = "listen",
     .type = CONFIG_STRING,
     .offset = FIELD(listen),
     .default_text = "127.0.0.1:50051",
     .help = "address"},
    {.name = "device",
     .type = CONFIG_CHOICE,
     .offset = FIELD(device),
     .default_text = "auto",
     .help = "where",
     .choices = "auto|cpu|cuda"},
};

#define N_ROWS (sizeof rows / sizeof rows[0])

/* Loads from words separated by single spaces. */
static status_t load(struct config_set *set, struct settings *settings, const char *words)
{
    static char buffer[TEST_PATH_BYTES + 512];
    static char *argv[64];
    snprintf(buffer, sizeof buffer, "program %s", words);
    int argc = 0;
    for (char *rest = buffer; rest != NULL && *rest != '\0';) {
        argv[argc++] = strsep(&rest, " ");
    }
    memset(settings, 0xA5, sizeof *settings);
    return config_load(set, rows, N_ROWS, settings, argc, argv);
}

static void expect_error(const char *words, const char *text)
{
    struct config_set set;
    struct settings settings;
    assert_status_says(load(&set, &settings, words), STATUS_INVALID_ARGUMENT, text);
    config_destroy(&set); // harmless after a failure
}

static void test_config_defaults_fill_every_field(void **state)
{
    (void)state;
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, ""));
    assert_int_equal(c.max_num_seqs, 64);
    assert_int_equal(c.tensor_parallel_size, 1);
    assert_true(c.temperature == 1.0);
    assert_true(c.stream);
    assert_false(c.ignore_eos);
    assert_null(c.served_model_name);
    assert_string_equal(c.listen, "127.0.0.1:50051");
    assert_int_equal(c.device, DEVICE_AUTO);
    for (size_t i = 0; i < N_ROWS; i++) {
        assert_int_equal(set.origin[i], CONFIG_FROM_DEFAULT);
    }
    config_destroy(&set);
}

static void test_config_flags_in_every_spelling(void **state)
{
    (void)state;
    static const char *const spellings[] = {
        "--max-num-seqs 8 -tp 2 --no-stream --ignore-eos --device cuda",
        "--max-num-seqs=8 -tp=2 --stream=false --ignore-eos=yes --device=cuda",
        "--max_num_seqs 8 --tensor-parallel-size 2 --no_stream --ignore_eos --device cuda",
        "--max-num-seqs 9 --max-num-seqs 8 -tp 7 -tp 2 --no-stream --ignore-eos --device=cuda",
    };
    for (size_t i = 0; i < sizeof spellings / sizeof spellings[0]; i++) {
        struct config_set set;
        struct settings c;
        assert_status_ok(load(&set, &c, spellings[i]));
        assert_int_equal(c.max_num_seqs, 8);
        assert_int_equal(c.tensor_parallel_size, 2);
        assert_false(c.stream);
        assert_true(c.ignore_eos);
        assert_int_equal(c.device, DEVICE_CUDA);
        assert_int_equal(set.origin[0], CONFIG_FROM_FLAG);
        assert_int_equal(set.origin[2], CONFIG_FROM_DEFAULT);
        config_destroy(&set);
    }
}

static void test_config_positional_arguments_keep_order(void **state)
{
    (void)state;
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, "model --stream one - --temperature -0 -- --device -x"));
    static const char *const want[] = {"model", "one", "-", "--device", "-x"};
    assert_int_equal(set.n_positional, 5);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(set.positional[i], want[i]);
    }
    config_destroy(&set);
}

static void test_config_many_positional_arguments(void **state)
{
    (void)state;
    static char seven[] = "7";
    static char *argv[3001];
    for (size_t i = 0; i < 3001; i++) {
        argv[i] = seven;
    }
    struct config_set set;
    struct settings c;
    assert_status_ok(config_load(&set, rows, N_ROWS, &c, 3001, argv));
    assert_int_equal(set.n_positional, 3000);
    assert_string_equal(set.positional[2999], "7");
    config_destroy(&set);
}

static void test_config_int_suffixes(void **state)
{
    (void)state;

    static const struct {
        const char *words;
        int64_t want;
    } cases[] = {
        {"-tp 32k", 32000},     {"-tp 32K", 32768},  {"-tp 2m", 2000000},
        {"-tp 2M", 2097152},    {"-tp 1G", 1 << 30}, {"-tp -1", -1},
        {"-tp 1g", 1000000000}, {"-tp +5", 5},       {"-tp 9223372036854775807", INT64_MAX},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config_set set;
        struct settings c;
        assert_status_ok(load(&set, &c, cases[i].words));
        assert_true(c.tensor_parallel_size == cases[i].want);
        config_destroy(&set);
    }
}

static void test_config_refuses_wrong_numbers(void **state)
{
    (void)state;
    static const char *const words[] = {"8x", "8kk", "k", "-", "0x10", "1.5", "8,000", "+-8", "=8"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "-tp=%s", words[i]);
        expect_error(text, "is not a whole number");
    }
    expect_error("-tp=", "is not a whole number");
    expect_error("-tp 9223372036854775808", "is too large");
    expect_error("-tp 9223372036854775807k", "is too large");
    static const char *const reals[] = {"nan", "inf", "1e999", "0x1", "1.0.0", "e", "--5", "1e"};
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "--temperature=%s", reals[i]);
        expect_error(text, "is not a number");
    }
}

static void test_config_refuses_out_of_range(void **state)
{
    (void)state;
    expect_error("--max-num-seqs 0", "--max-num-seqs: 0 is below the least allowed, 1");
    expect_error("--max-num-seqs 4097", "4097 is above the most allowed, 4096");
    expect_error("--temperature -0.1", "--temperature: -0.1 is below the least allowed, 0");
}

static void test_config_refuses_wrong_words(void **state)
{
    (void)state;
    expect_error("--device gpu", "--device: 'gpu' is none of auto, cpu, cuda");
    expect_error("--device cud", "is none of");
    expect_error("--device=", "is none of");
    expect_error("--stream=maybe", "'maybe' is neither true nor false");
    expect_error("--no-stream=true", "--no-stream takes no value");
}

static void test_config_flag_without_value(void **state)
{
    (void)state;
    expect_error("--device", "--device needs a value");
    expect_error("--device --stream", "--device needs a value");
    expect_error("--listen -tp 2", "--listen needs a value");
    expect_error("--config", "--config needs a value");
    expect_error("-tp", "-tp needs a value");
}

static void test_config_unknown_flag_gets_a_suggestion(void **state)
{
    (void)state;
    expect_error("--max-num-seq 8",
                 "unknown flag --max-num-seq; fix: did you mean --max-num-seqs?");
    expect_error("--max_num_sesq=8", "did you mean --max-num-seqs?");
    expect_error("--tensor", "did you mean --tensor-parallel-size?"); // shortened
    expect_error("--no-streem", "did you mean --no-stream?");
    expect_error("-device cpu", "unknown flag -device; fix: did you mean --device?");
    expect_error("--xyzzy", "unknown flag --xyzzy; fix: see --help");
    expect_error("--no-max-num-seqs", "unknown flag --no-max-num-seqs");
}

static void test_config_help_and_version_never_fail(void **state)
{
    (void)state;
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, "--bogus --device gpu --help --config /nowhere"));
    assert_true(set.help_wanted);
    assert_false(set.version_wanted);
    assert_int_equal(c.device, DEVICE_AUTO);
    config_destroy(&set);
    assert_status_ok(load(&set, &c, "-h"));
    assert_true(set.help_wanted);
    config_destroy(&set);
    assert_status_ok(load(&set, &c, "--version"));
    assert_true(set.version_wanted);
    config_destroy(&set);
    // Not a flag: a value, and an argument after --.
    assert_status_ok(load(&set, &c, "--listen -h -- --help"));
    assert_false(set.help_wanted);
    assert_string_equal(c.listen, "-h");
    config_destroy(&set);
}

// ---- environment ----

static int clear_env(void **state)
{
    (void)state;
    unsetenv("KVASIR_MAX_NUM_SEQS");
    unsetenv("KVASIR_MAX_NUM_SEQ");
    unsetenv("KVASIR_DEVICE");
    unsetenv("KVASIR_STREAM");
    unsetenv("KVASIR_CONFIG");
    unsetenv("KVASIR_SOMETHING_ELSE");
    return 0;
}

static void test_config_environment_is_below_flags(void **state)
{
    (void)state;
    setenv("KVASIR_MAX_NUM_SEQS", "16", 1);
    setenv("KVASIR_DEVICE", "cpu", 1);
    setenv("KVASIR_STREAM", "off", 1);
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, "--max-num-seqs 8"));
    assert_int_equal(c.max_num_seqs, 8);
    assert_int_equal(c.device, DEVICE_CPU);
    assert_false(c.stream);
    assert_int_equal(set.origin[0], CONFIG_FROM_FLAG);
    assert_int_equal(set.origin[7], CONFIG_FROM_ENV);
    config_destroy(&set);
}

static void test_config_environment_errors_name_the_variable(void **state)
{
    (void)state;
    setenv("KVASIR_MAX_NUM_SEQS", "many", 1);
    expect_error("", "KVASIR_MAX_NUM_SEQS: 'many' is not a whole number");
    setenv("KVASIR_MAX_NUM_SEQS", "", 1); // empty is unset
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, ""));
    config_destroy(&set);
}

static void test_config_environment_slip_is_an_error(void **state)
{
    (void)state;
    setenv("KVASIR_SOMETHING_ELSE", "1", 1); // another program's
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, ""));
    config_destroy(&set);
    setenv("KVASIR_MAX_NUM_SEQ", "8", 1);
    expect_error("", "unknown setting KVASIR_MAX_NUM_SEQ in the environment; fix: did you mean "
                     "KVASIR_MAX_NUM_SEQS?");
}

// ---- file ----

struct files {
    char dir[TEST_PATH_BYTES];
    char path[TEST_PATH_BYTES + 16];
};

static int make_dir(void **state)
{
    struct files *f = calloc(1, sizeof *f);
    assert_non_null(f);
    test_tmpdir(f->dir);
    assert_status_ok(file_join(f->path, sizeof f->path, f->dir, "kvasir.conf"));
    *state = f;
    return clear_env(NULL);
}

static int remove_dir(void **state)
{
    struct files *f = *state;
    test_tmpdir_remove(f->dir);
    free(f);
    return clear_env(NULL);
}

static status_t load_file(struct files *f, const char *content, const char *more,
                          struct config_set *set, struct settings *c)
{
    test_write_file(f->path, content, strlen(content));
    char words[TEST_PATH_BYTES + 256];
    snprintf(words, sizeof words, "--config %s %s", f->path, more);
    return load(set, c, words);
}

static void test_config_file_is_below_the_environment(void **state)
{
    setenv("KVASIR_DEVICE", "cuda", 1);
    struct config_set set;
    struct settings c;
    assert_status_ok(load_file(*state,
                               "# a comment\n\n  max_num_seqs = 12\r\ndevice=cpu\n"
                               "served-model-name = \" my model # 1 \"\nstream = off\nlisten = a=b",
                               "--max-num-seqs 13", &set, &c));
    assert_int_equal(c.max_num_seqs, 13);
    assert_int_equal(c.device, DEVICE_CUDA);
    assert_string_equal(c.served_model_name, " my model # 1 ");
    assert_false(c.stream);
    assert_string_equal(c.listen, "a=b");
    assert_int_equal(set.origin[3], CONFIG_FROM_FILE);
    config_destroy(&set);
}

static void test_config_file_from_the_environment(void **state)
{
    struct files *f = *state;
    test_write_file(f->path, "device = cpu\n", 13);
    setenv("KVASIR_CONFIG", f->path, 1);
    struct config_set set;
    struct settings c;
    assert_status_ok(load(&set, &c, ""));
    assert_int_equal(c.device, DEVICE_CPU);
    config_destroy(&set);
}

static void test_config_file_errors_name_the_line(void **state)
{
    static const struct {
        const char *content, *want;
    } cases[] = {
        {"\nmax-num-seq = 8\n", "unknown setting 'max-num-seq'"},
        {"\nmax-num-seq = 8\n", "kvasir.conf:2); fix: did you mean max-num-seqs?"},
        {"device = cpu\ndevice = cpu\n", "device is set twice"},
        {"device\n", "'device' is not name = value"},
        {"= 3\n", "unknown setting ''"},
        {"max-num-seqs = 99999\n", "kvasir.conf:1): 99999 is above"},
    };
    struct config_set set;
    struct settings c;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_status_says(load_file(*state, cases[i].content, "", &set, &c),
                           STATUS_INVALID_ARGUMENT, cases[i].want);
    }
    assert_status_code(load(&set, &c, "--config /nowhere/at/all"), STATUS_NOT_FOUND);
}

static void test_config_file_with_nul_is_refused(void **state)
{
    struct files *f = *state;
    test_write_file(f->path, "a\0b", 3);
    setenv("KVASIR_CONFIG", f->path, 1);
    expect_error("", "NUL");
}

static void test_config_wrong_table_is_our_bug(void **state)
{
    (void)state;
    static const struct config_row wrong[] = {{.name = "n",
                                               .type = CONFIG_INT,
                                               .offset = 0,
                                               .default_text = "0",
                                               .help = "",
                                               .min = 1,
                                               .max = 2}};
    struct config_set set;
    struct settings c;
    char *argv[] = {(char[]){"program"}};
    assert_status_code(config_load(&set, wrong, 1, &c, 1, argv), STATUS_INTERNAL);
    assert_status_code(config_load(&set, wrong, CONFIG_MAX_ROWS + 1, &c, 1, argv), STATUS_INTERNAL);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_defaults_fill_every_field),
        cmocka_unit_test(test_config_flags_in_every_spelling),
        cmocka_unit_test(test_config_positional_arguments_keep_order),
        cmocka_unit_test(test_config_many_positional_arguments),
        cmocka_unit_test(test_config_int_suffixes),
        cmocka_unit_test(test_config_refuses_wrong_numbers),
        cmocka_unit_test(test_config_refuses_out_of_range),
        cmocka_unit_test(test_config_refuses_wrong_words),
        cmocka_unit_test(test_config_flag_without_value),
        cmocka_unit_test(test_config_unknown_flag_gets_a_suggestion),
        cmocka_unit_test(test_config_help_and_version_never_fail),
        cmocka_unit_test_setup_teardown(test_config_environment_is_below_flags, clear_env,
                                        clear_env),
        cmocka_unit_test_setup_teardown(test_config_environment_errors_name_the_variable, clear_env,
                                        clear_env),
        cmocka_unit_test_setup_teardown(test_config_environment_slip_is_an_error, clear_env,
                                        clear_env),
        cmocka_unit_test_setup_teardown(test_config_file_is_below_the_environment, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_config_file_from_the_environment, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_config_file_errors_name_the_line, make_dir,
                                        remove_dir),
        cmocka_unit_test_setup_teardown(test_config_file_with_nul_is_refused, make_dir, remove_dir),
        cmocka_unit_test(test_config_wrong_table_is_our_bug),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

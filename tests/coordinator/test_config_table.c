#include "coordinator/config_table.h"

#include <stdio.h>
#include <string.h>

#include "parallel/plan.h"
#include "tests/support/test.h"

/* Loads the table from these arguments (NULL-terminated) and checks them. */
static status_t load(struct coordinator_config *config, struct config_set *set, char *const *args)
{
    char *argv[32] = {(char[]){"kvasir-coordinator"}};
    int argc = 1;
    while (args[argc - 1] != NULL) {
        argv[argc] = args[argc - 1];
        argc++;
    }
    size_t n_rows;
    const struct config_row *rows = config_table_rows(&n_rows);
    status_t s = config_load(set, rows, n_rows, config, argc, argv);
    if (s.code == STATUS_OK) {
        s = config_table_check(set, config);
        if (s.code != STATUS_OK) {
            config_destroy(set);
        }
    }
    return s;
}

#define ARGS(...) ((char *const[]){__VA_ARGS__, NULL})

static void test_config_table_defaults(void **state)
{
    (void)state;
    struct coordinator_config c;
    struct config_set set;
    assert_status_ok(load(&c, &set, ARGS("/models/x")));
    assert_string_equal(c.model, "/models/x");
    assert_string_equal(c.listen, "127.0.0.1:50051");
    assert_string_equal(c.http, "off");
    assert_int_equal(c.launcher, CONFIG_TABLE_LAUNCHER_NONE);
    assert_int_equal(c.plan.tp, 1);
    assert_int_equal(c.max_num_seqs, 64);
    assert_true(c.swap_space_bytes == 0);
    assert_int_equal(c.max_num_batched_tokens, 512);
    assert_int_equal(c.max_num_queued_reqs, 1024);
    assert_int_equal(c.log_level, LOG_WARN);
    assert_null(c.worker);
    config_destroy(&set);
}

static void test_config_table_reads_the_flags_users_know(void **state)
{
    (void)state;
    struct coordinator_config c;
    struct config_set set;
    assert_status_ok(
        load(&c, &set,
             ARGS("-tp", "4", "--launcher=mpirun", "--replicas", "2", "--kv-cache-memory-bytes",
                  "2G", "--max-model-len", "32K", "--kv-placement", "replicate", "--dtype",
                  "bfloat16", "--swap-space", "4G", "--comm", "staged", "--determinism", "batch",
                  "--collective-timeout", "2.5", "m")));
    assert_int_equal(c.comm, 2); // of Assign
    assert_int_equal(c.determinism, CONFIG_TABLE_DETERMINISM_BATCH);
    assert_close(c.collective_timeout_s, 2.5, 0, 0);
    assert_int_equal(c.plan.tp, 4);
    assert_int_equal(c.replicas, 2);
    assert_int_equal(c.launcher, CONFIG_TABLE_LAUNCHER_MPIRUN);
    assert_true(c.kv_cache_memory_bytes == 2LL << 30);
    assert_true(c.swap_space_bytes == 4LL << 30);
    assert_int_equal(c.max_model_len, 32768);
    assert_int_equal(c.plan.placement, PLAN_REPLICATE); // the choices are in the enum's order
    assert_int_equal(c.plan.dtype, DTYPE_WANTED_BF16);
    config_destroy(&set);
}

static void test_config_table_choices_match_their_enums(void **state)
{
    (void)state;
    struct coordinator_config c;
    struct config_set set;
    const char *const placements[] = {"auto", "share", "replicate"};
    for (int i = 0; i < 3; i++) {
        char text[32];
        snprintf(text, sizeof text, "%s", placements[i]);
        assert_status_ok(load(&c, &set, ARGS("m", "--kv-placement", text)));
        assert_string_equal(plan_placement_name(c.plan.placement), placements[i]);
        config_destroy(&set);
    }
    const char *const levels[] = {"error", "warn", "info", "debug", "trace"};
    for (int i = 0; i < 5; i++) {
        char text[32];
        int level;
        snprintf(text, sizeof text, "%s", levels[i]);
        assert_status_ok(log_level_parse(text, &level));
        assert_status_ok(load(&c, &set, ARGS("m", "--log-level", text)));
        assert_int_equal(c.log_level, level);
        config_destroy(&set);
    }
}

static void test_config_table_refuses_what_cannot_be(void **state)
{
    (void)state;
    struct coordinator_config c;
    struct config_set set;
    assert_status_says(load(&c, &set, ARGS("--launcher", "mpirun")), STATUS_INVALID_ARGUMENT,
                       "no MODEL given");
    assert_status_says(load(&c, &set, ARGS("a", "b")), STATUS_INVALID_ARGUMENT, "also given: b");
    assert_status_says(load(&c, &set, ARGS("a", "--device", "tpu")), STATUS_INVALID_ARGUMENT,
                       "none of auto, cpu, cuda");
    assert_status_says(load(&c, &set, ARGS("a", "--load-format", "gguf")), STATUS_INVALID_ARGUMENT,
                       "none of auto, dummy");
    assert_status_says(load(&c, &set, ARGS("a", "--replicas", "2")), STATUS_INVALID_ARGUMENT,
                       "--launcher none");
    assert_status_says(load(&c, &set, ARGS("a", "--determinism", "strict")), STATUS_UNIMPLEMENTED,
                       "--determinism strict");
    assert_status_says(load(&c, &set, ARGS("a", "--swap-space", "4")), STATUS_INVALID_ARGUMENT,
                       "--swap-space 4G");
    assert_status_says(load(&c, &set, ARGS("a", "-tp", "0")), STATUS_INVALID_ARGUMENT,
                       "tensor-parallel-size");
    assert_status_says(load(&c, &set, ARGS("a", "--max-num-sequences", "1")),
                       STATUS_INVALID_ARGUMENT, "max-num-seqs");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_table_defaults),
        cmocka_unit_test(test_config_table_reads_the_flags_users_know),
        cmocka_unit_test(test_config_table_choices_match_their_enums),
        cmocka_unit_test(test_config_table_refuses_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * The supervisor, and the core's use of it, with scripts in mpirun's place.
 */
#include "coordinator/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "tests/coordinator/stream.h"

static void write_script(const char *dir, const char *text, char path[TEST_PATH_BYTES])
{
    snprintf(path, TEST_PATH_BYTES, "%.4000s/fake-mpirun", dir);
    test_write_file(path, text, strlen(text));
    assert_int_equal(chmod(path, 0755), 0);
}

/* Content of dir/name once it has appeared and ends in a newline. */
static const char *read_soon(const char *dir, const char *name, struct bytes *out)
{
    char path[TEST_PATH_BYTES];
    snprintf(path, sizeof path, "%.3900s/%.100s", dir, name);
    for (int tries = 0; tries < 5000; tries++) {
        bytes_clear(out);
        const status_t s = file_read(path, 100000, out);
        if (s.code == STATUS_OK && out->size > 0 && out->data[out->size - 1] == '\n') {
            assert_status_ok(bytes_append(out, "", 1));
            return (const char *)out->data;
        }
        usleep(1000);
    }
    fail_msg("no %s", path);
    return NULL;
}

static int reap_soon(struct supervisor *s, int group)
{
    int wait_status = 0;
    for (int tries = 0; !supervisor_reap(s, group, &wait_status); tries++) {
        assert_true(tries < 10000);
        usleep(1000);
    }
    assert_false(supervisor_is_running(s, group));
    return wait_status;
}

static struct supervisor_options options_of(const char *mpirun)
{
    return (struct supervisor_options){.mpirun = mpirun,
                                       .worker = "/opt/kvasir-worker",
                                       .address = "127.0.0.1:1",
                                       .device = "cuda",
                                       .log_level = "warn",
                                       .n_ranks = 3,
                                       .n_groups = 1,
                                       .n_cores = 2,
                                       .log = {.fd = -1, .module = "test"}};
}

static void test_supervisor_passes_arguments_and_environment(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], script[TEST_PATH_BYTES];
    test_tmpdir(dir);
    assert_int_equal(setenv("KVASIR_TEST_DIR", dir, 1), 0);
    assert_int_equal(setenv("PMIX_RANK", "0", 1), 0);
    write_script(
        dir,
        "#!/bin/sh\n"
        "echo \"pgid=$(cut -d' ' -f5 /proc/$$/stat) pid=$$ yield=$OMPI_MCA_mpi_yield_when_idle"
        " plm=$OMPI_MCA_plm rank=$PMIX_RANK\" > \"$KVASIR_TEST_DIR/env\"\n"
        "printf '%s\\n' \"$*\" > \"$KVASIR_TEST_DIR/args\"\n",
        script);
    struct supervisor_options options = options_of(script);
    options.join_token_file = "/run/token";
    struct supervisor s;
    supervisor_init(&s, &options);
    assert_status_ok(supervisor_start(&s, 4, 7));
    struct bytes text;
    bytes_init(&text, 1 << 20);
    assert_string_equal(
        read_soon(dir, "args", &text),
        "-n 3 --bind-to none --quiet --mca odls_base_sigkill_timeout 0 --oversubscribe /opt/kvasir-worker "
        "--coordinator 127.0.0.1:1 --group 4 --generation 7 --device cuda --log-level warn "
        "--join-token-file /run/token\n");
    const char *env = read_soon(dir, "env", &text);
    assert_non_null(strstr(env, "yield=1"));
    assert_non_null(strstr(env, "plm=isolated"));
    assert_non_null(strstr(env, "rank=\n")); // of the job we may be in
    long pgid = -1, pid = -2;
    assert_int_equal(sscanf(env, "pgid=%ld pid=%ld", &pgid, &pid), 2);
    assert_int_equal(pgid, pid);
    const int wait_status = reap_soon(&s, 4);
    assert_true(WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0);
    bytes_destroy(&text);
    supervisor_destroy(&s);
    unsetenv("PMIX_RANK");
    test_tmpdir_remove(dir);
}

static void test_supervisor_adds_the_users_arguments(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], script[TEST_PATH_BYTES];
    test_tmpdir(dir);
    assert_int_equal(setenv("KVASIR_TEST_DIR", dir, 1), 0);
    write_script(dir, "#!/bin/sh\necho \"plm=$OMPI_MCA_plm $@\" > \"$KVASIR_TEST_DIR/args\"\n",
                 script);
    struct supervisor_options options = options_of(script);
    options.mpirun_args = "  --hostfile  hosts\t-x A=1 ";
    options.n_cores = 8;
    struct supervisor s;
    supervisor_init(&s, &options);
    assert_status_ok(supervisor_start(&s, 0, 1));
    struct bytes text;
    bytes_init(&text, 1 << 20);
    const char *args = read_soon(dir, "args", &text);
    assert_non_null(strstr(args, "timeout 0 --hostfile hosts -x A=1 /opt/kvasir-worker"));
    assert_non_null(strstr(args, "plm= ")); // other hosts need it as it is
    assert_null(strstr(args, "--oversubscribe"));
    (void)reap_soon(&s, 0);
    bytes_destroy(&text);
    supervisor_destroy(&s);
    test_tmpdir_remove(dir);
}

static void test_supervisor_says_when_mpirun_is_missing(void **state)
{
    (void)state;
    const struct supervisor_options options = options_of("/no/such/mpirun");
    struct supervisor s;
    supervisor_init(&s, &options);
    assert_status_says(supervisor_start(&s, 0, 1), STATUS_FAILED_PRECONDITION,
                       "/no/such/mpirun: no such program; fix: install Open MPI");
    assert_false(supervisor_is_running(&s, 0));
    supervisor_destroy(&s);
}

static void test_supervisor_signals_the_whole_process_group(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], script[TEST_PATH_BYTES];
    test_tmpdir(dir);
    assert_int_equal(setenv("KVASIR_TEST_DIR", dir, 1), 0);
    write_script(dir, "#!/bin/sh\nsleep 60 &\necho $! > \"$KVASIR_TEST_DIR/child\"\nwait\n",
                 script);
    const struct supervisor_options options = options_of(script);
    struct supervisor s;
    supervisor_init(&s, &options);
    assert_status_ok(supervisor_start(&s, 0, 1));
    struct bytes text;
    bytes_init(&text, 1 << 20);
    const pid_t child = (pid_t)strtol(read_soon(dir, "child", &text), NULL, 10);
    assert_int_equal(kill(child, 0), 0);
    supervisor_signal(&s, 0, SIGKILL);
    const int wait_status = reap_soon(&s, 0);
    assert_true(WIFSIGNALED(wait_status) && WTERMSIG(wait_status) == SIGKILL);
    char buf[96];
    assert_string_equal(supervisor_describe(wait_status, buf, sizeof buf),
                        "mpirun was killed by signal 9");
    char proc[64];
    for (int tries = 0; tries < 5000; tries++) { // a zombie of init's is as good as gone
        snprintf(proc, sizeof proc, "/proc/%d/stat", (int)child);
        FILE *file = fopen(proc, "r");
        char stat[256] = "";
        if (file == NULL || fgets(stat, sizeof stat, file) == NULL || strstr(stat, ") Z") != NULL) {
            if (file != NULL) {
                fclose(file);
            }
            break;
        }
        fclose(file);
        assert_true(tries < 4999);
        usleep(1000);
    }
    bytes_destroy(&text);
    supervisor_destroy(&s);
    test_tmpdir_remove(dir);
}

static void test_supervisor_explains_exits(void **state)
{
    (void)state;
    char buf[96];
    int code = 0;
    assert_string_equal(supervisor_describe(137 << 8, buf, sizeof buf),
                        "a rank was killed by signal 9");
    assert_string_equal(supervisor_describe(1 << 8, buf, sizeof buf), "mpirun exited with code 1");
    assert_true(supervisor_is_permanent(65 << 8, &code));
    assert_int_equal(code, STATUS_DATA_LOSS);
    assert_false(supervisor_is_permanent(1 << 8, &code));
    assert_false(supervisor_is_permanent(SIGKILL, &code));
}

// ---- the core with a script in mpirun's place ----

static void start_with_script(struct bench *b, const char *text, char script[TEST_PATH_BYTES])
{
    bench_init(b);
    assert_int_equal(setenv("KVASIR_TEST_DIR", b->dir, 1), 0);
    write_script(b->dir, text, script);
    b->config.launcher = CONFIG_TABLE_LAUNCHER_MPIRUN;
    b->config.mpirun = script;
    b->config.worker = "/bin/true";
    bench_start(b);
}

static void test_supervisor_group_attaches_and_is_started_again(void **state)
{
    (void)state;
    struct bench b;
    char script[TEST_PATH_BYTES];
    start_with_script(
        &b, "#!/bin/sh\nprintf '%s\\n' \"$*\" >> \"$KVASIR_TEST_DIR/args\"\nexec sleep 60\n",
        script);
    struct bytes text;
    bytes_init(&text, 1 << 20);
    assert_non_null(strstr(read_soon(b.dir, "args", &text), "--group 0 --generation 1"));
    // A stale one is refused, the expected one is taken.
    struct fake_worker *stale = fake_worker_new(
        &(struct fake_worker_options){.address = b.address, .has_group = true, .generation = 9});
    assert_status_says(fake_worker_wait_end(stale), STATUS_FAILED_PRECONDITION,
                       "generation 9: stale, now is generation 1");
    fake_worker_free(stale);
    struct fake_worker *worker =
        bench_worker(&b, &(struct fake_worker_options){.has_group = true, .generation = 1});
    const uint64_t begin_ns = clock_now_ns(clock_system());
    fake_worker_kill(worker); // its mpirun is ended, and started again
    for (int tries = 0; strstr(read_soon(b.dir, "args", &text), "--generation 2") == NULL;
         tries++) {
        assert_true(tries < 5000);
        usleep(1000);
    }
    assert_true(clock_now_ns(clock_system()) - begin_ns < 3 * NS_PER_S);
    fake_worker_free(worker);
    worker = fake_worker_new(
        &(struct fake_worker_options){.address = b.address, .has_group = true, .generation = 2});
    struct rpc_channel *channel = stream_channel(b.address);
    const struct wire_generate_request request = stream_request("hello", 1, 3);
    struct arena arena;
    struct wire_complete_response m;
    arena_init(&arena, 1 << 20);
    status_t s;
    for (int tries = 0; (s = stream_complete(channel, &request, &arena, &m)).code != STATUS_OK;
         tries++) {
        assert_status_code(s, STATUS_UNAVAILABLE);
        assert_true(tries < 2000);
        usleep(1000);
    }
    arena_destroy(&arena);
    rpc_channel_free(channel);
    coordinator_stop(b.coordinator); // the script does not end by itself: it is signalled
    bench_wait_stopped(&b);
    assert_status_ok(coordinator_result(b.coordinator));
    fake_worker_free(worker);
    bytes_destroy(&text);
    bench_stop(&b);
}

static void test_supervisor_bad_model_ends_the_coordinator(void **state)
{
    (void)state;
    struct bench b;
    char script[TEST_PATH_BYTES];
    start_with_script(&b, "#!/bin/sh\nsleep 0.3\nexit 65\n", script);
    struct fake_worker *worker = fake_worker_new(&(struct fake_worker_options){
        .address = b.address,
        .has_group = true,
        .generation = 1,
        .fail = status_errorf(STATUS_DATA_LOSS, "model.safetensors: truncated")});
    bench_wait_stopped(&b);
    assert_status_says(coordinator_result(b.coordinator), STATUS_DATA_LOSS,
                       "model.safetensors: truncated");
    fake_worker_free(worker);
    bench_stop(&b);
}

static void test_supervisor_exit_without_a_word_ends_the_coordinator(void **state)
{
    (void)state;
    struct bench b;
    char script[TEST_PATH_BYTES];
    start_with_script(&b, "#!/bin/sh\nexit 64\n", script);
    bench_wait_stopped(&b);
    assert_status_says(coordinator_result(b.coordinator), STATUS_INVALID_ARGUMENT,
                       "worker group 0: mpirun exited with code 64");
    bench_stop(&b);
}

static void test_supervisor_gives_up_on_a_group_that_never_calls(void **state)
{
    (void)state;
    struct bench b;
    char script[TEST_PATH_BYTES];
    start_with_script(&b, "#!/bin/sh\necho x >> \"$KVASIR_TEST_DIR/starts\"\nexit 1\n", script);
    bench_wait_stopped(&b);
    assert_status_says(coordinator_result(b.coordinator), STATUS_UNAVAILABLE,
                       "mpirun exited with code 1, 3 times in a row");
    struct bytes text;
    bytes_init(&text, 1 << 20);
    assert_string_equal(read_soon(b.dir, "starts", &text), "x\nx\nx\n");
    bytes_destroy(&text);
    bench_stop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_supervisor_passes_arguments_and_environment),
        cmocka_unit_test(test_supervisor_adds_the_users_arguments),
        cmocka_unit_test(test_supervisor_says_when_mpirun_is_missing),
        cmocka_unit_test(test_supervisor_signals_the_whole_process_group),
        cmocka_unit_test(test_supervisor_explains_exits),
        cmocka_unit_test(test_supervisor_group_attaches_and_is_started_again),
        cmocka_unit_test(test_supervisor_bad_model_ends_the_coordinator),
        cmocka_unit_test(test_supervisor_exit_without_a_word_ends_the_coordinator),
        cmocka_unit_test(test_supervisor_gives_up_on_a_group_that_never_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

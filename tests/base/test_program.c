#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/program.h"

static void test_program_path_is_beside_this_program(void **state)
{
    (void)state;
    unsetenv("KVASIR_PREFIX");
    char path[4096];
    assert_status_ok(program_path("test_program", path, sizeof path));
    char *self = realpath("/proc/self/exe", NULL);
    assert_non_null(self);
    assert_string_equal(path, self);
    free(self);
}

static void test_program_path_follows_the_launcher(void **state)
{
    (void)state;
    char path[64];
    assert_int_equal(setenv("KVASIR_PREFIX", "/opt/kvasir", 1), 0);
    assert_status_ok(program_path("kvasir-worker", path, sizeof path));
    assert_string_equal(path, "/opt/kvasir/bin/kvasir-worker");
    assert_int_equal(setenv("KVASIR_PREFIX", "", 1), 0);
    char self_dir[4096];
    assert_status_ok(program_dir(self_dir, sizeof self_dir));
    assert_null(strstr(self_dir, "/opt/kvasir"));
    unsetenv("KVASIR_PREFIX");
}

static void test_program_dir_refuses_what_does_not_fit(void **state)
{
    (void)state;
    char path[4];
    unsetenv("KVASIR_PREFIX");
    assert_status_code(program_dir(path, sizeof path), STATUS_INVALID_ARGUMENT);
    assert_int_equal(setenv("KVASIR_PREFIX", "/opt/kvasir", 1), 0);
    assert_status_code(program_dir(path, sizeof path), STATUS_INVALID_ARGUMENT);
    unsetenv("KVASIR_PREFIX");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_program_path_is_beside_this_program),
        cmocka_unit_test(test_program_path_follows_the_launcher),
        cmocka_unit_test(test_program_dir_refuses_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

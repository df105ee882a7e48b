#include <stdlib.h>
#include <string.h>

#include "kernels/backend_plugin.h"
#include "tests/support/test.h"

static void test_backend_load_cpu_is_always_there(void **state)
{
    (void)state;
    const struct backend *backend = NULL;
    assert_status_ok(backend_load("cpu", &backend));
    assert_ptr_equal(backend, backend_cpu());
}

static void test_backend_load_says_where_it_looked(void **state)
{
    (void)state;
    const struct backend *backend = NULL;
    assert_int_equal(unsetenv("KVASIR_PLUGIN_PATH"), 0);
    assert_status_says(backend_load("absent", &backend), STATUS_UNAVAILABLE,
                       "no kvasir-absent.so in ");
    assert_status_says(backend_load("absent", &backend), STATUS_UNAVAILABLE, "KVASIR_PLUGIN_PATH");
    assert_int_equal(setenv("KVASIR_PLUGIN_PATH", "/nowhere/at/all", 1), 0);
    assert_status_says(backend_load("absent", &backend), STATUS_UNAVAILABLE, "or /nowhere/at/all");
    assert_null(backend);
}

static void test_backend_load_refuses_what_is_no_library(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES], path[TEST_PATH_BYTES + 32];
    const struct backend *backend = NULL;
    test_tmpdir(dir);
    (void)snprintf(path, sizeof path, "%s/kvasir-broken.so", dir);
    test_write_file(path, "not a library", 13);
    assert_int_equal(setenv("KVASIR_PLUGIN_PATH", dir, 1), 0);
    assert_status_says(backend_load("broken", &backend), STATUS_UNAVAILABLE, "kvasir-broken.so");
    assert_null(backend);
    test_tmpdir_remove(dir);
}

/* other_plugin.c beside this program has the right names, and knows no ABI. */
static void test_backend_load_refuses_another_version(void **state)
{
    (void)state;
    const struct backend *backend = NULL;
    assert_status_says(backend_load("other", &backend), STATUS_UNAVAILABLE, "another version");
    assert_null(backend);
}

/* With a device: its table. Without: what is missing, in words. */
static void test_backend_load_cuda_or_the_reason(void **state)
{
    (void)state;
    const struct backend *backend = NULL;
    const char *const built = getenv("KVASIR_TEST_PLUGIN");
    assert_int_equal(unsetenv("KVASIR_PLUGIN_PATH"), 0);
    const status_t s = backend_load("cuda", &backend);
    if (status_is_ok(&s)) {
        assert_string_equal(backend->name, "cuda");
        assert_int_equal(backend->activation, DTYPE_BF16);
        return;
    }
    assert_null(backend);
    print_message("%s\n", s.msg);
    // Where the plugin is built, the driver is what is missing.
    assert_status_says(s, STATUS_UNAVAILABLE, built != NULL ? "no CUDA d" : "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backend_load_cpu_is_always_there),
        cmocka_unit_test(test_backend_load_says_where_it_looked),
        cmocka_unit_test(test_backend_load_refuses_what_is_no_library),
        cmocka_unit_test(test_backend_load_refuses_another_version),
        cmocka_unit_test(test_backend_load_cuda_or_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

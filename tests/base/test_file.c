#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

struct fixture {
    char dir[TEST_PATH_BYTES];
    char path[TEST_PATH_BYTES + 16];
    struct bytes content;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    test_tmpdir(f->dir);
    assert_status_ok(file_join(f->path, sizeof f->path, f->dir, "file"));
    bytes_init(&f->content, 1 << 20);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    bytes_destroy(&f->content);
    test_tmpdir_remove(f->dir);
    free(f);
    return 0;
}

static void test_file_read_gives_every_byte(void **state)
{
    struct fixture *f = *state;
    // Sizes around the reader's own buffer.
    static const size_t sizes[] = {0, 1, 65535, 65536, 65537, 200001};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t *data = malloc(sizes[i] + 1);
        assert_non_null(data);
        for (size_t at = 0; at < sizes[i]; at++) {
            data[at] = (uint8_t)test_random_u64();
        }
        test_write_file(f->path, data, sizes[i]);
        bytes_clear(&f->content);
        assert_status_ok(file_read(f->path, sizes[i], &f->content));
        assert_int_equal(f->content.size, sizes[i]);
        assert_int_equal(memcmp(f->content.data, data, sizes[i]), 0);
        free(data);
    }
}

static void test_file_read_appends(void **state)
{
    struct fixture *f = *state;
    test_write_file(f->path, "world", 5);
    assert_status_ok(bytes_append_str(&f->content, "hello "));
    assert_status_ok(file_read(f->path, 100, &f->content));
    assert_int_equal(f->content.size, 11);
    assert_memory_equal(f->content.data, "hello world", 11);
}

static void test_file_read_refuses_what_is_too_large(void **state)
{
    struct fixture *f = *state;
    test_write_file(f->path, "123456", 6);
    assert_status_says(file_read(f->path, 5, &f->content), STATUS_DATA_LOSS, "6 bytes, limit 5");
    assert_int_equal(f->content.size, 0);

    // A limit of the buffer below that of the caller is an error too, not an overrun.
    struct bytes small;
    bytes_init(&small, 3);
    assert_status_code(file_read(f->path, 100, &small), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(small.size, 0);
    bytes_destroy(&small);
}

static void test_file_read_names_a_missing_file(void **state)
{
    struct fixture *f = *state;
    assert_status_says(file_read(f->path, 5, &f->content), STATUS_NOT_FOUND, f->path);
    char below[TEST_PATH_BYTES + 32];
    test_write_file(f->path, "x", 1);
    assert_status_ok(file_join(below, sizeof below, f->path, "config.json"));
    assert_status_code(file_read(below, 5, &f->content), STATUS_NOT_FOUND);
}

static void test_file_read_refuses_what_is_no_file(void **state)
{
    struct fixture *f = *state;
    assert_status_says(file_read(f->dir, 100, &f->content), STATUS_DATA_LOSS, "is a directory");
    assert_int_equal(mkfifo(f->path, 0600), 0);
    assert_status_says(file_read(f->path, 100, &f->content), STATUS_DATA_LOSS, "is a FIFO");
    assert_status_says(file_read("/dev/null", 100, &f->content), STATUS_DATA_LOSS, "is a device");
}

static void test_file_read_refuses_a_loop_of_links(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(symlink("file", f->path), 0);
    assert_status_code(file_read(f->path, 100, &f->content), STATUS_DATA_LOSS);
}

static void test_file_read_respects_permission(void **state)
{
    struct fixture *f = *state;
    if (geteuid() == 0) {
        skip(); // root may read everything
    }
    test_write_file(f->path, "x", 1);
    assert_int_equal(chmod(f->path, 0), 0);
    assert_status_code(file_read(f->path, 100, &f->content), STATUS_PERMISSION_DENIED);
}

static void test_file_join_joins_or_refuses(void **state)
{
    (void)state;
    char buf[8];
    assert_status_ok(file_join(buf, sizeof buf, "abc", "def"));
    assert_string_equal(buf, "abc/def");
    assert_status_ok(file_join(buf, sizeof buf, "abc/", "def"));
    assert_string_equal(buf, "abc/def");
    assert_status_code(file_join(buf, sizeof buf, "abcd", "def"), STATUS_INVALID_ARGUMENT);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_file_read_gives_every_byte, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_read_appends, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_read_refuses_what_is_too_large, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_read_names_a_missing_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_read_refuses_what_is_no_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_read_refuses_a_loop_of_links, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_read_respects_permission, setup, teardown),
        cmocka_unit_test(test_file_join_joins_or_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

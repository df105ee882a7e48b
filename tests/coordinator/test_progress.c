/*
 * test_progress.c - what a person sees while weights are loaded
 */
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "coordinator/progress.h"
#include "tests/support/test.h"

static size_t read_back(FILE *file, char *text, size_t size)
{
    rewind(file);
    const size_t n = fread(text, 1, size - 1, file);
    text[n] = '\0';
    return n;
}

static void test_progress_says_each_tenth_once_after_a_second(void **state)
{
    (void)state;
    char text[4096];
    FILE *file = tmpfile();
    struct progress p;
    assert_non_null(file);
    progress_begin(&p, file, 5 * NS_PER_S);
    for (uint64_t percent = 0; percent <= 100; percent++) {
        progress_show(&p, 3, percent * 20000000, 2000000000,
                      5 * NS_PER_S + percent * NS_PER_S / 25);
    }
    progress_end(&p);
    (void)read_back(file, text, sizeof text);
    int n_lines = 0;
    for (const char *at = text; (at = strchr(at, '\n')) != NULL; at++) {
        n_lines++;
    }
    assert_int_equal(n_lines, 9); // 25 % is reached after one second, then 30, 40 .. 100 %
    assert_non_null(strstr(text, "group 3: loading  50 %, 1.00 of 2.00 GB, 0.50 GB/s\n"));
    assert_null(strchr(text, '\r')); // a file is no terminal
    fclose(file);
}

static void test_progress_is_silent_when_quick(void **state)
{
    (void)state;
    char text[64];
    FILE *file = tmpfile();
    struct progress p;
    assert_non_null(file);
    progress_begin(&p, file, 0);
    progress_show(&p, 0, 50, 100, NS_PER_S / 2);
    progress_show(&p, 0, 100, 0, 2 * NS_PER_S); // a total that is not known yet
    progress_end(&p);
    assert_int_equal(read_back(file, text, sizeof text), 0);
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_progress_says_each_tenth_once_after_a_second),
        cmocka_unit_test(test_progress_is_silent_when_quick),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

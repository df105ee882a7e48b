#include "tests/support/test.h"

#include <string.h>

#include "base/json_limits.h"

static status_t check(const char *text)
{
    static const struct json_limits limits = {.max_depth = 3, .max_containers = 4, .max_values = 8};
    return json_limits_check(text, strlen(text), &limits);
}

static void test_json_limits_accept_what_is_at_them(void **state)
{
    (void)state;
    assert_status_ok(check(""));
    assert_status_ok(check("{\"a\": [[1]]}"));
    assert_status_ok(check("[[], [], []]"));
    assert_status_ok(check("[1, 2, 3, 4, 5, 6, 7, 8]"));
}

static void test_json_limits_name_what_is_beyond_them(void **state)
{
    (void)state;
    assert_status_says(check("[[[[]]]]"), STATUS_DATA_LOSS, "deeper than 3 at byte 4");
    assert_status_says(check("[[], [], [], []]"), STATUS_DATA_LOSS,
                       "more than 4 objects and arrays");
    assert_status_says(check("[1, 2, 3, 4, 5, 6, 7, 8, 9]"), STATUS_DATA_LOSS,
                       "more than 8 values");
}

/* Brackets and commas in strings are text, also behind an escaped quote. */
static void test_json_limits_leave_strings_alone(void **state)
{
    (void)state;
    assert_status_ok(check("[\"[[[[[[,,,,,,,,,,\", \"\\\"[[[[[[,,,,,,,,\"]"));
    assert_status_says(check("[\"\\\\\", [[[]]]]"), STATUS_DATA_LOSS, "deeper than 3");
    assert_status_ok(check("\"\\"));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_limits_accept_what_is_at_them),
        cmocka_unit_test(test_json_limits_name_what_is_beyond_them),
        cmocka_unit_test(test_json_limits_leave_strings_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

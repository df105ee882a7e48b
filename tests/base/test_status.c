#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

static void test_status_ok_is_empty(void **state)
{
    (void)state;
    const status_t s = status_ok();
    assert_true(status_is_ok(&s));
    assert_string_equal(s.msg, "");
    assert_int_equal(status_exit_code(&s), 0);
}

static void test_status_errorf_formats(void **state)
{
    (void)state;
    assert_status_says(status_errorf(STATUS_RESOURCE_EXHAUSTED, "need %d blocks, %d free", 40, 12),
                       STATUS_RESOURCE_EXHAUSTED, "need 40 blocks, 12 free");
}

static void test_status_errorf_is_one_line(void **state)
{
    (void)state;
    const status_t s = status_errorf(STATUS_NOT_FOUND, "%s", "a\nb\x1b[2Jc\td");
    assert_string_equal(s.msg, "a b [2Jc d");
}

static void test_status_errorf_cuts_at_a_character(void **state)
{
    (void)state;
    // Every alignment of three-byte characters against the end of the message.
    for (size_t pad = 0; pad < 3; pad++) {
        char text[900] = "";
        memset(text, 'x', pad);
        for (size_t i = pad; i + 3 < sizeof text; i += 3) {
            memcpy(text + i, "\xE2\x82\xAC", 4);
        }
        const status_t s = status_errorf(STATUS_UNKNOWN, "%s", text);
        const size_t size = strlen(s.msg);
        assert_true(size < STATUS_MSG_BYTES && size + 4 > STATUS_MSG_BYTES - 3);
        assert_string_equal(s.msg + size - 3, "...");
        assert_true(utf8_is_valid((const uint8_t *)s.msg, size));
    }
}

static void test_status_errorf_fills_the_message_exactly(void **state)
{
    (void)state;
    char text[STATUS_MSG_BYTES + 1];
    memset(text, 'y', sizeof text);
    text[STATUS_MSG_BYTES - 1] = '\0';
    const status_t fits = status_errorf(STATUS_UNKNOWN, "%s", text);
    assert_string_equal(fits.msg, text);

    text[STATUS_MSG_BYTES - 1] = 'y';
    text[STATUS_MSG_BYTES] = '\0';
    const status_t cut = status_errorf(STATUS_UNKNOWN, "%s", text);
    assert_int_equal(strlen(cut.msg), STATUS_MSG_BYTES - 1);
    assert_string_equal(cut.msg + STATUS_MSG_BYTES - 4, "...");
}

static void test_status_wrapf_puts_context_in_front(void **state)
{
    (void)state;
    const status_t s = status_errorf(STATUS_DATA_LOSS, "shape is empty");
    assert_status_says(status_wrapf(status_wrapf(s, "tensor %s", "w"), "load layer %d", 3),
                       STATUS_DATA_LOSS, "load layer 3: tensor w: shape is empty");
}

static void test_status_wrapf_keeps_ok(void **state)
{
    (void)state;
    assert_status_ok(status_wrapf(status_ok(), "load layer %d", 3));
}

static void test_status_wrapf_cuts_the_far_end(void **state)
{
    (void)state;
    status_t s = status_errorf(STATUS_INTERNAL, "root");
    for (int i = 0; i < 200; i++) {
        s = status_wrapf(s, "context %d", i);
    }
    assert_memory_equal(s.msg, "context 199: context 198: ", 26);
    assert_string_equal(s.msg + strlen(s.msg) - 3, "...");
}

static void test_status_code_name_knows_all(void **state)
{
    (void)state;
    assert_string_equal(status_code_name(STATUS_OK), "OK");
    assert_string_equal(status_code_name(STATUS_INVALID_ARGUMENT), "INVALID_ARGUMENT");
    assert_string_equal(status_code_name(STATUS_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(status_code_name(17), "UNKNOWN");
    assert_string_equal(status_code_name(-1), "UNKNOWN");
}

static void test_status_exit_codes_are_sysexits(void **state)
{
    (void)state;

    static const struct {
        int code, exit_code;
    } rows[] = {
        {STATUS_INVALID_ARGUMENT, 64},
        {STATUS_DATA_LOSS, 65},
        {STATUS_NOT_FOUND, 65},
        {STATUS_UNAVAILABLE, 69},
        {STATUS_UNIMPLEMENTED, 69},
        {STATUS_INTERNAL, 70},
        {STATUS_RESOURCE_EXHAUSTED, 75},
        {STATUS_DEADLINE_EXCEEDED, 75},
        {STATUS_PERMISSION_DENIED, 77},
        {STATUS_FAILED_PRECONDITION, 78},
        {999, 70},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const status_t s = status_errorf(rows[i].code, "x");
        assert_int_equal(status_exit_code(&s), rows[i].exit_code);
    }
}

static char *printed(status_t s)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    status_print(out, &s);
    fclose(out);
    return text;
}

static void test_status_print_shows_the_fix_on_its_own_line(void **state)
{
    (void)state;
    char *text = printed(
        status_errorf(STATUS_UNAVAILABLE, "port 1 is taken" STATUS_FIX "use %s", "--listen"));
    assert_string_equal(text, "error: port 1 is taken\n  fix: use --listen\n");
    free(text);

    text = printed(status_errorf(STATUS_UNAVAILABLE, "no route"));
    assert_string_equal(text, "error: no route\n");
    free(text);
}

static status_t fail_at(int step, int *undone_out)
{
    status_t s;
    *undone_out = 0;
    TRY(step == 0 ? status_errorf(STATUS_ABORTED, "step 0") : status_ok());
    TRY_GOTO(s, step == 1 ? status_errorf(STATUS_ABORTED, "step 1") : status_ok(), undo);
    return status_ok();
undo:
    *undone_out = 1;
    return s;
}

static void test_status_try_leaves_at_the_first_failure(void **state)
{
    (void)state;
    int undone;
    assert_status_says(fail_at(0, &undone), STATUS_ABORTED, "step 0");
    assert_int_equal(undone, 0);
    assert_status_says(fail_at(1, &undone), STATUS_ABORTED, "step 1");
    assert_int_equal(undone, 1);
    assert_status_ok(fail_at(2, &undone));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_ok_is_empty),
        cmocka_unit_test(test_status_errorf_formats),
        cmocka_unit_test(test_status_errorf_is_one_line),
        cmocka_unit_test(test_status_errorf_cuts_at_a_character),
        cmocka_unit_test(test_status_errorf_fills_the_message_exactly),
        cmocka_unit_test(test_status_wrapf_puts_context_in_front),
        cmocka_unit_test(test_status_wrapf_keeps_ok),
        cmocka_unit_test(test_status_wrapf_cuts_the_far_end),
        cmocka_unit_test(test_status_code_name_knows_all),
        cmocka_unit_test(test_status_exit_codes_are_sysexits),
        cmocka_unit_test(test_status_print_shows_the_fix_on_its_own_line),
        cmocka_unit_test(test_status_try_leaves_at_the_first_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

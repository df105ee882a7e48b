#include "tests/support/test.h"

#include <string.h>
#include <unistd.h>

#include "base/log.h"

struct capture {
    int fds[2];
    char text[8192];
};

static log_t capture_open(struct capture *c, int level)
{
    assert_int_equal(pipe(c->fds), 0);
    return (log_t){.fd = c->fds[1], .level = level, .rank = -1, .module = "test"};
}

static const char *capture_close(struct capture *c)
{
    close(c->fds[1]);
    size_t size = 0;
    ssize_t n;
    while ((n = read(c->fds[0], c->text + size, sizeof c->text - 1 - size)) > 0) {
        size += (size_t)n;
    }
    c->text[size] = '\0';
    close(c->fds[0]);
    return c->text;
}

static void test_log_write_is_one_logfmt_line(void **state)
{
    (void)state;
    struct capture c;
    log_t log = capture_open(&c, LOG_INFO);
    log.rank = 3;
    log_write(&log, LOG_WARN, "group ready", "group=%d ms=%d", 1, 250);
    const char *line = capture_close(&c);
    // ts=2026-01-02T03:04:05.678Z
    assert_memory_equal(line, "ts=2", 4);
    assert_int_equal(line[13], 'T');
    assert_int_equal(line[26], 'Z');
    assert_string_equal(line + 27,
                        " level=warn module=test rank=3 event=\"group ready\" group=1 ms=250\n");
}

static void test_log_write_without_rank_and_fields(void **state)
{
    (void)state;
    struct capture c;
    const log_t log = capture_open(&c, LOG_TRACE);
    log_write(&log, LOG_TRACE, "step", "%s", "");
    log_write(&log, LOG_INFO, "stop", "n=%d", 1);
    const char *text = capture_close(&c);
    assert_non_null(strstr(text, "Z level=trace module=test event=\"step\""));
    assert_non_null(strstr(text, "Z level=info module=test event=\"stop\" n=1\n"));
}

static void test_log_write_drops_by_level_and_descriptor(void **state)
{
    (void)state;
    struct capture c;
    const log_t log = capture_open(&c, LOG_WARN);
    log_write(&log, LOG_INFO, "too fine", "n=%d", 1);
    log_t none = log;
    none.fd = -1;
    log_write(&none, LOG_ERROR, "nowhere", "n=%d", 1);
    assert_string_equal(capture_close(&c), "");
}

static void test_log_write_cannot_be_split_by_a_value(void **state)
{
    (void)state;
    struct capture c;
    const log_t log = capture_open(&c, LOG_INFO);
    log_write(&log, LOG_INFO, "x\ny", "name=%s", "a\nts=forged\x1b");
    const char *text = capture_close(&c);
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_null(strchr(text, '\x1b'));
    assert_non_null(strstr(text, "event=\"x\\ny\""));
}

static void test_log_write_cuts_a_long_line(void **state)
{
    (void)state;
    struct capture c;
    const log_t log = capture_open(&c, LOG_INFO);
    char value[6000];
    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    log_write(&log, LOG_INFO, "long", "v=%s", value);
    const char *text = capture_close(&c);
    const size_t size = strlen(text);
    assert_in_range(size, 4000, 4096);
    assert_int_equal(text[size - 1], '\n');
    assert_int_equal(text[size - 2], 'v');
}

static void test_log_quote_escapes_and_cuts(void **state)
{
    (void)state;
    char buf[32];
    assert_string_equal(log_quote("a \"b\" \\ \n\t\x01", buf, sizeof buf),
                        "\"a \\\"b\\\" \\\\ \\n\\t?\"");
    assert_string_equal(log_quote("", buf, sizeof buf), "\"\"");
    assert_string_equal(log_quote("abcdef", buf, 6), "\"abc\"");
    assert_string_equal(log_quote("ab\ncd", buf, 6), "\"ab\"");
    assert_string_equal(log_quote("a", buf, 2), "");
    // A three-byte character that does not fit is left out whole, at each length.
    assert_string_equal(log_quote("ab\xE2\x82\xAC", buf, 8), "\"ab\xE2\x82\xAC\"");
    assert_string_equal(log_quote("ab\xE2\x82\xAC", buf, 7), "\"ab\"");
    assert_string_equal(log_quote("ab\xE2\x82\xAC", buf, 6), "\"ab\"");
    assert_string_equal(log_quote("ab\xE2\x82\xAC", buf, 5), "\"ab\"");
}

static void test_log_status_has_code_and_text(void **state)
{
    (void)state;
    struct capture c;
    const log_t log = capture_open(&c, LOG_INFO);
    const status_t s = status_errorf(STATUS_DATA_LOSS, "tensor \"w\" is short");
    log_status(&log, LOG_ERROR, "load failed", &s);
    const char *text = capture_close(&c);
    assert_non_null(strstr(text, "level=error module=test event=\"load failed\" code=DATA_LOSS "
                                 "err=\"tensor \\\"w\\\" is short\"\n"));
}

static void test_log_level_parse_knows_five(void **state)
{
    (void)state;
    int level = -1;
    assert_status_ok(log_level_parse("error", &level));
    assert_int_equal(level, LOG_ERROR);
    assert_status_ok(log_level_parse("trace", &level));
    assert_int_equal(level, LOG_TRACE);
    assert_status_says(log_level_parse("warning", &level), STATUS_INVALID_ARGUMENT, "debug");
    assert_int_equal(level, LOG_TRACE);
}

static void test_log_module_changes_the_name_alone(void **state)
{
    (void)state;
    const log_t parent = {.fd = 7, .level = LOG_DEBUG, .rank = 2, .module = "parent"};
    const log_t child = log_module(&parent, "child");
    assert_string_equal(child.module, "child");
    assert_int_equal(child.fd, 7);
    assert_int_equal(child.rank, 2);
    assert_string_equal(parent.module, "parent");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_log_write_is_one_logfmt_line),
        cmocka_unit_test(test_log_write_without_rank_and_fields),
        cmocka_unit_test(test_log_write_drops_by_level_and_descriptor),
        cmocka_unit_test(test_log_write_cannot_be_split_by_a_value),
        cmocka_unit_test(test_log_write_cuts_a_long_line),
        cmocka_unit_test(test_log_quote_escapes_and_cuts),
        cmocka_unit_test(test_log_status_has_code_and_text),
        cmocka_unit_test(test_log_level_parse_knows_five),
        cmocka_unit_test(test_log_module_changes_the_name_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

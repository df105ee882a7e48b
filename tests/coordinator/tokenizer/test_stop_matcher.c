#include "tests/support/test.h"

#include <string.h>

#include "coordinator/tokenizer/stop_matcher.h"

#define MAX_STRINGS 5
#define MAX_TEXT    64

/* What the definition says, by trying every end and every string. */
struct answer {
    int hit;     /* -1: none */
    size_t size; /* of the text shown */
};

static struct answer search(const char *const *strings, size_t n, const char *text, size_t size,
                            bool include)
{
    for (size_t end = 1; end <= size; end++) {
        struct answer best = {.hit = -1};
        size_t longest = 0;
        for (size_t i = 0; i < n; i++) {
            const size_t length = strlen(strings[i]);
            if (length <= end && length > longest &&
                memcmp(text + end - length, strings[i], length) == 0) {
                longest = length;
                best = (struct answer){.hit = (int)i, .size = include ? end : end - length};
            }
        }
        if (best.hit >= 0) {
            return best;
        }
    }
    return (struct answer){.hit = -1, .size = size};
}

/* The longest suffix of the text that begins a string: what must not be shown yet. */
static size_t held_back(const char *const *strings, size_t n, const char *text, size_t size)
{
    for (size_t held = size; held > 0; held--) {
        for (size_t i = 0; i < n; i++) {
            if (strlen(strings[i]) > held && memcmp(strings[i], text + size - held, held) == 0) {
                return held;
            }
        }
    }
    return 0;
}

static void random_string(char *out, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        out[i] = (char)('a' + test_random_below(2));
    }
    out[size] = '\0';
}

struct strings {
    const char *list[MAX_STRINGS];
    size_t n;
};

/* Pushes text in random pieces, checking after each that everything certain has been shown. */
static int push_in_pieces(struct stop_matcher *m, const struct strings *strings, const char *text,
                          size_t size, bool include, struct bytes *out)
{
    size_t at = 0;
    while (at < size) {
        const size_t piece = test_random_below(size - at + 1);
        int hit = -2;
        assert_status_ok(stop_matcher_push(m, text + at, piece, include, out, &hit));
        at += piece;
        if (hit >= 0) {
            return hit;
        }
        assert_int_equal(hit, -1);
        assert_int_equal(out->size, at - held_back(strings->list, strings->n, text, at));
    }
    assert_status_ok(stop_matcher_finish(m, out));
    return -1;
}

static void test_stop_matcher_agrees_with_a_plain_search(void **state)
{
    (void)state;
    for (int round = 0; round < 20000; round++) {
        char storage[MAX_STRINGS][8];
        char text[MAX_TEXT + 1];
        struct strings strings = {.n = test_random_below(MAX_STRINGS + 1)};
        for (size_t i = 0; i < strings.n; i++) {
            random_string(storage[i], 1 + test_random_below(7));
            strings.list[i] = storage[i];
        }
        const size_t size = test_random_below(MAX_TEXT);
        random_string(text, size);
        const bool include = test_random_below(2) == 0;
        const struct answer want = search(strings.list, strings.n, text, size, include);
        struct stop_matcher *m = NULL;
        struct bytes out;
        bytes_init(&out, (size_t)2 * MAX_TEXT);
        assert_status_ok(stop_matcher_new(strings.list, strings.n, &m));
        assert_int_equal(push_in_pieces(m, &strings, text, size, include, &out), want.hit);
        assert_int_equal(out.size, want.size);
        if (want.size > 0) {
            assert_memory_equal(out.data, text, want.size);
        }
        bytes_destroy(&out);
        stop_matcher_free(m);
    }
}

static void test_stop_matcher_takes_nothing_after_a_hit(void **state)
{
    (void)state;
    static const char *const strings[] = {"\n\n", "\u00e9nd"};
    struct stop_matcher *m = NULL;
    struct bytes out;
    int hit;
    bytes_init(&out, 100);
    assert_status_ok(stop_matcher_new(strings, 2, &m));
    assert_status_ok(stop_matcher_push(m, "a\xC3\xA9n", 4, false, &out, &hit));
    assert_int_equal(hit, -1);
    assert_int_equal(out.size, 1);
    assert_status_ok(stop_matcher_push(m, "d rest", 6, true, &out, &hit));
    assert_int_equal(hit, 1);
    assert_int_equal(out.size, 5);
    assert_status_code(stop_matcher_push(m, "x", 1, true, &out, &hit), STATUS_FAILED_PRECONDITION);
    assert_status_ok(stop_matcher_finish(m, &out));
    assert_int_equal(out.size, 5);
    bytes_destroy(&out);
    stop_matcher_free(m);
}

static void test_stop_matcher_refuses_empty_strings(void **state)
{
    (void)state;
    static const char *const strings[] = {"a", ""};
    struct stop_matcher *m = NULL;
    assert_status_says(stop_matcher_new(strings, 2, &m), STATUS_INVALID_ARGUMENT,
                       "stop string 1 is empty");
    stop_matcher_free(m);
}

/* 4 MB against a string that almost matches everywhere: quadratic work would take minutes. */
static void test_stop_matcher_is_linear(void **state)
{
    (void)state;
    char string[2001];
    memset(string, 'a', 1999);
    memcpy(string + 1999, "b", 2);
    const char *strings[] = {string};
    char text[4096];
    memset(text, 'a', sizeof text);
    struct stop_matcher *m = NULL;
    struct bytes out;
    int hit = -1;
    bytes_init(&out, (size_t)8 * 1024 * 1024);
    assert_status_ok(stop_matcher_new(strings, 1, &m));
    for (int i = 0; i < 1024; i++) {
        assert_status_ok(stop_matcher_push(m, text, sizeof text, false, &out, &hit));
        assert_int_equal(hit, -1);
    }
    assert_int_equal(out.size, sizeof text * 1024 - 1999);
    assert_status_ok(stop_matcher_push(m, "b", 1, false, &out, &hit));
    assert_int_equal(hit, 0);
    bytes_destroy(&out);
    stop_matcher_free(m);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_matcher_agrees_with_a_plain_search),
        cmocka_unit_test(test_stop_matcher_takes_nothing_after_a_hit),
        cmocka_unit_test(test_stop_matcher_refuses_empty_strings),
        cmocka_unit_test(test_stop_matcher_is_linear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

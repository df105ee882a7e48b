#include "tests/support/test.h"

#include <string.h>

#include "base/utf8.h"

#define N_CODE_POINTS 0x110000u

static bool is_surrogate(uint32_t code_point)
{
    return code_point >= 0xD800 && code_point <= 0xDFFF;
}

/* Plain comparisons: a million asserts would take seconds. */
static bool goes_round(uint32_t c)
{
    uint8_t text[4];
    const size_t size = utf8_encode(c, text);
    if (size != (c < 0x80 ? 1u : c < 0x800 ? 2u : c < 0x10000 ? 3u : 4u)) {
        return false;
    }
    if (is_surrogate(c)) {
        return utf8_valid_prefix(text, size) == 0;
    }
    size_t length = 0;
    bool right = utf8_is_valid(text, size) && utf8_decode(text, &length) == c && length == size &&
                 utf8_incomplete_suffix(text, size) == 0;
    // Every proper prefix can still be completed, and is not valid.
    for (size_t n = 1; n < size; n++) {
        right = right && utf8_incomplete_suffix(text, n) == n && utf8_valid_prefix(text, n) == 0;
    }
    return right;
}

static void test_utf8_every_code_point_goes_round(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < N_CODE_POINTS; c++) {
        if (!goes_round(c)) {
            fail_msg("U+%04X", c);
        }
    }
}

/* Reads one sequence by arithmetic alone: any length form, then the three rules of well-formedness. */
static size_t reference_sequence(const uint8_t *text, size_t size)
{
    const uint8_t lead = text[0];
    const size_t length = lead < 0x80             ? 1
                          : (lead & 0xE0) == 0xC0 ? 2
                          : (lead & 0xF0) == 0xE0 ? 3
                          : (lead & 0xF8) == 0xF0 ? 4
                                                  : 0;
    if (length == 0 || length > size) {
        return 0;
    }
    uint32_t c = length == 1 ? lead : lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
        c = c << 6 | (text[i] & 0x3Fu);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    return c >= least[length] && c < N_CODE_POINTS && !is_surrogate(c) ? length : 0;
}

static size_t reference_valid_prefix(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        const size_t n = reference_sequence(text + at, size - at);
        if (n == 0) {
            break;
        }
        at += n;
    }
    return at;
}

/* Whether some bytes after text make it one well-formed sequence: tried, not derived. */
static bool reference_completable(const uint8_t *text, size_t size)
{
    uint8_t whole[4] = {0x80, 0x80, 0x80, 0x80};
    memcpy(whole, text, size);
    for (size_t length = size + 1; length <= 4; length++) {
        for (uint32_t next = 0x80; next <= 0xBF; next++) {
            whole[size] = (uint8_t)next;
            if (reference_sequence(whole, length) == length) {
                return true;
            }
        }
    }
    return false;
}

static void test_utf8_valid_prefix_agrees_on_random_bytes(void **state)
{
    (void)state;
    // Bytes near the borders of table 3-7, so that most strings are nearly valid.
    static const uint8_t bytes[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                    0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
                                    0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xF8, 0xFF};
    for (int round = 0; round < 200000; round++) {
        uint8_t text[8];
        const size_t size = test_random_below(sizeof text + 1);
        for (size_t i = 0; i < size; i++) {
            text[i] = bytes[test_random_below(sizeof bytes)];
        }
        if (utf8_valid_prefix(text, size) != reference_valid_prefix(text, size)) {
            fail_msg("round %d", round);
        }
    }
}

static void test_utf8_incomplete_suffix_agrees_on_all_pairs(void **state)
{
    (void)state;
    for (uint32_t first = 0; first < 256; first++) {
        const uint8_t one[1] = {(uint8_t)first};
        const bool one_completable = reference_completable(one, 1);
        assert_int_equal(utf8_incomplete_suffix(one, 1), one_completable ? 1 : 0);
        for (uint32_t second = 0; second < 256; second++) {
            const uint8_t two[2] = {(uint8_t)first, (uint8_t)second};
            const size_t want = reference_completable(two, 2)       ? 2
                                : reference_completable(two + 1, 1) ? 1
                                                                    : 0;
            assert_int_equal(utf8_incomplete_suffix(two, 2), want);
        }
    }
}

static void test_utf8_incomplete_suffix_looks_at_the_end_only(void **state)
{
    (void)state;
    const uint8_t text[] = "caf\xC3\xA9 \xF0\x9F\x98";
    assert_int_equal(utf8_incomplete_suffix(text, sizeof text - 1), 3);
    assert_int_equal(utf8_incomplete_suffix(text, 5), 0);
    assert_int_equal(utf8_incomplete_suffix(text, 4), 1);
    assert_int_equal(utf8_incomplete_suffix(text, 0), 0);
    // Bytes that nothing can mend are not "incomplete".
    assert_int_equal(utf8_incomplete_suffix((const uint8_t *)"\x80\x80\x80", 3), 0);
    assert_int_equal(utf8_incomplete_suffix((const uint8_t *)"\xED\xA0", 2), 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_every_code_point_goes_round),
        cmocka_unit_test(test_utf8_valid_prefix_agrees_on_random_bytes),
        cmocka_unit_test(test_utf8_incomplete_suffix_agrees_on_all_pairs),
        cmocka_unit_test(test_utf8_incomplete_suffix_looks_at_the_end_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

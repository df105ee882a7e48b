#include "tests/support/test.h"

#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/split.h"
#include "coordinator/tokenizer/unicode_class.h"

struct split_row {
    const char *text;
    const char *pieces; /* joined by | */
};

static void assert_splits(int pattern, const struct split_row *rows, size_t n_rows)
{
    for (size_t i = 0; i < n_rows; i++) {
        const uint8_t *text = (const uint8_t *)rows[i].text;
        size_t left = strlen(rows[i].text);
        char got[256];
        char *to = got;
        while (left > 0) {
            const size_t n = split_next(pattern, text, left);
            assert_in_range(n, 1, left);
            if (to > got) {
                *to++ = '|';
            }
            assert_true((size_t)(to - got) + n + 2 <= sizeof got);
            memcpy(to, text, n);
            to += n;
            text += n;
            left -= n;
        }
        *to = '\0';
        assert_string_equal(got, rows[i].pieces);
    }
}

#define SPLITS(pattern, rows) assert_splits((pattern), (rows), sizeof(rows) / sizeof((rows)[0]))

static void test_split_gpt2(void **state)
{
    (void)state;
    static const struct split_row rows[] = {
        {"Hello world", "Hello| world"},
        {"I'm don't we'll you've he's they're I'd",
         "I|'m| don|'t| we|'ll| you|'ve| he|'s| they|'re| I|'d"},
        {"I'M '' '", "I|'|M| ''| '"}, // contractions are lower case
        {"a  b", "a| | b"},
        {"a   b", "a|  | b"},
        {"a  ", "a|  "},
        {"a \n b", "a| \n| b"},
        {"a\n\nb", "a|\n|\n|b"}, // only U+0020 joins the word
        {"a\tb", "a|\t|b"},
        {" ", " "},
        {"  1234567", " | 1234567"},
        {"a1b2", "a|1|b|2"},
        {"x=(y+z);", "x|=(|y|+|z|);"},
        {" !'s", " !'|s"}, // the apostrophe belongs to the symbols in front of it
        {"\u00e9t\u00e9 \u4e2d\u6587\u0663", "\u00e9t\u00e9| \u4e2d\u6587|\u0663"},
        {"a\u00a0\u3000b", "a|\u00a0|\u3000|b"},
        {"e\u0301", "e|\u0301"},          // a mark is no letter
        {"\u200b\ufeff", "\u200b\ufeff"}, // neither is white space
        {"a\xC2\x85"
         "b",
         "a|\xC2\x85|b"},
    };
    SPLITS(SPLIT_GPT2, rows);
}

static void test_split_llama3(void **state)
{
    (void)state;
    static const struct split_row rows[] = {
        {"Hello world", "Hello| world"},
        {"I'M you'LL 'Tis", "I|'M| you|'LL| '|Tis"},
        {"x'\u017fx", "x|'\u017f|x"}, // the long s folds to s
        {"1234567", "123|456|7"},
        {" 1234", " |123|4"},
        {"(abc)def", "(abc|)def"}, // any one character may lead a word
        {"((abc", "((|abc"},
        {"\tabc", "\tabc"},
        {"\nabc", "\n|abc"},
        {"a!!\n\nb", "a|!!\n\n|b"},
        {"a \n \n b", "a| \n \n| b"},
        {"a  \n   b", "a|  \n|  | b"},
        {"a   b", "a|  | b"},
        {"a  ", "a|  "},
        {" \r\n", " \r\n"},
        {" !", " !"},
        {"\u00a0!", "\u00a0|!"},
        {"\u3000\u4e2d", "\u3000\u4e2d"},
        {"a\u0301b", "a|\u0301b"},
        {"'", "'"},
        {"'x", "'x"},
    };
    SPLITS(SPLIT_LLAMA3, rows);
}

static void test_split_digits(void **state)
{
    (void)state;
    static const struct split_row alone[] = {
        {"a12b", "a|1|2|b"}, {"1", "1"}, {"ab  c", "ab  c"}, {"\u00bd\u2167x", "\u00bd|\u2167|x"}};
    static const struct split_row runs[] = {{"a12b", "a|12|b"}, {"12", "12"}, {"ab c", "ab c"}};
    SPLITS(SPLIT_DIGITS, alone);
    SPLITS(SPLIT_NUMBERS, runs);
}

static void test_split_find_takes_exact_texts_only(void **state)
{
    (void)state;
    static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+"
                               "| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    static const char llama3[] =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    assert_int_equal(split_find(gpt2), SPLIT_GPT2);
    assert_int_equal(split_find(llama3), SPLIT_LLAMA3);
    assert_int_equal(split_find(""), -1);
    assert_int_equal(split_find("\\s+"), -1);
    assert_int_equal(split_find("(?i:'s|'t|'re|'ve|'m|'ll|'d)"), -1);
}

/* White_Space has 25 code points. */
static void test_split_counts_white_space(void **state)
{
    (void)state;
    int n = 0;
    for (uint32_t c = 0; c < 0x110000; c++) {
        n += unicode_class_of(c) == UNICODE_SPACE;
    }
    assert_int_equal(n, 25);
    for (uint32_t c = 0; c < 0x80; c++) {
        assert_int_equal(unicode_class_ascii[c], unicode_class_of(c));
    }
    assert_int_equal(unicode_class_of(0x1C), UNICODE_OTHER);
    assert_int_equal(unicode_class_of(0x200B), UNICODE_OTHER);
    assert_int_equal(unicode_class_of(0x16EE), UNICODE_NUMBER); // Nl
    assert_int_equal(unicode_class_of(0x2B0), UNICODE_LETTER);  // Lm
    assert_int_equal(unicode_class_of(0x903), UNICODE_OTHER);   // Mc
}

/* Pieces of random text are not empty and end between characters; all patterns, all kinds of neighbours. */
static void test_split_random_text_in_whole_characters(void **state)
{
    (void)state;
    static const uint32_t likely[] = {' ', ' ',  '\n',   '\r',   '\t',   'a',    'S',   '1',
                                      '!', '\'', 0xA0,   0x17F,  0x301,  0x4E2D, 0x663, 0x1F600,
                                      'l', 'v',  0x2028, 0x3000, 0x200B, 0x85,   'e',   'r'};
    for (int i = 0; i < 20000; i++) {
        uint8_t text[80];
        size_t size = 0;
        const uint64_t n = test_random_below(20);
        for (uint64_t k = 0; k < n; k++) {
            size += utf8_encode(likely[test_random_below(sizeof likely / sizeof likely[0])],
                                text + size);
        }
        for (int pattern = SPLIT_GPT2; pattern <= SPLIT_NUMBERS; pattern++) {
            for (size_t at = 0; at < size;) {
                const size_t length = split_next(pattern, text + at, size - at);
                assert_in_range(length, 1, size - at);
                assert_true(utf8_is_valid(text + at, length));
                at += length;
            }
        }
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_gpt2),
        cmocka_unit_test(test_split_llama3),
        cmocka_unit_test(test_split_digits),
        cmocka_unit_test(test_split_find_takes_exact_texts_only),
        cmocka_unit_test(test_split_counts_white_space),
        cmocka_unit_test(test_split_random_text_in_whole_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* A short deterministic run of fuzz_tokenizer.c: small valid files with random damage, and random texts. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

#define MAX_INPUT 16384

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const texts[] = {
    "abcd  ab'ab 12\n\n", "a\u0301b\u2581 \u00e9<s>ab</s>x", "\U0001f600abababab",
    "\xff\xfe",           "                          ab",    "<0x41>\t\u3000ab",
};

/* Words that make a damaged file likelier to mean something. */
static const char *const words[] = {
    "\"ab\"",
    "\"a b\"",
    "[\"a\", \"b\"]",
    "0",
    "5",
    "-1",
    "2147483648",
    "1e9",
    "null",
    "true",
    "{}",
    "[]",
    "\"NFC\"",
    "\"Digits\"",
    "\"ByteLevel\"",
    "\"Sequence\"",
    "\"\"",
    "\"a\"",
    "\"\\u2581\"",
    "\"type\"",
    "\"special\"",
    "\"normalized\"",
    "\"ignore_merges\": true,",
    ",",
    ":",
    "{",
    "}",
    "]",
};

static size_t splice(char *input, size_t size, size_t at, size_t removed, const char *word)
{
    const size_t length = strlen(word);
    if (at + removed > size || size - removed + length > MAX_INPUT / 2) {
        return size;
    }
    memmove(input + at + length, input + at + removed, size - at - removed);
    for (size_t i = 0; i < length; i++) {
        input[at + i] = word[i];
    }
    return size - removed + length;
}

/* One random change: a byte, a deletion, or a word put in. */
static size_t damage(char *input, size_t size)
{
    if (size == 0) {
        return 0;
    }
    const size_t at = test_random_below(size);
    switch (test_random_below(4)) {
    case 0:
        input[at] = (char)(' ' + test_random_below(95));
        return size;
    case 1:
        return splice(input, size, at, 1 + test_random_below(8), "");
    default:
        return splice(input, size, at, test_random_below(6),
                      words[test_random_below(sizeof words / sizeof words[0])]);
    }
}

static void run(const struct fixture_parts *parts, int rounds)
{
    char *json = fixture_json(parts);
    for (int i = 0; i < rounds; i++) {
        char input[MAX_INPUT];
        size_t size = strlen(json);
        assert_true(size < MAX_INPUT / 2);
        memcpy(input, json, size);
        const uint64_t changes = test_random_below(4);
        for (uint64_t k = 0; k < changes; k++) {
            size = damage(input, size);
        }
        input[size++] = '\0';
        const char *text = texts[test_random_below(sizeof texts / sizeof texts[0])];
        memcpy(input + size, text, strlen(text));
        size += strlen(text);
        if (test_random_below(4) == 0) {
            input[size - 1 - test_random_below(strlen(text))] = (char)test_random_below(256);
        }
        assert_int_equal(LLVMFuzzerTestOneInput((const uint8_t *)input, size), 0);
    }
    free(json);
}

static void test_fuzz_damaged_files(void **state)
{
    (void)state;
    const struct fixture_parts byte_level = {
        .added_tokens = "[{\"id\": 6, \"content\": \"<s>\", \"special\": true, \"rstrip\": true},"
                        " {\"id\": 7, \"content\": \"  \", \"special\": false,"
                        " \"normalized\": true, \"lstrip\": true}]",
        .normalizer = "{\"type\": \"NFC\"}",
        .pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": ["
                         "{\"type\": \"Digits\", \"individual_digits\": true},"
                         "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}]}",
        .post_processor = "{\"type\": \"TemplateProcessing\", \"single\": ["
                          "{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {\"id\": \"A\"}}],"
                          " \"special_tokens\": {\"<s>\": {\"ids\": [6]}}}"};
    run(&byte_level, 4000);
    struct fixture_parts characters = fixture_sentencepiece;
    characters.model = "{\"type\": \"BPE\", \"unk_token\": \"?\", \"fuse_unk\": true, \"vocab\":"
                       " {\"?\": 0, \"a\": 1, \"b\": 2, \"\u2581\": 3, \"ab\": 4, \"\u2581ab\": 5,"
                       " \"abab\": 6}, \"merges\": [[\"\u2581\", \"ab\"], [\"a\", \"b\"],"
                       " [\"ab\", \"ab\"]]}";
    characters.added_tokens = "[{\"id\": 7, \"content\": \"</s>\", \"special\": true}]";
    run(&characters, 4000);
}

/* Small inputs of pure noise. */
static void test_fuzz_noise(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i++) {
        uint8_t input[64];
        const size_t size = test_random_below(sizeof input);
        for (size_t k = 0; k < size; k++) {
            input[k] = (uint8_t)test_random_below(256);
        }
        assert_int_equal(LLVMFuzzerTestOneInput(input, size), 0);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuzz_damaged_files),
        cmocka_unit_test(test_fuzz_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

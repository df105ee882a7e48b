/* Files that cannot be served exactly: each is refused with the field that is to blame. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/tokenizer_json.h"
#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

struct bad_file {
    struct fixture_parts parts;
    const char *says;
};

#define MODEL(vocab, merges) "{\"vocab\": {" vocab "}, \"merges\": [" merges "]}"
#define AB                   "\"a\": 0, \"b\": 1, \"ab\": 2"

static void assert_refused(const struct bad_file *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct tokenizer *tokenizer = NULL;
        const status_t s = fixture_try(&rows[i].parts, &tokenizer);
        if (s.code != STATUS_DATA_LOSS || strstr(s.msg, rows[i].says) == NULL) {
            fail_msg("row %zu: got %s \"%s\", want \"%s\"", i, status_code_name(s.code), s.msg,
                     rows[i].says);
        }
        assert_null(tokenizer);
    }
}

#define REFUSED(rows) assert_refused((rows), sizeof(rows) / sizeof((rows)[0]))

static void test_tokenizer_json_refuses_bad_vocabularies(void **state)
{
    (void)state;
    static const struct bad_file rows[] = {
        {{.model = "null"}, "model: is null, not an object"},
        {{.model = "{\"merges\": []}"}, "vocab: is absent"},
        {{.model = MODEL("", "")}, "model.vocab: is empty"},
        {{.model = "{\"vocab\": [], \"merges\": []}"}, "vocab: is an array"},
        {{.model = MODEL("\"a\": 0, \"b\": 0", "")}, "tokens \"a\" and \"b\" have the same id 0"},
        {{.model = MODEL("\"a\": 0, \"b\": 2", "")}, "token \"b\": id 2, but the file has 2"},
        {{.model = MODEL("\"a\": 0, \"b\": 2, \"c\": 3", ""),
          .added_tokens = "[{\"id\": 0, \"content\": \"a\"}]"},
         "no token has id 1, the largest is 3"},
        {{.model = MODEL("\"a\": 0, \"b\": -1", "")}, "id -1"},
        {{.model = MODEL("\"a\": 0, \"b\": 2147483648", "")}, "id 2147483648"},
        {{.model = MODEL("\"a\": 0, \"b\": 9223372036854775807", "")}, "id 9223372036854775807"},
        {{.model = MODEL("\"a\": 0, \"b\": 99999999999999999999", "")}, "too big integer"},
        {{.model = MODEL("\"a\": 0, \"b\": 1.0", "")}, "token \"b\": the id is a number"},
        {{.model = MODEL("\"a\": 0, \"b\": \"1\"", "")}, "token \"b\": the id is a string"},
        {{.model = MODEL("\"a\": 0, \"b\": null", "")}, "token \"b\": the id is null"},
        {{.model = MODEL("\"a\": 0, \"\": 1", "")}, "the token with id 1 is empty"},
        {{.model = MODEL("\"a\": 0, \"a\": 1", "")}, "duplicate object key"},
        {{.model = MODEL("\"a\": 0, \"\\u0000\": 1", "")}, "\\u0000"},
        {{.model = MODEL("\"a\": 0, \"\\ud800\": 1", "")}, "line 1"},
        {{.model = MODEL("\"a\": 0, \"\xff\": 1", "")}, "line 1"},
    };
    REFUSED(rows);
}

static void test_tokenizer_json_refuses_bad_merges(void **state)
{
    (void)state;
    static const struct bad_file rows[] = {
        {{.model = "{\"vocab\": {" AB "}}"}, "model: merges: is absent"},
        {{.model = "{\"vocab\": {" AB "}, \"merges\": \"a b\"}"}, "merges: is a string"},
        {{.model = MODEL(AB, "\"a c\"")}, "merges[0]: token \"c\" is not in model.vocab"},
        {{.model = MODEL(AB, "\"a b\", \"b a\"")}, "merges[1]: token \"ba\" is not in"},
        {{.model = MODEL(AB, "\"a b\", \"a b\"")}, "merges[1]: repeats that of rank 0"},
        {{.model = MODEL(AB, "\"ab \"")}, "merges[0]: token \"\" is not in"},
        {{.model = MODEL(AB, "\"ab\"")}, "merges[0]: neither"},
        {{.model = MODEL(AB, "\"a b c\"")}, "merges[0]: neither"},
        {{.model = MODEL(AB, "[\"a\"]")}, "merges[0]: neither"},
        {{.model = MODEL(AB, "[\"a\", 1]")}, "merges[0]: neither"},
        {{.model = MODEL(AB, "[\"a\", \"b\", \"c\"]")}, "merges[0]: neither"},
        {{.model = MODEL(AB, "[\"a\", \"\"]")}, "merges[0]: token \"\" is not in"},
        {{.model = MODEL(AB, "7")}, "merges[0]: neither"},
        {{.model = MODEL(AB, "null")}, "merges[0]: neither"},
        // A merge that gives one of its own parts, as a cycle would need, cannot be written down.
        {{.model = MODEL("\"a\": 0, \"b\": 1", "[\"a\", \"b\"]")}, "token \"ab\" is not in"},
        {{.model = "{\"vocab\": {\"a\": 0, \"?\": 1, \"a?\": 2}, \"unk_token\": \"?\","
                   " \"merges\": [\"a ?\"]}"},
         "merges[0]: with token 1, which is no ordinary text"},
    };
    REFUSED(rows);
}

static void test_tokenizer_json_refuses_unknown_models(void **state)
{
    (void)state;
#define OPTION(option) "{\"vocab\": {\"a\": 0}, \"merges\": [], " option "}"
    static const struct bad_file rows[] = {
        {{.version = "\"2.0\""}, "version: \"2.0\""},
        {{.version = "1"}, "version: is an integer"},
        {{.model = OPTION("\"type\": \"WordPiece\"")}, "model: type \"WordPiece\""},
        {{.model = OPTION("\"type\": \"Unigram\"")}, "model: type \"Unigram\""},
        {{.model = OPTION("\"type\": 3")}, "model: type: is an integer"},
        {{.model = OPTION("\"dropout\": 0.1")}, "model: dropout"},
        {{.model = OPTION("\"dropout\": true")}, "model: dropout"},
        {{.model = OPTION("\"continuing_subword_prefix\": \"##\"")}, "continuing_subword_prefix"},
        {{.model = OPTION("\"end_of_word_suffix\": \"</w>\"")}, "end_of_word_suffix"},
        {{.model = OPTION("\"unk_token\": \"<unk>\"")}, "token \"<unk>\" is not in model.vocab"},
        {{.model = OPTION("\"unk_token\": 5")}, "unk_token: is an integer"},
        {{.model = OPTION("\"fuse_unk\": 1")}, "fuse_unk: is an integer, not a boolean"},
        {{.model = OPTION("\"ignore_merges\": \"yes\"")}, "ignore_merges: is a string"},
        {{.model = OPTION("\"byte_fallback\": true")}, "byte_fallback with ByteLevel"},
        {{.model = OPTION("\"byte_fallback\": true"), .pre_tokenizer = "null"},
         "byte_fallback without a token <0x00>"},
    };
    REFUSED(rows);
}

static void test_tokenizer_json_refuses_bad_added_tokens(void **state)
{
    (void)state;
    static const struct bad_file rows[] = {
        {{.added_tokens = "{}"}, "added_tokens: is an object"},
        {{.added_tokens = "[5]"}, "added_tokens: [0]: id: is absent"},
        {{.added_tokens = "[{\"content\": \"x\"}]"}, "[0]: id: is absent"},
        {{.added_tokens = "[{\"id\": 6}]"}, "[0]: content: is absent"},
        {{.added_tokens = "[{\"id\": 6, \"content\": \"\"}]"}, "the token with id 6 is empty"},
        {{.added_tokens = "[{\"id\": 7, \"content\": \"x\"}]"}, "id 7, but the file has 7"},
        {{.added_tokens = "[{\"id\": 2147483648, \"content\": \"x\"}]"}, "id: 2147483648"},
        {{.added_tokens = "[{\"id\": 5, \"content\": \"x\"}]"},
         "tokens \"abc\" and \"x\" have the same id 5"},
        {{.added_tokens = "[{\"id\": 6, \"content\": \"abc\"}]"},
         "token \"abc\" has the ids 5 and 6"},
        {{.added_tokens = "[{\"id\": 6, \"content\": \"x\"}, {\"id\": 7, \"content\": \"x\"}]"},
         "token \"x\" has the ids 6 and 7"},
        {{.added_tokens = "[{\"id\": 6, \"content\": \"x\", \"single_word\": true}]"},
         "added_tokens[0]: single_word"},
        {{.added_tokens = "[{\"id\": 6, \"content\": \"x\", \"special\": 1}]"},
         "added_tokens[0]: special: is an integer"},
    };
    REFUSED(rows);
}

static void test_tokenizer_json_refuses_unknown_steps(void **state)
{
    (void)state;
    static const struct bad_file rows[] = {
        {{.normalizer = "{\"type\": \"NFKC\"}"}, "normalizer: normalizer \"NFKC\""},
        {{.normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}"},
         "\"Lowercase\""},
        {{.normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Sequence\"}]}"},
         "\"Sequence\""},
        {{.normalizer = "{\"type\": \"Sequence\"}"}, "normalizers: is absent"},
        {{.normalizer = "[]"}, "normalizer: is an array"},
        {{.normalizer = "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" \"},"
                        " \"content\": \"\"}"},
         "Regex"},
        {{.normalizer = "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"},"
                        " \"content\": \"x\"}"},
         "pattern is empty"},
        {{.normalizer = "{\"type\": \"Prepend\", \"prepend\": \"0123456789abcdef\"}"},
         "prepend: 16 bytes, limit 15"},
        {{.pre_tokenizer = "{\"type\": \"Metaspace\"}"}, "pre_tokenizer: replacement: is absent"},
        {{.pre_tokenizer = "{\"type\": \"Metaspace\", \"replacement\": \"_\"}"},
         "pre_tokenizer: Metaspace replacement \"_\""},
        {{.pre_tokenizer = "{\"type\": \"Metaspace\", \"replacement\": \"\u2581\","
                           " \"prepend_scheme\": \"last\"}"},
         "pre_tokenizer: prepend_scheme \"last\""},
        {{.pre_tokenizer = "{\"type\": \"Metaspace\", \"replacement\": \"\u2581\","
                           " \"add_prefix_space\": false}"},
         "add_prefix_space: false with prepend_scheme always"},
        {{.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": ["
                           "{\"type\": \"Digits\"}, {\"type\": \"Metaspace\","
                           " \"replacement\": \"\u2581\"}]}"},
         "Metaspace with other steps"},
        {{.decoder = "{\"type\": \"Metaspace\", \"replacement\": \"\u2581\"}",
          .added_tokens = "[{\"id\": 6, \"content\": \"\u2581x\"}]"},
         "added_tokens[0]: a token with \u2581"},
        {{.pre_tokenizer = "{\"type\": 1}"}, "pre_tokenizer: type: is an integer"},
        {{.pre_tokenizer = "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"(a+)+$\"},"
                           " \"behavior\": \"Isolated\", \"invert\": false}"},
         "Split regex \"(a+)+$\""},
        {{.pre_tokenizer = "{\"type\": \"Split\", \"pattern\": {\"String\": \" \"},"
                           " \"behavior\": \"Isolated\", \"invert\": false}"},
         "Regex: is absent"},
        {{.pre_tokenizer = "{\"type\": \"Split\", \"pattern\": {\"Regex\": \"x\"},"
                           " \"behavior\": \"Removed\", \"invert\": false}"},
         "Split behavior \"Removed\""},
        {{.pre_tokenizer = "{\"type\": \"Sequence\", \"pretokenizers\": ["
                           "{\"type\": \"ByteLevel\"}, {\"type\": \"Digits\"}]}"},
         "Digits after ByteLevel"},
        {{.decoder = "null"}, "decoder: absent"},
        {{.decoder = "{\"type\": \"WordPiece\"}"}, "decoder \"WordPiece\""},
        {{.decoder = "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"},"
                     " {\"type\": \"ByteFallback\"}]}"},
         "ByteFallback after Fuse"},
        {{.decoder = "{\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}"},
         "Strip other than"},
        {{.decoder = "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"},"
                     " {\"type\": \"Strip\", \"content\": \" \", \"start\": 2, \"stop\": 0}]}"},
         "Strip other than"},
        {{.post_processor = "{\"type\": \"BertProcessing\"}"}, "post_processor \"BertProcessing\""},
        {{.post_processor = "{\"type\": \"TemplateProcessing\", \"single\": []}"},
         "without a Sequence"},
        {{.post_processor = "{\"type\": \"TemplateProcessing\", \"single\": [3]}"}, "single[0]"},
        {{.post_processor = "{\"type\": \"TemplateProcessing\", \"single\": ["
                            "{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {}}],"
                            " \"special_tokens\": {}}"},
         "<s>: is absent"},
        {{.post_processor = "{\"type\": \"TemplateProcessing\", \"single\": ["
                            "{\"SpecialToken\": {\"id\": \"<s>\"}}, {\"Sequence\": {}}],"
                            " \"special_tokens\": {\"<s>\": {\"ids\": [6]}}}"},
         "special_tokens.<s>.ids: not in the vocabulary"},
    };
    REFUSED(rows);
}

static void test_tokenizer_json_refuses_what_is_no_json(void **state)
{
    (void)state;
    static const char *const texts[] = {"",
                                        " ",
                                        "{",
                                        "[]",
                                        "1",
                                        "null",
                                        "\"x\"",
                                        "{\"a\":}",
                                        "{}x",
                                        "\xef\xbb\xbf{}",
                                        "{\"model\": {}, \"model\": {}}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct tokenizer *tokenizer = NULL;
        assert_status_code(tokenizer_json_parse(texts[i], strlen(texts[i]), &tokenizer),
                           STATUS_DATA_LOSS);
        assert_null(tokenizer);
    }
}

/* Every prefix of a good file is a bad one. */
static void test_tokenizer_json_refuses_every_truncation(void **state)
{
    (void)state;
    char *json = fixture_json(&(const struct fixture_parts){0});
    struct tokenizer *tokenizer = NULL;
    for (size_t n = 0; n < strlen(json); n++) {
        assert_status_code(tokenizer_json_parse(json, n, &tokenizer), STATUS_DATA_LOSS);
    }
    assert_status_ok(tokenizer_json_parse(json, strlen(json), &tokenizer));
    tokenizer_free(tokenizer);
    free(json);
}

static char *repeat(const char *before, const char *unit, size_t times, const char *after)
{
    const size_t size = strlen(before) + times * strlen(unit) + strlen(after) + 1;
    char *text = test_malloc(size);
    char *at = stpcpy(text, before);
    for (size_t i = 0; i < times; i++) {
        at = stpcpy(at, unit);
    }
    stpcpy(at, after);
    return text;
}

static void test_tokenizer_json_refuses_giants(void **state)
{
    (void)state;
    char *model = repeat("{\"vocab\": {\"", "x", 1000000, "\": 0}, \"merges\": []}");
    const struct bad_file token = {{.model = model}, "has 1000000 bytes, limit 16384"};
    assert_refused(&token, 1);
    test_free(model);

    model = repeat("", "[", 100000, "");
    const struct bad_file deep = {{.model = model}, "nested deeper than 16"};
    assert_refused(&deep, 1);
    test_free(model);

    model = repeat("{\"vocab\": {\"a\": 0}, \"merges\": [", "\"a a\",", 100000, "0]}");
    const struct bad_file merges = {{.model = model}, "merges[0]: token \"aa\""};
    assert_refused(&merges, 1);
    test_free(model);
}

/* A token of the largest size allowed still works. */
static void test_tokenizer_json_takes_a_long_token(void **state)
{
    (void)state;
    char *model = repeat("{\"vocab\": {\"", "x", 16384,
                         "\": 0}, \"merges\": [],"
                         " \"ignore_merges\": true}");
    struct tokenizer *tokenizer = fixture_parse(&(const struct fixture_parts){.model = model});
    char *text = repeat("", "x", 16384, "");
    struct token_list list = {0};
    assert_status_ok(tokenizer_encode(tokenizer, text, strlen(text), 0, &list));
    assert_int_equal(list.n, 1);
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
    test_free(text);
    test_free(model);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_json_refuses_bad_vocabularies),
        cmocka_unit_test(test_tokenizer_json_refuses_bad_merges),
        cmocka_unit_test(test_tokenizer_json_refuses_unknown_models),
        cmocka_unit_test(test_tokenizer_json_refuses_bad_added_tokens),
        cmocka_unit_test(test_tokenizer_json_refuses_unknown_steps),
        cmocka_unit_test(test_tokenizer_json_refuses_what_is_no_json),
        cmocka_unit_test(test_tokenizer_json_refuses_every_truncation),
        cmocka_unit_test(test_tokenizer_json_refuses_giants),
        cmocka_unit_test(test_tokenizer_json_takes_a_long_token),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

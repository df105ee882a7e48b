/* Which file of a directory the tokenizer is made from, and what is said when there is none. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "base/file.h"
#include "tests/coordinator/tokenizer/model_fixture.h"
#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

static void write_bytes(const char *dir, const char *name, const void *data, size_t size)
{
    char path[TEST_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    test_write_file(path, data, size);
}

static void write_text(const char *dir, const char *name, const char *text)
{
    write_bytes(dir, name, text, strlen(text));
}

static void assert_loads(const char *dir, const char *text, const int32_t *want, size_t n)
{
    struct tokenizer *tokenizer = NULL;
    struct token_list list = {0};
    assert_status_ok(tokenizer_load(dir, &tokenizer));
    assert_status_ok(
        tokenizer_encode(tokenizer, text, strlen(text), TOKENIZER_PARSE_SPECIAL, &list));
    assert_int_equal(list.n, n);
    assert_memory_equal(list.ids, want, n * sizeof *want);
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
}

#define LOADS(dir, text, ...)                             \
    assert_loads((dir), (text), (int32_t[]){__VA_ARGS__}, \
                 sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void assert_fails(const char *dir, int code, const char *says)
{
    struct tokenizer *tokenizer = NULL;
    assert_status_says(tokenizer_load(dir, &tokenizer), code, says);
    assert_null(tokenizer);
}

static void test_tokenizer_load_names_the_file(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    assert_fails(dir, STATUS_NOT_FOUND,
                 "none of tokenizer.json, tokenizer.model (SentencePiece BPE, or tiktoken), "
                 "vocab.json with merges.txt; fix: download");
    write_text(dir, "vocab.json", "{\"a\": 0}");
    assert_fails(dir, STATUS_NOT_FOUND, "none of tokenizer.json");
    write_text(dir, "merges.txt", "a b\n");
    assert_fails(dir, STATUS_DATA_LOSS, "merges[0]: token \"b\" is not in model.vocab");
    write_text(dir, "tokenizer.model", "x");
    assert_fails(dir, STATUS_DATA_LOSS, "tokenizer.model: line 1: ");
    write_text(dir, "tokenizer.model", "\n");
    assert_fails(dir, STATUS_DATA_LOSS, "tokenizer.model: protobuf: ");
    write_text(dir, "tokenizer.model", "");
    assert_fails(dir, STATUS_DATA_LOSS, "tokenizer.model: ");
    write_text(dir, "tokenizer.json", "{\"model\": 1}");
    assert_fails(dir, STATUS_DATA_LOSS, "tokenizer.json: ");
    test_tmpdir_remove(dir);
    tokenizer_free(NULL);
}

static void test_tokenizer_load_prefers_tokenizer_json(void **state)
{
    (void)state;
    static const struct model_piece pieces[] = {{"a", 0, 0}, {"\u2581", 0, 0}};
    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    write_text(dir, "vocab.json",
               "{\"b\": 0, \"c\": 1, \"a\": 2, \"ca\": 3, \"<|endoftext|>\": 4}");
    write_text(dir, "merges.txt", "#version: 0.2\nc a\n");
    LOADS(dir, "ca<|endoftext|>b", 3, 4, 0);
    struct bytes file;
    bytes_init(&file, SIZE_MAX);
    model_fixture_sentencepiece(pieces, 2, SENTENCEPIECE_BPE, 0, &file);
    write_bytes(dir, "tokenizer.model", file.data, file.size);
    LOADS(dir, "a", 1, 0);
    bytes_destroy(&file);
    char *json = fixture_json(&(const struct fixture_parts){0});
    write_text(dir, "tokenizer.json", json);
    LOADS(dir, "abc", 5);
    free(json);
    test_tmpdir_remove(dir);
}

static void test_tokenizer_load_reads_a_pair_of_files(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    write_text(dir, "vocab.json",
               "{\"a\": 0, \"b\": 1, \"ab\": 2, \"\u0120\": 3, \"\u0120ab\": 4, \"<pad>\": 5}");
    write_text(dir, "merges.txt", "a b\r\n\u0120 ab\r\n\r\n");
    write_text(dir, "tokenizer_config.json",
               "{\"tokenizer_class\": \"GPT2Tokenizer\", \"pad_token\": {\"content\": \"<pad>\"},"
               " \"additional_special_tokens\": [\"<nowhere>\"], \"added_tokens_decoder\":"
               " {\"6\": {\"content\": \"<x>\", \"special\": true}}}");
    LOADS(dir, "ab ab<pad><x>", 2, 4, 5, 6);
    write_text(dir, "tokenizer_config.json", "{\"add_prefix_space\": true}");
    LOADS(dir, "ab", 4);
    write_text(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"Qwen2Tokenizer\"}");
    assert_fails(dir, STATUS_DATA_LOSS, "tokenizer_class \"Qwen2Tokenizer\": ");
    write_text(dir, "tokenizer_config.json", "{\"added_tokens_decoder\": {\"6\": 1}}");
    assert_fails(dir, STATUS_DATA_LOSS, "added_tokens_decoder");
    write_text(dir, "tokenizer_config.json", "{\"added_tokens_decoder\": {\"x\": {}}}");
    assert_fails(dir, STATUS_DATA_LOSS, "added_tokens_decoder: not objects by id");
    write_text(dir, "tokenizer_config.json", "{}");
    write_text(dir, "merges.txt", "a b\n\xff b\n");
    assert_fails(dir, STATUS_DATA_LOSS, "merges.txt: line 2 is not UTF-8");
    write_text(dir, "merges.txt", "");
    write_text(dir, "vocab.json", "[]");
    assert_fails(dir, STATUS_DATA_LOSS, "vocab: is an array");
    test_tmpdir_remove(dir);
}

static void test_tokenizer_load_asks_for_gpt2s_vocabulary(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    write_text(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"DeciCoderTokenizer\"}");
    assert_fails(dir, STATUS_NOT_FOUND, "fix: put GPT-2's vocab.json into the directory");
    write_text(dir, "vocab.json", "{\"a\": 0}");
    assert_fails(dir, STATUS_DATA_LOSS, "vocab.json: 1 ranks");
    write_text(dir, "vocab.json", "{\"a\": 0.5}");
    assert_fails(dir, STATUS_DATA_LOSS, "vocab.json: an id is a number");
    write_text(dir, "vocab.json", "[0]");
    assert_fails(dir, STATUS_DATA_LOSS, "vocab.json: is an array");
    write_text(dir, "tokenizer_config.json",
               "{\"auto_map\": {\"AutoTokenizer\": [\"a--b.DeciCoderTokenizer\", null]}}");
    assert_fails(dir, STATUS_DATA_LOSS, "vocab.json: is an array");
    char *json = fixture_json(&(const struct fixture_parts){0});
    write_text(dir, "tokenizer.json", json);
    free(json);
    assert_fails(dir, STATUS_DATA_LOSS,
                 "tokenizer.json: has 6 ids, the class DeciCoderTokenizer has 51200; fix: put");
    test_tmpdir_remove(dir);
}

// ---- published files ----

/* Copies files of a published tokenizer into a directory. */
static void copy_published(const char *tokenizer, const char *name, const char *dir)
{
    char file[256];
    char path[TEST_PATH_BYTES];
    struct bytes data;
    snprintf(file, sizeof file, "tokenizers/%s/%s", tokenizer, name);
    bytes_init(&data, SIZE_MAX);
    assert_status_ok(file_read(test_data_path(file, path), (size_t)64 << 20, &data));
    write_bytes(dir, name, data.data, data.size);
    bytes_destroy(&data);
}

static void assert_vector(const struct tokenizer *tokenizer, const json_t *row)
{
    const json_t *text = json_object_get(row, "text");
    const json_t *ids = json_object_get(row, "ids");
    struct token_list list = {0};
    struct bytes back;
    bytes_init(&back, SIZE_MAX);
    assert_status_ok(
        tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text), 0, &list));
    assert_int_equal(list.n, json_array_size(ids));
    for (size_t i = 0; i < list.n; i++) {
        assert_int_equal(list.ids[i], json_integer_value(json_array_get(ids, i)));
    }
    assert_status_ok(tokenizer_decode(tokenizer, list.ids, list.n, 0, &back));
    assert_int_equal(back.size, json_string_length(text));
    assert_memory_equal(back.data, json_string_value(text), back.size);
    bytes_destroy(&back);
    token_list_destroy(&list);
}

/* tokenizer.model alone gives the ids of tokenizer.json. */
static void test_tokenizer_load_reproduces_vectors_from_tokenizer_model(void **state)
{
    (void)state;
    static const char *const names[] = {"decilm-7b", "decilm-6b", "llama-3"};
    char path[TEST_PATH_BYTES];
    (void)test_data_path("tokenizers", path); // skips the test without the data
    for (size_t t = 0; t < sizeof names / sizeof names[0]; t++) {
        char dir[TEST_PATH_BYTES];
        char file[256];
        test_tmpdir(dir);
        copy_published(names[t], "tokenizer.model", dir);
        copy_published(names[t], "tokenizer_config.json", dir);
        struct tokenizer *tokenizer = NULL;
        assert_status_ok(tokenizer_load(dir, &tokenizer));
        snprintf(file, sizeof file, "vectors/%s.json", names[t]);
        json_t *rows = json_load_file(test_data_path(file, path), 0, NULL);
        assert_true(json_array_size(rows) > 30);
        for (size_t i = 0; i < json_array_size(rows); i++) {
            assert_vector(tokenizer, json_array_get(rows, i));
        }
        json_decref(rows);
        tokenizer_free(tokenizer);
        test_tmpdir_remove(dir);
    }
}

/* GPT-2's vocabulary, and what DeciCoder-6B's class makes of it. */
static void test_tokenizer_load_extends_gpt2s_vocabulary(void **state)
{
    (void)state;
    char dir[TEST_PATH_BYTES];
    char path[TEST_PATH_BYTES];
    json_t *root = json_load_file(test_data_path("tokenizers/gpt-2/tokenizer.json", path), 0, NULL);
    char *vocab = json_dumps(json_object_get(json_object_get(root, "model"), "vocab"), 0);
    test_tmpdir(dir);
    write_text(dir, "vocab.json", vocab);
    write_text(dir, "tokenizer_config.json", "{\"tokenizer_class\": \"DeciCoderTokenizer\"}");
    // Ids that the publisher's own code gives.
    LOADS(dir, "int add(int a, int b) { return a + b; }\n\u03c0", 600, 751, 7, 600, 257, 11, 493,
          275, 8, 1391, 1441, 257, 1343, 275, 26, 1782, 198, 46582);
    LOADS(dir, "<fim_prefix>abc<fim_suffix>xyz<fim_middle>", 50295, 39305, 50297, 5431, 89, 50296);
    LOADS(dir, "prefix<mask_1>suffix<|endoftext|><sep><mask_1>", 40290, 51199, 37333, 844, 50256,
          50317, 51199);
    test_tmpdir_remove(dir);
    free(vocab);
    json_decref(root);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_load_names_the_file),
        cmocka_unit_test(test_tokenizer_load_prefers_tokenizer_json),
        cmocka_unit_test(test_tokenizer_load_reads_a_pair_of_files),
        cmocka_unit_test(test_tokenizer_load_asks_for_gpt2s_vocabulary),
        cmocka_unit_test(test_tokenizer_load_reproduces_vectors_from_tokenizer_model),
        cmocka_unit_test(test_tokenizer_load_extends_gpt2s_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

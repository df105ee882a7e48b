#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/tokenizer/ranks.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "tests/coordinator/tokenizer/model_fixture.h"

#define LLAMA3_RANKS 128000
#define GPT2_RANKS   50256

static struct tokenizer *parse(size_t n_ranks, const char *config_json)
{
    struct tokenizer_config config;
    struct bytes file;
    bytes_init(&file, SIZE_MAX);
    assert_status_ok(tokenizer_config_parse(config_json, strlen(config_json), &config));
    model_fixture_ranks(n_ranks, &file);
    struct tokenizer *tokenizer = NULL;
    assert_status_ok(ranks_parse_tiktoken(file.data, file.size, &config, &tokenizer));
    tokenizer_config_destroy(&config);
    bytes_destroy(&file);
    return tokenizer;
}

static void assert_encodes(const struct tokenizer *tokenizer, const char *text, int flags,
                           const int32_t *want, size_t n)
{
    struct token_list list = {0};
    assert_status_ok(tokenizer_encode(tokenizer, text, strlen(text), flags, &list));
    if (list.n != n || (n > 0 && memcmp(list.ids, want, n * sizeof *want) != 0)) {
        fail_msg("\"%s\": %zu tokens, the first %d; want %zu, %d", text, list.n,
                 list.n > 0 ? list.ids[0] : -1, n, n > 0 ? want[0] : -1);
    }
    token_list_destroy(&list);
}

#define ENCODES(tokenizer, text, flags, ...)                               \
    assert_encodes((tokenizer), (text), (flags), (int32_t[]){__VA_ARGS__}, \
                   sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void assert_names(const struct tokenizer *tokenizer, int32_t id, const char *want)
{
    struct bytes text;
    bytes_init(&text, SIZE_MAX);
    assert_status_ok(tokenizer_decode(tokenizer, &id, 1, 0, &text));
    assert_int_equal(text.size, strlen(want));
    assert_memory_equal(text.data, want, text.size);
    bytes_destroy(&text);
}

// ---- merging against its definition ----

/* The token of the bytes, -1: none. */
static int32_t find_rank(const uint8_t *bytes, size_t size)
{
    if (size == 1) {
        return bytes[0];
    }
    if (size > 3 || (size == 3 && bytes[2] != 'a')) {
        return -1;
    }
    const int32_t pair = (uint8_t)(bytes[0] - 'a') + 256 * (uint8_t)(bytes[1] - MODEL_SECOND_BYTE);
    const int32_t id = 256 + pair + (size == 3 ? 65536 : 0);
    return id < LLAMA3_RANKS ? id : -1;
}

/* Again and again the neighbours that are the token with the lowest id. */
static size_t merge_slowly(const uint8_t *word, size_t size, int32_t *ids)
{
    size_t lengths[64];
    size_t n = size;
    for (size_t i = 0; i < size; i++) {
        ids[i] = word[i];
        lengths[i] = 1;
    }
    for (;;) {
        size_t best = n;
        int32_t lowest = INT32_MAX;
        for (size_t i = 0, at = 0; i + 1 < n; at += lengths[i++]) {
            const int32_t id = find_rank(word + at, lengths[i] + lengths[i + 1]);
            if (id >= 0 && id < lowest) {
                best = i;
                lowest = id;
            }
        }
        if (best == n) {
            return n;
        }
        ids[best] = lowest;
        lengths[best] += lengths[best + 1];
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        memmove(lengths + best + 1, lengths + best + 2, (n - best - 2) * sizeof *lengths);
        n--;
    }
}

static void test_ranks_agree_with_their_definition(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = parse(LLAMA3_RANKS, "{}");
    for (int i = 0; i < 3000; i++) {
        char word[64] = {0};
        const size_t size = 1 + test_random_below(sizeof word - 1);
        for (size_t k = 0; k < size; k++) {
            word[k] = (char)('a' + test_random_below(1 + test_random_below(6)));
        }
        int32_t want[64];
        const size_t n = merge_slowly((const uint8_t *)word, size, want);
        assert_encodes(tokenizer, word, 0, want, n);
    }
    tokenizer_free(tokenizer);
}

// ---- layouts ----

static void test_ranks_lay_out_llama3(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = parse(LLAMA3_RANKS, "{}");
    assert_int_equal(tokenizer_vocab_size(tokenizer), 128256);
    assert_names(tokenizer, 128001, "<|end_of_text|>");
    assert_names(tokenizer, 128003, "<|reserved_special_token_1|>");
    assert_names(tokenizer, 128005, "<|reserved_special_token_2|>");
    assert_names(tokenizer, 128010, "<|python_tag|>");
    assert_names(tokenizer, 128011, "<|reserved_special_token_3|>");
    assert_names(tokenizer, 128255, "<|reserved_special_token_247|>");
    assert_true(tokenizer_is_special(tokenizer, 128000));
    assert_false(tokenizer_is_special(tokenizer, 127999));
    // Llama 3 splits numbers after three digits; GPT-2 does not.
    ENCODES(tokenizer, "<|eot_id|>z", TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, 128000,
            128009, 'z');
    tokenizer_free(tokenizer);
}

static void test_ranks_take_special_tokens_of_the_config(void **state)
{
    (void)state;
    struct tokenizer *tokenizer =
        parse(LLAMA3_RANKS, "{\"added_tokens_decoder\": {\"128000\": {\"content\": \"<bos>\","
                            " \"special\": true}}}");
    assert_int_equal(tokenizer_vocab_size(tokenizer), 128001);
    assert_names(tokenizer, 128000, "<bos>");
    ENCODES(tokenizer, "z", TOKENIZER_ADD_SPECIAL, 128000, 'z');
    tokenizer_free(tokenizer);
}

static void test_ranks_lay_out_gpt2(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = parse(GPT2_RANKS, "{\"tokenizer_class\": \"GPT2Tokenizer\"}");
    assert_int_equal(tokenizer_vocab_size(tokenizer), 50257);
    assert_int_equal(tokenizer_special_id(tokenizer, "<|endoftext|>"), 50256);
    assert_int_equal(tokenizer_special_id(tokenizer, "<fim_prefix>"), -1);
    ENCODES(tokenizer, "z", TOKENIZER_ADD_SPECIAL, 'z');
    tokenizer_free(tokenizer);
}

static void test_ranks_lay_out_decicoder_6b(void **state)
{
    (void)state;

    static const struct {
        const char *text;
        int32_t id;
    } rows[] = {
        {"<|endoftext|>", 50256}, {"<fim_prefix>", 50295}, {"<fim_middle>", 50296},
        {"<fim_suffix>", 50297},  {"<fim_pad>", 50298},    {"<filename>", 50299},
        {"<reponame>", 50312},    {"<dummy_0>", 50313},    {"<dummy_3>", 50316},
        {"<sep>", 50317},         {"<eom>", 50318},        {"<mask_881>", 50319},
        {"<mask_1>", 51199},
    };
    struct tokenizer *tokenizer =
        parse(GPT2_RANKS, "{\"tokenizer_class\": \"DeciCoderTokenizer\"}");
    assert_int_equal(tokenizer_vocab_size(tokenizer), 51200);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_names(tokenizer, rows[i].id, rows[i].text);
        assert_int_equal(tokenizer_special_id(tokenizer, rows[i].text), rows[i].id);
        ENCODES(tokenizer, rows[i].text, TOKENIZER_PARSE_SPECIAL, rows[i].id);
    }
    for (int n = 2; n <= 31; n++) {
        char run[32] = {0};
        memset(run, ' ', (size_t)n);
        ENCODES(tokenizer, run, 0, 50288 - n);
        memset(run, '\t', (size_t)n);
        if (n <= 9) {
            ENCODES(tokenizer, run, 0, 50296 - n);
        }
    }
    // Longer runs grow from the left to 31 spaces; the last space before a word belongs to the word.
    ENCODES(tokenizer, "                                   (", 0, 50257, 50285, ' ', '(');
    tokenizer_free(tokenizer);
}

// ---- files that are refused ----

static void test_ranks_refuse_bad_files(void **state)
{
    (void)state;

    static const struct {
        const char *text, *says;
    } rows[] = {
        {"", "0 ranks: a layout that is not known (known: 128000, Llama 3; 50256, GPT-2)"},
        {"IQ== 0\n", "1 ranks: a layout that is not known"},
        {"IQ==\n", "line 1: is not a token in base64"},
        {"IQ== 0\nIg= 1\n", "line 2: is not a token in base64"},
        {"I=== 0\n", "line 1: "},
        {"I*== 0\n", "line 1: "},
        {" 0\n", "line 1: "},
        {"IQ== \n", "line 1: "},
        {"IQ== -1\n", "line 1: "},
        {"IQ== 1x\n", "line 1: "},
        {"IQ== 9999999999\n", "line 1: "},
        {"IQ== 99999999999999999999\n", "line 1: "},
        {"\n", "line 1: "},
        {"IQ== 1\n", "id 1, but there are 1 ranks"},
    };
    static const struct tokenizer_config no_config;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct tokenizer *tokenizer = NULL;
        assert_status_says(
            ranks_parse_tiktoken(rows[i].text, strlen(rows[i].text), &no_config, &tokenizer),
            STATUS_DATA_LOSS, rows[i].says);
        assert_null(tokenizer);
    }
}

/* One line of a good file changed. */
static void assert_changed_refused(size_t line, const char *text, const char *says)
{
    static const struct tokenizer_config no_config;
    struct bytes file;
    bytes_init(&file, SIZE_MAX);
    model_fixture_ranks(GPT2_RANKS, &file);
    uint8_t *at = file.data;
    for (size_t i = 0; i < line; i++) {
        at = (uint8_t *)memchr(at, '\n', file.size) + 1;
    }
    for (size_t i = 0; text[i] != '\0'; i++) {
        at[i] = (uint8_t)text[i]; // in place: the lines behind it stay
    }
    struct tokenizer *tokenizer = NULL;
    assert_status_says(ranks_parse_tiktoken(file.data, file.size, &no_config, &tokenizer),
                       STATUS_DATA_LOSS, says);
    assert_null(tokenizer);
    bytes_destroy(&file);
}

static void test_ranks_refuse_repeated_and_missing_tokens(void **state)
{
    (void)state;
    assert_changed_refused(1, "AA== 1", "has the ids 0 and 1");
    assert_changed_refused(2, "Ag== 1", "have the same id 1");
    assert_changed_refused(1, "AQE= 1", "no token for the byte 0x01");
}

static void test_ranks_are_told_from_protobuf(void **state)
{
    (void)state;
    assert_true(ranks_is_tiktoken("IQ== 0\n", 7));
    assert_true(ranks_is_tiktoken("+/8= 0\n", 7));
    assert_false(ranks_is_tiktoken("", 0));
    assert_false(ranks_is_tiktoken("\n\x0e\n\x05<unk>", 9));
    assert_false(ranks_is_tiktoken("\0", 1));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ranks_agree_with_their_definition),
        cmocka_unit_test(test_ranks_lay_out_llama3),
        cmocka_unit_test(test_ranks_take_special_tokens_of_the_config),
        cmocka_unit_test(test_ranks_lay_out_gpt2),
        cmocka_unit_test(test_ranks_lay_out_decicoder_6b),
        cmocka_unit_test(test_ranks_refuse_bad_files),
        cmocka_unit_test(test_ranks_refuse_repeated_and_missing_tokens),
        cmocka_unit_test(test_ranks_are_told_from_protobuf),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

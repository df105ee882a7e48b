#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "coordinator/tokenizer/tokenizer.h"
#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

// ---- helpers ----

static void assert_encodes(const struct tokenizer *tokenizer, const char *text, int flags,
                           const int32_t *ids, size_t n)
{
    struct token_list list = {0};
    assert_status_ok(tokenizer_encode(tokenizer, text, strlen(text), flags, &list));
    if (list.n != n || (n > 0 && memcmp(list.ids, ids, n * sizeof *ids) != 0)) {
        for (size_t i = 0; i < list.n; i++) {
            print_error("%d ", list.ids[i]);
        }
        fail_msg("\"%s\": %zu ids, want %zu", text, list.n, n);
    }
    token_list_destroy(&list);
}

#define ENCODES(tokenizer, text, flags, ...)                                              \
    do {                                                                                  \
        const int32_t ids_[] = {__VA_ARGS__};                                             \
        assert_encodes((tokenizer), (text), (flags), ids_, sizeof ids_ / sizeof ids_[0]); \
    } while (0)

static void assert_decodes(const struct tokenizer *tokenizer, const int32_t *ids, size_t n,
                           int flags, const char *text, size_t size)
{
    struct bytes out;
    bytes_init(&out, SIZE_MAX);
    assert_status_ok(tokenizer_decode(tokenizer, ids, n, flags, &out));
    if (out.size != size || (size > 0 && memcmp(out.data, text, size) != 0)) {
        fail_msg("decoded \"%.*s\", want \"%.*s\"", (int)out.size, (const char *)out.data,
                 (int)size, text);
    }
    bytes_destroy(&out);
}

#define DECODES(tokenizer, flags, text, ...)                                             \
    do {                                                                                 \
        const int32_t ids_[] = {__VA_ARGS__};                                            \
        assert_decodes((tokenizer), ids_, sizeof ids_ / sizeof ids_[0], (flags), (text), \
                       strlen(text));                                                    \
    } while (0)

/* The ids of a JSON array. */
static size_t read_ids(const json_t *array, int32_t *ids, size_t max)
{
    const size_t n = json_array_size(array);
    assert_true(n <= max);
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
    }
    return n;
}

static json_t *load_rows(const char *kind, const char *name)
{
    char file[256];
    char path[TEST_PATH_BYTES];
    snprintf(file, sizeof file, "%s/%s.json", kind, name);
    json_error_t error;
    json_t *rows = json_load_file(test_data_path(file, path), JSON_ALLOW_NUL, &error);
    assert_non_null(rows);
    assert_true(json_array_size(rows) > 0);
    return rows;
}

#define MAX_IDS 4096

/* Normalization that loses nothing else: only stablelm-3b composes, so its texts come back in NFC. */
static const char *text_of(const json_t *row, size_t *size_out)
{
    const json_t *text = json_object_get(row, "text");
    assert_true(json_is_string(text));
    *size_out = json_string_length(text);
    return json_string_value(text);
}

// ---- published tokenizers ----

/* Loading them takes a second, so it is done once; NULL where they are not on this machine. */
struct published {
    struct tokenizer *tokenizers[FIXTURE_N_PUBLISHED];
};

static int load_published(void **state)
{
    struct published *published = calloc(1, sizeof *published);
    const char *root = getenv("KVASIR_TEST_DATA");
    for (size_t i = 0; published != NULL && root != NULL && i < FIXTURE_N_PUBLISHED; i++) {
        char path[TEST_PATH_BYTES];
        snprintf(path, sizeof path, "%s/tokenizers/%s", root, fixture_published[i]);
        status_t s = tokenizer_load(path, &published->tokenizers[i]);
        if (!status_is_ok(&s) && s.code != STATUS_NOT_FOUND) {
            print_error("%s\n", s.msg);
            return -1;
        }
    }
    *state = published;
    return published != NULL ? 0 : -1;
}

static int free_published(void **state)
{
    struct published *published = *state;
    for (size_t i = 0; i < FIXTURE_N_PUBLISHED; i++) {
        tokenizer_free(published->tokenizers[i]);
    }
    free(published);
    return 0;
}

/* Skips the test when the published data is not on this machine. */
static const struct tokenizer *get_published(void **state, size_t i)
{
    const struct published *published = *state;
    if (published->tokenizers[i] == NULL) {
        print_message("skipped: no tokenizers/%s (KVASIR_TEST_DATA)\n", fixture_published[i]);
        skip();
    }
    return published->tokenizers[i];
}

static void check_vector(const struct tokenizer *tokenizer, const json_t *row, const char *field,
                         int flags, bool back)
{
    size_t size;
    int32_t ids[MAX_IDS];
    const char *text = text_of(row, &size);
    const size_t n = read_ids(json_object_get(row, field), ids, MAX_IDS);
    struct token_list list = {0};
    assert_status_ok(tokenizer_encode(tokenizer, text, size, flags, &list));
    if (list.n != n || (n > 0 && memcmp(list.ids, ids, n * sizeof *ids) != 0)) {
        fail_msg("%s of \"%s\": got %zu ids, want %zu", field, text, list.n, n);
    }
    token_list_destroy(&list);
    if (back) {
        assert_decodes(tokenizer, ids, n, 0, text, size);
    }
}

static void test_tokenizer_reproduces_the_published_vectors(void **state)
{
    for (size_t t = 0; t < FIXTURE_N_PUBLISHED; t++) {
        const struct tokenizer *tokenizer = get_published(state, t);
        json_t *rows = load_rows("vectors", fixture_published[t]);
        for (size_t i = 0; i < json_array_size(rows); i++) {
            check_vector(tokenizer, json_array_get(rows, i), "ids", 0, true);
        }
        json_decref(rows);
        rows = load_rows("special", fixture_published[t]);
        for (size_t i = 0; i < json_array_size(rows); i++) {
            const json_t *row = json_array_get(rows, i);
            check_vector(tokenizer, row, "ids_plain", 0, false);
            check_vector(tokenizer, row, "ids_special", TOKENIZER_PARSE_SPECIAL, false);
        }
        json_decref(rows);
    }
}

static void test_tokenizer_adds_bos_as_the_template_says(void **state)
{

    static const struct {
        int32_t bos; /* -1: none */
        int32_t vocab_size;
        int32_t special;
    } rows[FIXTURE_N_PUBLISHED] = {
        // In the order of fixture_published.
        {1, 32000, 2},      {1, 32000, 2}, {-1, 49152, 0}, {-1, 50277, 0}, {128000, 128256, 128009},
        {-1, 50257, 50256},
    };

    for (size_t i = 0; i < FIXTURE_N_PUBLISHED; i++) {
        const struct tokenizer *tokenizer = get_published(state, i);
        struct token_list plain = {0};
        struct token_list special = {0};
        assert_status_ok(tokenizer_encode(tokenizer, "Hello", 5, 0, &plain));
        assert_status_ok(tokenizer_encode(tokenizer, "Hello", 5, TOKENIZER_ADD_SPECIAL, &special));
        const size_t n_bos = rows[i].bos >= 0 ? 1 : 0;
        assert_int_equal(special.n, plain.n + n_bos);
        assert_memory_equal(special.ids + n_bos, plain.ids, plain.n * sizeof *plain.ids);
        if (n_bos > 0) {
            assert_int_equal(special.ids[0], rows[i].bos);
        }
        assert_int_equal(tokenizer_vocab_size(tokenizer), rows[i].vocab_size);
        assert_true(tokenizer_is_special(tokenizer, rows[i].special));
        assert_false(tokenizer_is_special(tokenizer, plain.ids[0]));
        assert_false(tokenizer_is_special(tokenizer, -1));
        assert_false(tokenizer_is_special(tokenizer, rows[i].vocab_size));
        token_list_destroy(&plain);
        token_list_destroy(&special);
    }
}

// ---- random text goes there and back ----

static const char *const scraps[] = {
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "'s",
    "'LL",
    "a",
    "the",
    " quick",
    "B",
    "0",
    "1234567",
    "\u0663",
    "\u00bd",
    "...",
    "\u2014",
    "\u00e9",
    "\u00df",
    "\u0416\u0443\u043a",
    "\u4e2d\u6587",
    "\uac00",
    "\u0e01\u0e33",
    "\U0001f600",
    "\U0001f1e9\U0001f1ea",
    "\u200d",
    "\u202e",
    "{};",
    "</",
    "<|",
    "\x01",
    "\x7f",
};

static size_t random_text(char *out, size_t max)
{
    size_t size = 0;
    const uint64_t n = test_random_below(40);
    for (uint64_t i = 0; i < n; i++) {
        const char *scrap = scraps[test_random_below(sizeof scraps / sizeof scraps[0])];
        const uint64_t times = test_random_below(8) == 0 ? 1 + test_random_below(50) : 1;
        for (uint64_t k = 0; k < times && size + strlen(scrap) < max; k++) {
            size = (size_t)(stpcpy(out + size, scrap) - out);
        }
    }
    return size;
}

static void test_tokenizer_random_text_goes_round(void **state)
{
    for (size_t t = 0; t < FIXTURE_N_PUBLISHED; t++) {
        const struct tokenizer *tokenizer = get_published(state, t);
        for (int i = 0; i < 300; i++) {
            char text[8192];
            const size_t size = random_text(text, sizeof text);
            struct token_list list = {0};
            assert_status_ok(tokenizer_encode(tokenizer, text, size, 0, &list));
            assert_decodes(tokenizer, list.ids, list.n, 0, text, size);
            token_list_destroy(&list);
        }
    }
}

// ---- small tokenizers ----

static void test_tokenizer_merges_by_rank_then_from_the_left(void **state)
{
    (void)state;
    const struct fixture_parts parts = {
        .model = "{\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"aa\": 3, \"ab\": 4, \"bc\": 5,"
                 " \"aab\": 6}, \"merges\": [[\"b\", \"c\"], [\"a\", \"a\"], [\"a\", \"b\"],"
                 " [\"aa\", \"b\"]]}"};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "abc", 0, 0, 5);  // the lower rank wins over the one on the left
    ENCODES(tokenizer, "aaa", 0, 3, 0);  // leftmost first
    ENCODES(tokenizer, "aaab", 0, 3, 4); // a pair of a lower rank takes the a away
    ENCODES(tokenizer, "aab", 0, 6);
    assert_encodes(tokenizer, "", 0, NULL, 0);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_drops_or_replaces_what_has_no_token(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_parse(&(const struct fixture_parts){0});
    ENCODES(tokenizer, "axb", 0, 4); // the x is gone before anything merges
    tokenizer_free(tokenizer);

    static const char model[] = "{\"vocab\": {\"?\": 0, \"a\": 1}, \"merges\": [],"
                                " \"unk_token\": \"?\", \"fuse_unk\": %s}";
    char text[256];
    snprintf(text, sizeof text, model, "false");
    const struct fixture_parts parts = {.model = text, .pre_tokenizer = "null"};
    tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "axya", 0, 1, 0, 0, 1);
    tokenizer_free(tokenizer);
    snprintf(text, sizeof text, model, "true");
    tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "axyaz", 0, 1, 0, 1, 0);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_ignore_merges_takes_whole_words(void **state)
{
    (void)state;
    static const char model[] = "{\"vocab\": {\"a\": 0, \"b\": 1, \"aba\": 2}, \"merges\": [],"
                                " \"ignore_merges\": %s}";
    char text[256];
    snprintf(text, sizeof text, model, "true");
    const struct fixture_parts parts = {.model = text};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "aba", 0, 2);
    ENCODES(tokenizer, "abaa", 0, 0, 1, 0, 0);
    tokenizer_free(tokenizer);
    snprintf(text, sizeof text, model, "false");
    tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "aba", 0, 0, 1, 0);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_prefix_space_goes_before_each_piece(void **state)
{
    (void)state;
    const struct fixture_parts parts = {
        .model = "{\"vocab\": {\"a\": 0, \"\u0120\": 1, \"\u0120a\": 2},"
                 " \"merges\": [\"\u0120 a\"]}",
        .pre_tokenizer = "{\"type\": \"ByteLevel\", \"add_prefix_space\": true}",
        .added_tokens = "[{\"id\": 3, \"content\": \"<e>\", \"special\": true}]"};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "a", 0, 2);
    ENCODES(tokenizer, " a", 0, 2);
    ENCODES(tokenizer, "a<e>a", TOKENIZER_PARSE_SPECIAL, 2, 3, 2);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_template_may_add_behind_too(void **state)
{
    (void)state;
    const struct fixture_parts parts = {
        .added_tokens = "[{\"id\": 6, \"content\": \"<s>\", \"special\": true},"
                        " {\"id\": 7, \"content\": \"</s>\", \"special\": true}]",
        .post_processor =
            "{\"type\": \"TemplateProcessing\", \"single\": ["
            "{\"SpecialToken\": {\"id\": \"<s>\", \"type_id\": 0}},"
            "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}},"
            "{\"SpecialToken\": {\"id\": \"E\", \"type_id\": 0}}],"
            "\"special_tokens\": {\"<s>\": {\"ids\": [6]}, \"E\": {\"ids\": [7, 7]}}}"};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "c", TOKENIZER_ADD_SPECIAL, 6, 2, 7, 7);
    ENCODES(tokenizer, "", TOKENIZER_ADD_SPECIAL, 6, 7, 7);
    ENCODES(tokenizer, "c", 0, 2);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_cuts_added_tokens_longest_first(void **state)
{
    (void)state;
    const struct fixture_parts parts = {
        .added_tokens =
            "[{\"id\": 6, \"content\": \"<x>\", \"special\": true},"
            " {\"id\": 7, \"content\": \"<x><x>\", \"special\": true},"
            " {\"id\": 8, \"content\": \"b\u00e9\", \"special\": false, \"normalized\": true},"
            " {\"id\": 9, \"content\": \"<l>\", \"special\": true, \"lstrip\": true},"
            " {\"id\": 10, \"content\": \"<r>\", \"special\": true, \"rstrip\": true}]",
        .normalizer = "{\"type\": \"NFC\"}"};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "a<x><x><x>a", TOKENIZER_PARSE_SPECIAL, 0, 7, 6, 0);
    ENCODES(tokenizer, "a<x>a", 0, 0, 0);         // plain text: its characters have no tokens here
    ENCODES(tokenizer, "abe\u0301c", 0, 0, 8, 2); // found once the text is normalized
    ENCODES(tokenizer, "a \n<l>a", TOKENIZER_PARSE_SPECIAL, 0, 9, 0);
    ENCODES(tokenizer, "<r>\u3000 a<x>", TOKENIZER_PARSE_SPECIAL, 10, 0, 6);
    tokenizer_free(tokenizer);
}

/* Added tokens that are no special ones are cut out also where special tokens are plain text. */
static void test_tokenizer_plain_added_tokens_are_always_cut(void **state)
{
    (void)state;
    const struct fixture_parts parts = {
        .added_tokens = "[{\"id\": 6, \"content\": \"ab\", \"special\": false}]",
        .model = "{\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"d\": 3, \"bc\": 4, \"da\": 5},"
                 " \"merges\": [\"b c\", \"d a\"]}"};
    struct tokenizer *tokenizer = fixture_parse(&parts);
    ENCODES(tokenizer, "dabc", 0, 3, 6, 2);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_decode_leaves_special_tokens_out_when_asked(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_bytes();
    DECODES(tokenizer, 0, "<|end|>a<|end|>", 256, 'a', 256);
    DECODES(tokenizer, TOKENIZER_SKIP_SPECIAL, "a", 256, 'a', 256);
    tokenizer_free(tokenizer);
}

// ---- errors ----

static void test_tokenizer_encode_says_where_text_is_not_utf8(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_bytes();
    struct token_list list = {0};
    assert_status_says(tokenizer_encode(tokenizer, "ab\xff", 3, 0, &list), STATUS_INVALID_ARGUMENT,
                       "byte 2 of 3");
    assert_int_equal(list.n, 0);
    assert_status_ok(tokenizer_encode(tokenizer, "a\0b", 3, 0, &list));
    assert_int_equal(list.n, 3);
    assert_int_equal(list.ids[1], 0);
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_encode_stops_at_the_limit(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_bytes();
    struct token_list list = {.max = 3};
    assert_status_ok(tokenizer_encode(tokenizer, "abc", 3, 0, &list));
    assert_status_says(tokenizer_encode(tokenizer, "d", 1, 0, &list), STATUS_RESOURCE_EXHAUSTED,
                       "more than 3 tokens");
    assert_int_equal(list.n, 3);
    list.n = 1;
    assert_status_code(tokenizer_encode(tokenizer, "xyz", 3, 0, &list), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(list.n, 1); // as before the call
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_decode_refuses_ids_it_does_not_have(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_bytes();
    struct bytes out;
    bytes_init(&out, 100);
    const int32_t ids[] = {'a', 257};
    assert_status_says(tokenizer_decode(tokenizer, ids, 2, 0, &out), STATUS_INVALID_ARGUMENT,
                       "token id 257, not from 0 to 256");
    assert_int_equal(out.size, 0);
    const int32_t negative = -1;
    assert_status_code(tokenizer_decode(tokenizer, &negative, 1, 0, &out), STATUS_INVALID_ARGUMENT);
    bytes_destroy(&out);
    tokenizer_free(tokenizer);
}

// ---- tokenizer_config.json ----

static void write_text(const char *dir, const char *name, const char *text)
{
    char path[TEST_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    test_write_file(path, text, strlen(text));
}

#define LLAMA                                                               \
    "\"tokenizer_class\": \"LlamaTokenizer\", \"model_max_length\": 1"      \
    "000000000000000019884624838656, \"bos_token\": {\"content\": \"c\"}, " \
    "\"eos_token\": \"d\""

/* The classes whose template transformers makes anew; tokenizer.json itself has none here. */
static void test_tokenizer_load_follows_the_config(void **state)
{
    (void)state;

    static const struct {
        const char *config;
        int32_t ids[3];
        size_t n;
    } rows[] = {
        {"{\"add_bos_token\": true}", {0}, 1},
        {"{\"tokenizer_class\": \"GPT2Tokenizer\", \"add_bos_token\": true}", {0}, 1},
        {"{" LLAMA "}", {2, 0}, 2},
        {"{" LLAMA ", \"add_bos_token\": false}", {0}, 1},
        {"{" LLAMA ", \"add_eos_token\": true}", {2, 0, 3}, 3},
    };

    char dir[TEST_PATH_BYTES];
    test_tmpdir(dir);
    char *json = fixture_json(&(const struct fixture_parts){0});
    write_text(dir, "tokenizer.json", json);
    free(json);
    struct tokenizer *tokenizer = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_text(dir, "tokenizer_config.json", rows[i].config);
        assert_status_ok(tokenizer_load(dir, &tokenizer));
        assert_encodes(tokenizer, "a", TOKENIZER_ADD_SPECIAL, rows[i].ids, rows[i].n);
        assert_encodes(tokenizer, "a", 0, (const int32_t[]){0}, 1);
        tokenizer_free(tokenizer);
    }
    tokenizer = NULL;
    write_text(dir, "tokenizer_config.json",
               "{\"tokenizer_class\": \"LlamaTokenizer\", \"bos_token\": \"<s>\"}");
    assert_status_says(tokenizer_load(dir, &tokenizer), STATUS_DATA_LOSS,
                       "tokenizer_config.json: bos_token: \"<s>\" is not in the vocabulary");
    write_text(dir, "tokenizer_config.json", "{");
    assert_status_says(tokenizer_load(dir, &tokenizer), STATUS_DATA_LOSS,
                       "tokenizer_config.json: line 1");
    assert_null(tokenizer);
    test_tmpdir_remove(dir);
}

// ---- Metaspace ----

#define METASPACE(scheme, split)                                                           \
    "{\"type\": \"Metaspace\", \"replacement\": \"\u2581\", \"prepend_scheme\": \"" scheme \
    "\", \"split\": " split "}"

static void test_tokenizer_metaspace_prepends_as_its_scheme_says(void **state)
{
    (void)state;

    static const struct {
        const char *pre_tokenizer;
        int32_t ids[8];
        size_t n;
    } rows[] = {
        // of "ab<s>ab a": a second segment, and a word inside of it
        {METASPACE("first", "false"), {4, 6, 5, 3, 0}, 5},
        {METASPACE("always", "false"), {4, 6, 4, 3, 0}, 5},
        {METASPACE("never", "false"), {5, 6, 5, 3, 0}, 5},
        {METASPACE("first", "true"), {4, 6, 5, 3, 0}, 5},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct fixture_parts parts = fixture_sentencepiece;
        parts.normalizer = "null";
        parts.pre_tokenizer = rows[i].pre_tokenizer;
        parts.added_tokens = "[{\"id\": 6, \"content\": \"<s>\", \"special\": true}]";
        parts.model = "{\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"\u2581\": 3, \"\u2581ab\": 4,"
                      " \"ab\": 5}, \"merges\": [\"a b\", \"\u2581 ab\"]}";
        struct tokenizer *tokenizer = fixture_parse(&parts);
        assert_encodes(tokenizer, "ab<s>ab a", TOKENIZER_PARSE_SPECIAL, rows[i].ids, rows[i].n);
        tokenizer_free(tokenizer);
    }
}

/* With split, what a merge would join across words stays apart. */
static void test_tokenizer_metaspace_cuts_words(void **state)
{
    (void)state;
    struct fixture_parts parts = fixture_sentencepiece;
    parts.normalizer = "null";
    parts.model = "{\"vocab\": {\"a\": 0, \"\u2581\": 1, \"a\u2581\": 2, \"\u2581a\": 3},"
                  " \"merges\": [\"a \u2581\", \"\u2581 a\"]}";
    parts.pre_tokenizer = METASPACE("always", "true");
    struct tokenizer *tokenizer = fixture_parse(&parts);
    assert_encodes(tokenizer, "a a  a", 0, (const int32_t[]){3, 3, 1, 3}, 4);
    tokenizer_free(tokenizer);
    parts.pre_tokenizer = METASPACE("always", "false");
    tokenizer = fixture_parse(&parts);
    assert_encodes(tokenizer, "a a", 0, (const int32_t[]){1, 2, 0}, 3);
    assert_encodes(tokenizer, " a", 0, (const int32_t[]){3}, 1);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_metaspace_decoder_drops_the_first_tokens_spaces(void **state)
{
    (void)state;
    struct fixture_parts parts = fixture_sentencepiece;
    parts.model =
        "{\"vocab\": {\"a\": 0, \"\u2581\u2581a\u2581\": 1, \"\u2581\": 2}, \"merges\": []}";
    parts.decoder = METASPACE("first", "false");
    struct tokenizer *tokenizer = fixture_parse(&parts);
    assert_decodes(tokenizer, (const int32_t[]){1, 1}, 2, 0, "a  a ", 5);
    assert_decodes(tokenizer, (const int32_t[]){2, 1}, 2, 0, "  a ", 4);
    tokenizer_free(tokenizer);
    parts.decoder = METASPACE("never", "false");
    tokenizer = fixture_parse(&parts);
    assert_decodes(tokenizer, (const int32_t[]){1}, 1, 0, "  a ", 4);
    tokenizer_free(tokenizer);
}

// ---- time ----

/* A megabyte of one character class must not take more than linear time; the test's timeout is the judge. */
static void test_tokenizer_long_runs_are_quick(void **state)
{
    static const char *const units[] = {"a", " ", "\u00e9"};
    (void)get_published(state, 0); // skips the test without the data, before it owns anything
    const size_t size = (size_t)1024 * 1024;
    char *text = test_malloc(size);
    for (size_t t = 0; t < FIXTURE_N_PUBLISHED; t += 3) { // SentencePiece and NFC
        const struct tokenizer *tokenizer = get_published(state, t);
        for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
            const size_t unit = strlen(units[u]);
            const size_t whole = size - size % unit;
            for (size_t i = 0; i < whole; i++) {
                text[i] = units[u][i % unit];
            }
            struct token_list list = {0};
            assert_status_ok(tokenizer_encode(tokenizer, text, whole, 0, &list));
            assert_decodes(tokenizer, list.ids, list.n, 0, text, whole);
            token_list_destroy(&list);
        }
    }
    test_free(text);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_reproduces_the_published_vectors),
        cmocka_unit_test(test_tokenizer_adds_bos_as_the_template_says),
        cmocka_unit_test(test_tokenizer_random_text_goes_round),
        cmocka_unit_test(test_tokenizer_merges_by_rank_then_from_the_left),
        cmocka_unit_test(test_tokenizer_drops_or_replaces_what_has_no_token),
        cmocka_unit_test(test_tokenizer_ignore_merges_takes_whole_words),
        cmocka_unit_test(test_tokenizer_prefix_space_goes_before_each_piece),
        cmocka_unit_test(test_tokenizer_template_may_add_behind_too),
        cmocka_unit_test(test_tokenizer_cuts_added_tokens_longest_first),
        cmocka_unit_test(test_tokenizer_plain_added_tokens_are_always_cut),
        cmocka_unit_test(test_tokenizer_decode_leaves_special_tokens_out_when_asked),
        cmocka_unit_test(test_tokenizer_encode_says_where_text_is_not_utf8),
        cmocka_unit_test(test_tokenizer_encode_stops_at_the_limit),
        cmocka_unit_test(test_tokenizer_decode_refuses_ids_it_does_not_have),
        cmocka_unit_test(test_tokenizer_load_follows_the_config),
        cmocka_unit_test(test_tokenizer_metaspace_prepends_as_its_scheme_says),
        cmocka_unit_test(test_tokenizer_metaspace_cuts_words),
        cmocka_unit_test(test_tokenizer_metaspace_decoder_drops_the_first_tokens_spaces),
        cmocka_unit_test(test_tokenizer_long_runs_are_quick),
    };
    return cmocka_run_group_tests(tests, load_published, free_published);
}

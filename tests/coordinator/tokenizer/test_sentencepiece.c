#include "tests/support/test.h"

#include <math.h>
#include <string.h>

#include "coordinator/tokenizer/sentencepiece.h"
#include "coordinator/tokenizer/tokenizer_config.h"
#include "tests/coordinator/tokenizer/model_fixture.h"

#define NORMAL  SENTENCEPIECE_NORMAL
#define UNKNOWN SENTENCEPIECE_UNKNOWN
#define CONTROL SENTENCEPIECE_CONTROL
#define USER    SENTENCEPIECE_USER_DEFINED
#define SPACE   "\u2581"

#define COUNT(rows) (sizeof(rows) / sizeof((rows)[0]))

static const struct tokenizer_config no_config;

static status_t try_parse(const struct model_piece *pieces, size_t n, int model_type, int flags,
                          struct tokenizer **out)
{
    struct bytes file;
    bytes_init(&file, SIZE_MAX);
    model_fixture_sentencepiece(pieces, n, model_type, flags, &file);
    const status_t s = sentencepiece_parse(file.data, file.size, &no_config, out);
    bytes_destroy(&file);
    return s;
}

static struct tokenizer *parse(const struct model_piece *pieces, size_t n, int flags)
{
    struct tokenizer *tokenizer = NULL;
    assert_status_ok(try_parse(pieces, n, SENTENCEPIECE_BPE, flags, &tokenizer));
    return tokenizer;
}

static void assert_encodes(const struct tokenizer *tokenizer, const char *text, int flags,
                           const int32_t *want, size_t n)
{
    struct token_list list = {0};
    assert_status_ok(tokenizer_encode(tokenizer, text, strlen(text), flags, &list));
    if (list.n != n || (n > 0 && memcmp(list.ids, want, n * sizeof *want) != 0)) {
        fail_msg("\"%s\": %zu tokens, the first %d; want %zu", text, list.n,
                 list.n > 0 ? list.ids[0] : -1, n);
    }
    token_list_destroy(&list);
}

#define ENCODES(tokenizer, text, flags, ...)                               \
    assert_encodes((tokenizer), (text), (flags), (int32_t[]){__VA_ARGS__}, \
                   sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void assert_decodes(const struct tokenizer *tokenizer, const int32_t *ids, size_t n,
                           const char *want)
{
    struct bytes text;
    bytes_init(&text, SIZE_MAX);
    assert_status_ok(tokenizer_decode(tokenizer, ids, n, 0, &text));
    assert_int_equal(text.size, strlen(want));
    assert_memory_equal(text.data, want, text.size);
    bytes_destroy(&text);
}

// ---- merging against its definition ----

#define MAX_PIECES 64
#define MAX_TEXT   6 /* letters of a piece */

struct model {
    char texts[MAX_PIECES][3 * MAX_TEXT + 1];
    float scores[MAX_PIECES];
    size_t n;
};

static int find_piece(const struct model *model, const char *text, size_t size)
{
    for (size_t i = 0; i < model->n; i++) {
        if (strlen(model->texts[i]) == size && memcmp(model->texts[i], text, size) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static size_t n_letters(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++) {
        n += (*text & 0xC0) != 0x80;
    }
    return n;
}

/* Pieces that join two others, with so few scores that many are equal. */
static void random_model(struct model *model)
{
    static const char *const letters[] = {SPACE, "a", "b", "c"};
    *model = (struct model){0};
    for (size_t i = 0; i < COUNT(letters); i++) {
        snprintf(model->texts[model->n++], sizeof model->texts[0], "%s", letters[i]);
    }
    for (int tries = 0; tries < 200 && model->n < MAX_PIECES; tries++) {
        char joined[6 * MAX_TEXT + 2];
        snprintf(joined, sizeof joined, "%s%s", model->texts[test_random_below(model->n)],
                 model->texts[test_random_below(model->n)]);
        if (n_letters(joined) <= MAX_TEXT && find_piece(model, joined, strlen(joined)) < 0) {
            memcpy(model->texts[model->n++], joined, strlen(joined) + 1);
        }
    }
    for (size_t i = 0; i < model->n; i++) {
        model->scores[i] = -(float)test_random_below(1 + test_random_below(12));
    }
}

/* Again and again the neighbours that are the piece with the highest score, leftmost first. */
static size_t merge_slowly(const struct model *model, int32_t *ids, size_t n)
{
    for (;;) {
        size_t best = n;
        int result = -1;
        for (size_t i = 0; i + 1 < n; i++) {
            char joined[6 * MAX_TEXT + 2];
            const int size = snprintf(joined, sizeof joined, "%s%s", model->texts[ids[i]],
                                      model->texts[ids[i + 1]]);
            const int id = find_piece(model, joined, (size_t)size);
            if (id >= 0 && (best == n || model->scores[id] > model->scores[result])) {
                best = i;
                result = id;
            }
        }
        if (best == n) {
            return n;
        }
        ids[best] = result;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

static void compare(const struct model *model, const struct tokenizer *tokenizer, size_t size)
{
    char *text = test_malloc(size + 1);
    int32_t *want = test_malloc((size + 2) * sizeof *want);
    char letter = 'a';
    want[0] = 0; // the prefix
    for (size_t i = 0; i < size; i++) {
        if (test_random_below(3) == 0) {
            letter = " abc"[test_random_below(4)];
        }
        text[i] = letter;
        want[i + 1] = letter == ' ' ? 0 : letter - 'a' + 1;
    }
    text[size] = '\0';
    const size_t n = size > 0 ? merge_slowly(model, want, size + 1) : 0;
    assert_encodes(tokenizer, text, 0, want, n);
    if (n > 0) {
        assert_decodes(tokenizer, want, n, text); // nothing is lost
    }
    test_free(text);
    test_free(want);
}

static struct tokenizer *build(const struct model *model)
{
    struct model_piece pieces[MAX_PIECES];
    for (size_t i = 0; i < model->n; i++) {
        pieces[i] = (struct model_piece){.text = model->texts[i], .score = model->scores[i]};
    }
    return parse(pieces, model->n, 0);
}

static void test_sentencepiece_agrees_with_its_definition(void **state)
{
    (void)state;
    for (int i = 0; i < 150; i++) {
        struct model model;
        random_model(&model);
        struct tokenizer *tokenizer = build(&model);
        for (int k = 0; k < 10; k++) {
            compare(&model, tokenizer, test_random_below(40));
        }
        compare(&model, tokenizer, 40 + test_random_below(100));
        tokenizer_free(tokenizer);
    }
}

/* Longer words than a heap alone takes: buckets of several pairs with one rank. */
static void test_sentencepiece_agrees_with_its_definition_on_long_words(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct model model;
        random_model(&model);
        model.n = model.n > 20 ? 20 : model.n;
        struct tokenizer *tokenizer = build(&model);
        compare(&model, tokenizer, 2100);
        tokenizer_free(tokenizer);
    }
}

// ---- what pieces are for ----

static const struct model_piece llama_like[] = {
    {"<unk>", 0, UNKNOWN},         {"<s>", 0, CONTROL}, {"</s>", 0, CONTROL},
    {SPACE SPACE, -1e9F, 0},       {"ab", -1, NORMAL},  {SPACE "ab", -2, NORMAL},
    {SPACE, -3, NORMAL},           {"a", -4, NORMAL},   {"b", -5, NORMAL},
    {SPACE SPACE SPACE, -1e9F, 0}, {"bb", -1, NORMAL},
};

static void test_sentencepiece_reads_a_model_like_llama(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = parse(llama_like, COUNT(llama_like), MODEL_BYTES);
    assert_int_equal(tokenizer_vocab_size(tokenizer), COUNT(llama_like) + 256);
    ENCODES(tokenizer, "ab", 0, 5);
    ENCODES(tokenizer, "ab", TOKENIZER_ADD_SPECIAL, 1, 5);
    assert_encodes(tokenizer, "", 0, NULL, 0);
    // Equal scores, leftmost first: a is taken from the bb.
    ENCODES(tokenizer, "abb", 0, 5, 8);
    // Three spaces and the prefix: from the left the longest run.
    ENCODES(tokenizer, "   b", 0, 9, 6, 8);
    ENCODES(tokenizer, "\n", 0, 6, (int32_t)COUNT(llama_like) + '\n');
    ENCODES(tokenizer, "<s>", 0, 6, (int32_t)COUNT(llama_like) + '<',
            (int32_t)COUNT(llama_like) + 's', (int32_t)COUNT(llama_like) + '>');
    ENCODES(tokenizer, "<s>ab</s>", TOKENIZER_PARSE_SPECIAL, 1, 5, 2);
    assert_true(tokenizer_is_special(tokenizer, 0) && tokenizer_is_special(tokenizer, 2));
    assert_false(tokenizer_is_special(tokenizer, 4));
    assert_int_equal(tokenizer_special_id(tokenizer, "</s>"), 2);
    assert_int_equal(tokenizer_special_id(tokenizer, "ab"), -1);
    assert_int_equal(tokenizer_special_id(tokenizer, ""), -1);
    assert_decodes(tokenizer, (int32_t[]){5, 6, 4}, 3, "ab ab");
    assert_decodes(tokenizer, (int32_t[]){1, 5}, 2, "<s> ab");
    tokenizer_free(tokenizer);
}

static void test_sentencepiece_without_prefix_keeps_spaces(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = parse(llama_like, COUNT(llama_like), MODEL_NO_PREFIX);
    ENCODES(tokenizer, "ab ab", 0, 4, 5);
    assert_decodes(tokenizer, (int32_t[]){5, 4}, 2, " abab");
    // No bytes to fall back to: one unknown token for a run of characters that are no pieces.
    ENCODES(tokenizer, "a??b?", 0, 7, 0, 8, 0);
    tokenizer_free(tokenizer);
}

static void test_sentencepiece_cuts_user_defined_pieces_out(void **state)
{
    (void)state;
    static const struct model_piece pieces[] = {
        {"<unk>", 0, UNKNOWN}, {"ab", -1, NORMAL}, {"a", -2, NORMAL}, {"b", -3, NORMAL},
        {SPACE, -4, NORMAL},   {"bab", 0, USER},   {"ba", 0, USER},   {SPACE SPACE, 0, USER},
    };
    struct tokenizer *tokenizer = parse(pieces, COUNT(pieces), 0);
    ENCODES(tokenizer, "abab", 0, 4, 2, 5);
    ENCODES(tokenizer, "abaab", 0, 4, 2, 6, 1);
    ENCODES(tokenizer, " ab", 0, 7, 1); // the prefix and the space are the piece
    assert_false(tokenizer_is_special(tokenizer, 5));
    assert_decodes(tokenizer, (int32_t[]){7, 1}, 2, " ab");
    tokenizer_free(tokenizer);
}

// ---- tokenizer_config.json ----

static void test_sentencepiece_takes_added_tokens_of_the_config(void **state)
{
    (void)state;
    static const char json[] =
        "{\"tokenizer_class\": \"LlamaTokenizer\", \"add_bos_token\": true, \"added_tokens_decoder\":"
        " {\"1\": {\"content\": \"<s>\", \"special\": true},"
        " \"11\": {\"content\": \"<pad>\", \"special\": true},"
        " \"12\": {\"content\": \"bb b\", \"special\": false, \"normalized\": false}}}";
    struct tokenizer_config config;
    assert_status_ok(tokenizer_config_parse(json, sizeof json - 1, &config));
    struct bytes file;
    bytes_init(&file, SIZE_MAX);
    model_fixture_sentencepiece(llama_like, COUNT(llama_like), SENTENCEPIECE_BPE, 0, &file);
    struct tokenizer *tokenizer = NULL;
    assert_status_ok(sentencepiece_parse(file.data, file.size, &config, &tokenizer));
    assert_int_equal(tokenizer_vocab_size(tokenizer), 13);
    ENCODES(tokenizer, "ab<pad>", TOKENIZER_PARSE_SPECIAL, 5, 11);
    ENCODES(tokenizer, "abbb b", 0, 5, 12);
    tokenizer_free(tokenizer);
    tokenizer_config_destroy(&config);

    static const char clash[] = "{\"added_tokens_decoder\": {\"1\": {\"content\": \"<bos>\"}}}";
    tokenizer = NULL;
    assert_status_ok(tokenizer_config_parse(clash, sizeof clash - 1, &config));
    assert_status_says(sentencepiece_parse(file.data, file.size, &config, &tokenizer),
                       STATUS_DATA_LOSS, "tokens \"<s>\" and \"<bos>\" have the same id 1");
    tokenizer_config_destroy(&config);
    bytes_destroy(&file);
}

// ---- what cannot be served ----

static void test_sentencepiece_refuses_what_it_cannot_serve(void **state)
{
    (void)state;

    static const struct {
        int model_type, flags;
        const char *says;
    } rows[] = {
        {0, 0, "trainer_spec.model_type: 1 is not supported (known: 2, BPE); 1 is unigram"},
        {SENTENCEPIECE_UNIGRAM, 0, "1 is unigram"},
        {SENTENCEPIECE_WORD, 0, "model_type: 3"},
        {SENTENCEPIECE_BPE, MODEL_CHARSMAP, "precompiled_charsmap: 5 bytes of rules"},
        {SENTENCEPIECE_BPE, MODEL_DENORMALIZER, "precompiled_charsmap: 5 bytes of rules"},
        {SENTENCEPIECE_BPE, MODEL_STRIP, "remove_extra_whitespaces 1"},
        {SENTENCEPIECE_BPE, MODEL_NO_ESCAPE, "escape_whitespaces 0"},
        {SENTENCEPIECE_BPE, MODEL_SUFFIX, "treat_whitespace_as_suffix"},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct tokenizer *tokenizer = NULL;
        assert_status_says(
            try_parse(llama_like, COUNT(llama_like), rows[i].model_type, rows[i].flags, &tokenizer),
            STATUS_DATA_LOSS, rows[i].says);
        assert_null(tokenizer);
    }
}

static void test_sentencepiece_refuses_bad_pieces(void **state)
{
    (void)state;

    static const struct {
        struct model_piece pieces[2];
        const char *says;
    } rows[] = {
        {{{"a", 0, NORMAL}, {"a", 0, NORMAL}}, "token \"a\" has the ids 0 and 1"},
        {{{"a", 0, NORMAL}, {"", 0, NORMAL}}, "the token with id 1 is empty"},
        {{{"a", 0, NORMAL}, {"\xff", 0, NORMAL}}, "the token with id 1 is not UTF-8"},
        {{{"a", 0, NORMAL}, {"b", NAN, NORMAL}}, "pieces[1]: the score is not a number"},
        {{{"a", 0, NORMAL}, {"b", 0, SENTENCEPIECE_UNUSED}}, "pieces[1]: type 5"},
        {{{"a", 0, NORMAL}, {"b", 0, 77}}, "pieces[1]: type 77"},
        {{{"a", 0, NORMAL}, {"ab", 0, NORMAL}}, "pieces[1]: its character at byte 1 is no piece"},
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        struct tokenizer *tokenizer = NULL;
        assert_status_says(try_parse(rows[i].pieces, 2, SENTENCEPIECE_BPE, 0, &tokenizer),
                           STATUS_DATA_LOSS, rows[i].says);
        assert_null(tokenizer);
    }
    struct tokenizer *tokenizer = NULL;
    assert_status_says(try_parse(llama_like, 0, SENTENCEPIECE_BPE, 0, &tokenizer), STATUS_DATA_LOSS,
                       "has no pieces");
    static const struct model_piece one = {"a", 0, NORMAL};
    assert_status_ok(try_parse(&one, 1, SENTENCEPIECE_BPE, MODEL_BYTES, &tokenizer));
    tokenizer_free(tokenizer);
}

/* Cut anywhere, the file is refused or, between two fields, another file that may load. */
static void test_sentencepiece_survives_every_truncation(void **state)
{
    (void)state;
    struct bytes file;
    bytes_init(&file, SIZE_MAX);
    model_fixture_sentencepiece(llama_like, COUNT(llama_like), SENTENCEPIECE_BPE, 0, &file);
    for (size_t size = 0; size < file.size; size++) {
        struct tokenizer *tokenizer = NULL;
        uint8_t *copy = test_malloc(size + 1);
        memcpy(copy, file.data, size);
        const status_t s = sentencepiece_parse(copy, size, &no_config, &tokenizer);
        assert_true(status_is_ok(&s) || (s.code == STATUS_DATA_LOSS && tokenizer == NULL));
        tokenizer_free(tokenizer);
        test_free(copy);
    }
    bytes_destroy(&file);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sentencepiece_agrees_with_its_definition),
        cmocka_unit_test(test_sentencepiece_agrees_with_its_definition_on_long_words),
        cmocka_unit_test(test_sentencepiece_reads_a_model_like_llama),
        cmocka_unit_test(test_sentencepiece_without_prefix_keeps_spaces),
        cmocka_unit_test(test_sentencepiece_cuts_user_defined_pieces_out),
        cmocka_unit_test(test_sentencepiece_takes_added_tokens_of_the_config),
        cmocka_unit_test(test_sentencepiece_refuses_what_it_cannot_serve),
        cmocka_unit_test(test_sentencepiece_refuses_bad_pieces),
        cmocka_unit_test(test_sentencepiece_survives_every_truncation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

/* Ids pushed one by one, each piece checked to be whole characters. */
static void decode_in_pieces(const struct tokenizer *tokenizer, const int32_t *ids, size_t n,
                             int flags, struct bytes *out)
{
    struct detokenizer d;
    detokenizer_init(&d, tokenizer, flags);
    for (size_t i = 0; i <= n; i++) {
        const size_t before = out->size;
        if (i < n) {
            assert_status_ok(detokenizer_push(&d, ids[i], out));
        } else {
            assert_status_ok(detokenizer_finish(&d, out));
        }
        assert_true(utf8_is_valid(out->data + before, out->size - before));
    }
}

static void assert_pieces_are_the_whole(const struct tokenizer *tokenizer, const int32_t *ids,
                                        size_t n, int flags)
{
    struct bytes pieces;
    struct bytes whole;
    bytes_init(&pieces, SIZE_MAX);
    bytes_init(&whole, SIZE_MAX);
    decode_in_pieces(tokenizer, ids, n, flags, &pieces);
    assert_status_ok(tokenizer_decode(tokenizer, ids, n, flags, &whole));
    assert_int_equal(pieces.size, whole.size);
    if (whole.size > 0) {
        assert_memory_equal(pieces.data, whole.data, whole.size);
    }
    bytes_destroy(&pieces);
    bytes_destroy(&whole);
}

static void test_detokenizer_pieces_are_the_whole_text(void **state)
{
    (void)state;
    for (size_t t = 0; t < FIXTURE_N_PUBLISHED; t++) {
        struct tokenizer *tokenizer = fixture_load_published(fixture_published[t]);
        const uint64_t n_ids = (uint64_t)tokenizer_vocab_size(tokenizer);
        for (int i = 0; i < 500; i++) {
            int32_t ids[64];
            const size_t n = test_random_below(64);
            for (size_t k = 0; k < n; k++) {
                // Low ids are where single bytes are.
                ids[k] = (int32_t)test_random_below(test_random_below(2) == 0 ? n_ids : 280);
            }
            assert_pieces_are_the_whole(tokenizer, ids, n, i % 2 == 0 ? TOKENIZER_SKIP_SPECIAL : 0);
        }
        tokenizer_free(tokenizer);
    }
}

// ---- broken UTF-8, byte level ----

static bool continues(uint8_t byte, uint8_t low, uint8_t high)
{
    return byte >= low && byte <= high;
}

/* Bytes that a lead byte asks for, 0: it is none. */
static size_t wanted_length(uint8_t lead)
{
    if (lead < 0x80) {
        return 1;
    }
    if (continues(lead, 0xC2, 0xDF)) {
        return 2;
    }
    if (continues(lead, 0xE0, 0xEF)) {
        return 3;
    }
    return continues(lead, 0xF0, 0xF4) ? 4 : 0;
}

/* The second byte has narrower bounds behind four of the leads. */
static bool second_fits(uint8_t lead, uint8_t second)
{
    switch (lead) {
    case 0xE0:
        return continues(second, 0xA0, 0xBF);
    case 0xED:
        return continues(second, 0x80, 0x9F);
    case 0xF0:
        return continues(second, 0x90, 0xBF);
    case 0xF4:
        return continues(second, 0x80, 0x8F);
    default:
        return continues(second, 0x80, 0xBF);
    }
}

/* Bytes of the well-formed or broken sequence at the start, by Unicode's table 3-7; *whole_out: well formed. */
static size_t sequence(const uint8_t *text, size_t n, bool *whole_out)
{
    const size_t length = wanted_length(text[0]);
    *whole_out = false;
    if (length == 0) {
        return 1;
    }
    for (size_t i = 1; i < length; i++) {
        if (i == n || !(i == 1 ? second_fits(text[0], text[1]) : continues(text[i], 0x80, 0xBF))) {
            return i;
        }
    }
    *whole_out = true;
    return length;
}

static size_t replace_broken(const uint8_t *text, size_t n, char *out)
{
    char *to = out;
    for (size_t at = 0; at < n;) {
        bool whole;
        const size_t length = sequence(text + at, n - at, &whole);
        if (whole) {
            memcpy(to, text + at, length);
            to += length;
        } else {
            to = stpcpy(to, "\uFFFD");
        }
        at += length;
    }
    return (size_t)(to - out);
}

static void test_detokenizer_replaces_each_broken_part_once(void **state)
{
    (void)state;
    static const uint8_t likely[] = {0x41, 0x80, 0xBF, 0xC2, 0xC3, 0xE0, 0xE4, 0xED, 0xEF,
                                     0xF0, 0xF4, 0xA0, 0x9F, 0x90, 0x8F, 0xFF, 0xC0, 0x20};
    struct tokenizer *tokenizer = fixture_bytes();
    for (int i = 0; i < 20000; i++) {
        uint8_t text[12];
        int32_t ids[12];
        char want[64];
        const size_t n = test_random_below(12);
        for (size_t k = 0; k < n; k++) {
            text[k] = likely[test_random_below(sizeof likely)];
            ids[k] = text[k];
        }
        const size_t size = replace_broken(text, n, want);
        struct bytes got;
        bytes_init(&got, 1024);
        decode_in_pieces(tokenizer, ids, n, 0, &got);
        assert_int_equal(got.size, size);
        if (size > 0) {
            assert_memory_equal(got.data, want, size);
        }
        bytes_destroy(&got);
    }
    tokenizer_free(tokenizer);
}

// ---- byte fallback ----

/* <unk>, <0x00>..<0xFF> as 1..256, then "▁" 257, "a" 258, "▁a" 259. */
static struct tokenizer *fallback_tokenizer(void)
{
    char model[16 * 1024];
    size_t at = (size_t)snprintf(model, sizeof model,
                                 "{\"byte_fallback\": true, \"fuse_unk\": true,"
                                 " \"unk_token\": \"<unk>\", \"merges\": [\"\u2581 a\"],"
                                 " \"vocab\": {\"<unk>\": 0, \"\u2581\": 257, \"a\": 258,"
                                 " \"\u2581a\": 259");
    for (int byte = 0; byte < 256; byte++) {
        at += (size_t)snprintf(model + at, sizeof model - at, ", \"<0x%02X>\": %d", (unsigned)byte,
                               byte + 1);
    }
    at += (size_t)snprintf(model + at, sizeof model - at, "}}");
    assert_true(at < sizeof model);
    struct fixture_parts parts = fixture_sentencepiece;
    parts.model = model;
    parts.added_tokens = "[{\"id\": 260, \"content\": \"</s>\", \"special\": true}]";
    return fixture_parse(&parts);
}

/* Byte tokens of a string, with '#' for the token "a", '_' for "▁a". */
static size_t fallback_ids(const char *text, int32_t *ids)
{
    const size_t n = strlen(text);
    for (size_t i = 0; i < n; i++) {
        ids[i] = text[i] == '#' ? 258 : text[i] == '_' ? 259 : (uint8_t)text[i] + 1;
    }
    return n;
}

static void test_detokenizer_joins_fallback_bytes(void **state)
{
    (void)state;

    static const struct {
        const char *ids;
        const char *text;
    } rows[] = {
        {"#\xC3\xA9#", "a\u00e9a"},
        {"_#_", "aa a"}, // one space at the start is dropped
        {" #", "a"},     // also one that a byte token gives
        {"\xF0\x9F\x98\x80\n", "\U0001f600\n"},
        {"\xF0\x9F\x98#", "\uFFFD\uFFFD\uFFFDa"}, // each byte of a broken run
        {"\xF0\x9F\x98", "\uFFFD\uFFFD\uFFFD"},   // also at the end
        {"\xC3\x28#", "\uFFFD\uFFFDa"},           // and those after the break
        {"\xC3\x28z\xC3\xA9#\xC3\xA9", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDa\u00e9"},
        {"z\xC3\xA9\xFFz#", "z\u00e9\uFFFD\uFFFDa"}, // characters before it have been shown
        {"\x80#", "\uFFFDa"},
        {"", ""},
    };
    struct tokenizer *tokenizer = fallback_tokenizer();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int32_t ids[32];
        const size_t n = fallback_ids(rows[i].ids, ids);
        struct bytes got;
        bytes_init(&got, 1024);
        decode_in_pieces(tokenizer, ids, n, 0, &got);
        if (got.size != strlen(rows[i].text) ||
            (got.size > 0 && memcmp(got.data, rows[i].text, got.size) != 0)) {
            fail_msg("row %zu: \"%.*s\", want \"%s\"", i, (int)got.size, (const char *)got.data,
                     rows[i].text);
        }
        bytes_destroy(&got);
    }
    tokenizer_free(tokenizer);
}

/* A character appears with its last byte, not later. */
static void test_detokenizer_does_not_hold_whole_characters(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fallback_tokenizer();
    struct detokenizer d;
    struct bytes out;
    bytes_init(&out, 64);
    detokenizer_init(&d, tokenizer, 0);
    static const uint8_t text[] = "\xF0\x9F\x98\x80";
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(out.size, 0);
        assert_status_ok(detokenizer_push(&d, text[i] + 1, &out));
    }
    assert_int_equal(out.size, 4);
    assert_status_says(detokenizer_push(&d, 261, &out), STATUS_INVALID_ARGUMENT, "token id 261");
    bytes_destroy(&out);
    tokenizer_free(tokenizer);
}

/* Special tokens that are left out neither end a run of bytes nor count as the start of the text. */
static void test_detokenizer_skips_special_tokens(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fallback_tokenizer();
    const int32_t ids[] = {260, 259, 0xC3 + 1, 260, 0xA9 + 1};
    struct bytes out;
    bytes_init(&out, 64);
    decode_in_pieces(tokenizer, ids, 5, TOKENIZER_SKIP_SPECIAL, &out);
    assert_int_equal(out.size, 3);
    assert_memory_equal(out.data, "a\u00e9", 3);
    bytes_clear(&out);
    decode_in_pieces(tokenizer, ids, 5, 0, &out);
    assert_int_equal(out.size, strlen("</s> a\uFFFD</s>\uFFFD"));
    assert_memory_equal(out.data, "</s> a\uFFFD</s>\uFFFD", out.size);
    bytes_destroy(&out);
    tokenizer_free(tokenizer);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detokenizer_pieces_are_the_whole_text),
        cmocka_unit_test(test_detokenizer_replaces_each_broken_part_once),
        cmocka_unit_test(test_detokenizer_joins_fallback_bytes),
        cmocka_unit_test(test_detokenizer_does_not_hold_whole_characters),
        cmocka_unit_test(test_detokenizer_skips_special_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

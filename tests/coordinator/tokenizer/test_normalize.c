#include "tests/support/test.h"

#include <string.h>

#include "coordinator/tokenizer/nfc.h"
#include "coordinator/tokenizer/normalize.h"

static void assert_normal(const struct normalizer *normalizer, const char *text, const char *want)
{
    struct bytes out;
    struct bytes spare;
    const size_t max = normalize_max_bytes(normalizer, strlen(text));
    bytes_init(&out, max);
    bytes_init(&spare, max);
    assert_status_ok(normalize_text(normalizer, text, strlen(text), &out, &spare));
    if (out.size != strlen(want) || (out.size > 0 && memcmp(out.data, want, out.size) != 0)) {
        fail_msg("\"%s\" became \"%.*s\", want \"%s\"", text, (int)out.size, (const char *)out.data,
                 want);
    }
    bytes_destroy(&out);
    bytes_destroy(&spare);
}

static void test_normalize_steps_in_order(void **state)
{
    (void)state;
    const struct normalizer nothing = {0};
    assert_normal(&nothing, "", "");
    assert_normal(&nothing, "a b", "a b");
    const struct normalizer llama = {
        .steps = {{.kind = NORMALIZE_PREPEND, .content = "\u2581"},
                  {.kind = NORMALIZE_REPLACE, .pattern = " ", .content = "\u2581"}},
        .n_steps = 2};
    assert_normal(&llama, "", "");
    assert_normal(&llama, " ", "\u2581\u2581");
    assert_normal(&llama, "a b  c", "\u2581a\u2581b\u2581\u2581c");
    const struct normalizer other_order = {
        .steps = {{.kind = NORMALIZE_REPLACE, .pattern = "aa", .content = "b"},
                  {.kind = NORMALIZE_PREPEND, .content = "aa"},
                  {.kind = NORMALIZE_REPLACE, .pattern = "ab", .content = ""}},
        .n_steps = 3};
    assert_normal(&other_order, "aaa", "aa"); // ba, then aaba, then the ab in it goes
}

static void test_normalize_composes(void **state)
{
    (void)state;
    const struct normalizer nfc = {.steps = {{.kind = NORMALIZE_NFC}}, .n_steps = 1};
    static const char *const rows[][2] = {
        {"", ""},
        {"plain \u00e9\u017f\u02ff", "plain \u00e9\u017f\u02ff"},
        {"e\u0301", "\u00e9"},
        {"\u00e9e\u0301", "\u00e9\u00e9"},
        {"xe\u0301", "x\u00e9"},
        {"\u00e9\u0323", "\u1eb9\u0301"}, // taken apart, reordered, put together
        {"a\u0307\u0323", "\u1ea1\u0307"},
        {"\u1112\u1161\u11ab", "\ud55c"}, // Hangul
        {"\uac00\u11a8", "\uac01"},
        {"\u212b", "\u00c5"}, // one for one
        {"\u2126", "\u03a9"},
        {"\u0958", "\u0915\u093c"}, // excluded from composition
        {"\u0344", "\u0308\u0301"},
        {"\ufb2c", "\u05e9\u05bc\u05c1"},
        {"\U0001d160", "\U0001d158\U0001d165\U0001d16e"},
        {"\U0002f800", "\u4e3d"},
        {"\u0301e", "\u0301e"},             // a mark without a letter
        {"\ufb01", "\ufb01"},               // compatibility forms stay
        {"e\u200d\u0301", "e\u200d\u0301"}, // something in between
        {"a\u0315\u0300\u05ae\u0300b", "\u00e0\u05ae\u0300\u0315b"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_normal(&nfc, rows[i][0], rows[i][1]);
    }
}

/* Marks that compose with nothing here, in order of their combining classes: 1, 216, 220, 230, 232, 240. */
static const struct {
    const char *text;
} marks[] = {{"\u0334"}, {"\u031b"}, {"\u0316"}, {"\u033d"}, {"\u0315"}, {"\u0345"}};

/* Runs of marks, short and long, come out in order of their classes, equal ones as they were. */
static void test_normalize_orders_runs_of_marks(void **state)
{
    (void)state;
    const struct normalizer nfc = {.steps = {{.kind = NORMALIZE_NFC}}, .n_steps = 1};
    const size_t n_kinds = sizeof marks / sizeof marks[0];
    for (int round = 0; round < 200; round++) {
        char text[512] = "\u4e2d";
        char want[512] = "\u4e2d";
        char *to = text + strlen(text);
        size_t count[6] = {0};
        const uint64_t n = test_random_below(100);
        for (uint64_t i = 0; i < n; i++) {
            const size_t kind = test_random_below(n_kinds);
            count[kind]++;
            to = stpcpy(to, marks[kind].text);
        }
        stpcpy(to, "z");
        to = want + strlen(want);
        for (size_t kind = 0; kind < n_kinds; kind++) {
            for (size_t i = 0; i < count[kind]; i++) {
                to = stpcpy(to, marks[kind].text);
            }
        }
        stpcpy(to, "z");
        assert_normal(&nfc, text, want);
    }
}

/* A megabyte of marks in the worst order: sorting them by neighbours would take hours. */
static void test_normalize_marks_in_linear_time(void **state)
{
    (void)state;
    const size_t size = (size_t)1 << 20;
    char *text = test_malloc(size);
    for (size_t i = 0; i < size; i += 2) {
        text[i] = '\xCC';
        text[i + 1] = i < size / 2 ? '\x95' : '\x96'; // U+0315 is of class 232, U+0316 of 220
    }
    struct bytes out;
    bytes_init(&out, NFC_MAX_GROWTH * size);
    assert_status_ok(nfc_append((const uint8_t *)text, size, &out));
    assert_int_equal(out.size, size);
    assert_memory_equal(out.data, "\u0316\u0316", 4);
    assert_memory_equal(out.data + size - 4, "\u0315\u0315", 4);
    bytes_destroy(&out);
    test_free(text);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normalize_steps_in_order),
        cmocka_unit_test(test_normalize_composes),
        cmocka_unit_test(test_normalize_orders_runs_of_marks),
        cmocka_unit_test(test_normalize_marks_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

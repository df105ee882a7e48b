#include "tests/support/test.h"

#include <string.h>

#include "coordinator/tokenizer/fim.h"
#include "tests/coordinator/tokenizer/tokenizer_fixture.h"

#define FIM                                                             \
    "[{\"id\": 256, \"content\": \"<fim_prefix>\", \"special\": true}," \
    " {\"id\": 257, \"content\": \"<fim_middle>\", \"special\": true}," \
    " {\"id\": 258, \"content\": \"<fim_suffix>\", \"special\": "

static struct fim_text text_of(const char *text)
{
    return (struct fim_text){.data = text, .size = strlen(text)};
}

static void assert_prompt(const struct tokenizer *tokenizer, const char *prefix, const char *suffix,
                          const int32_t *want, size_t n)
{
    struct token_list list = {0};
    assert_status_ok(fim_encode(tokenizer, text_of(prefix), text_of(suffix), &list));
    assert_int_equal(list.n, n);
    assert_memory_equal(list.ids, want, n * sizeof *want);
    token_list_destroy(&list);
}

static void test_fim_puts_the_middle_last(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_bytes_with(FIM "true}]");
    assert_prompt(tokenizer, "ab", "c", (const int32_t[]){256, 'a', 'b', 258, 'c', 257}, 6);
    assert_prompt(tokenizer, "", "", (const int32_t[]){256, 258, 257}, 3);
    tokenizer_free(tokenizer);
}

/* Tokens that are written out in the texts stay text. */
static void test_fim_takes_texts_as_text(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_bytes_with(FIM "true}]");
    struct token_list list = {0};
    assert_status_ok(
        fim_encode(tokenizer, text_of("<fim_middle>"), text_of("<fim_suffix>x"), &list));
    size_t n_special = 0;
    for (size_t i = 0; i < list.n; i++) {
        n_special += tokenizer_is_special(tokenizer, list.ids[i]);
    }
    assert_int_equal(n_special, 3);
    assert_int_equal(list.n, 3 + 12 + 13);
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
}

static void test_fim_refuses_models_without_its_tokens(void **state)
{
    (void)state;
    struct token_list list = {0};
    struct tokenizer *tokenizer = fixture_bytes();
    assert_status_says(fim_encode(tokenizer, text_of("a"), text_of("b"), &list),
                       STATUS_INVALID_ARGUMENT, "no special token <fim_prefix>");
    tokenizer_free(tokenizer);
    tokenizer = fixture_bytes_with(FIM "false}]"); // a token of that name that is not special
    assert_status_says(fim_encode(tokenizer, text_of("a"), text_of("b"), &list),
                       STATUS_INVALID_ARGUMENT, "no special token <fim_suffix>");
    tokenizer_free(tokenizer);
    tokenizer = fixture_bytes_with(FIM "true}]");
    assert_status_says(fim_encode(tokenizer, text_of("a"), text_of("\xff"), &list),
                       STATUS_INVALID_ARGUMENT, "suffix: text is not UTF-8 at byte 0");
    assert_int_equal(list.n, 0);
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
}

static void test_fim_of_decicoder(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_load_published("decicoder-1b");
    struct token_list list = {0};
    assert_status_ok(fim_encode(tokenizer, text_of("def f("), text_of(")"), &list));
    assert_true(list.n > 4);
    assert_int_equal(list.ids[0], 1);
    assert_int_equal(list.ids[list.n - 3], 3);
    assert_int_equal(list.ids[list.n - 1], 2);
    token_list_destroy(&list);
    tokenizer_free(tokenizer);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fim_puts_the_middle_last),
        cmocka_unit_test(test_fim_takes_texts_as_text),
        cmocka_unit_test(test_fim_refuses_models_without_its_tokens),
        cmocka_unit_test(test_fim_of_decicoder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

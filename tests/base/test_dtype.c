#include "tests/support/test.h"

#include "base/dtype.h"

static void test_dtype_parse_knows_both_spellings(void **state)
{
    (void)state;

    static const struct {
        const char *text;
        int dtype;
        size_t bytes;
    } rows[] = {
        {"float32", DTYPE_F32, 4}, {"F32", DTYPE_F32, 4},       {"float16", DTYPE_F16, 2},
        {"F16", DTYPE_F16, 2},     {"bfloat16", DTYPE_BF16, 2}, {"BF16", DTYPE_BF16, 2},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int dtype = -1;
        assert_status_ok(dtype_parse(rows[i].text, &dtype));
        assert_int_equal(dtype, rows[i].dtype);
        assert_int_equal(dtype_bytes(dtype), rows[i].bytes);
        assert_status_ok(dtype_parse(dtype_name(dtype), &dtype));
        assert_int_equal(dtype, rows[i].dtype);
    }
}

static void test_dtype_parse_names_the_unknown(void **state)
{
    (void)state;
    int dtype = 7;
    assert_status_says(dtype_parse("int8", &dtype), STATUS_INVALID_ARGUMENT, "'int8'");
    assert_status_code(dtype_parse("", &dtype), STATUS_INVALID_ARGUMENT);
    assert_status_code(dtype_parse("bf16", &dtype), STATUS_INVALID_ARGUMENT);
    assert_int_equal(dtype, 7);
}

static void test_dtype_resolve_follows_the_wish_or_the_fallback(void **state)
{
    (void)state;
    assert_int_equal(dtype_resolve(DTYPE_WANTED_F32, DTYPE_BF16), DTYPE_F32);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_BF16, DTYPE_F32), DTYPE_BF16);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_AUTO, DTYPE_BF16), DTYPE_BF16);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_AUTO, DTYPE_F32), DTYPE_F32);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_AUTO, DTYPE_F16), DTYPE_F32);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtype_parse_knows_both_spellings),
        cmocka_unit_test(test_dtype_parse_names_the_unknown),
        cmocka_unit_test(test_dtype_resolve_follows_the_wish_or_the_fallback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

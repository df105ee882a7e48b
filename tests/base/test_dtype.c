#include "tests/support/test.h"

#include <math.h>
#include <string.h>

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
    assert_status_code(dtype_parse("I8", &dtype), STATUS_INVALID_ARGUMENT);
    assert_status_code(dtype_parse("", &dtype), STATUS_INVALID_ARGUMENT);
    assert_status_code(dtype_parse("bf16", &dtype), STATUS_INVALID_ARGUMENT);
    assert_int_equal(dtype, 7);
}

static void test_dtype_resolve_follows_the_wish_or_the_fallback(void **state)
{
    (void)state;
    assert_int_equal(dtype_resolve(DTYPE_WANTED_F32, DTYPE_BF16), DTYPE_F32);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_BF16, DTYPE_F32), DTYPE_BF16);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_I8, DTYPE_BF16), DTYPE_I8);
    assert_int_equal(dtype_bytes(DTYPE_I8), 1);
    assert_string_equal(dtype_name(DTYPE_I8), "int8");
    assert_string_equal(dtype_name(DTYPE_I8 + 1), "unknown"); // of a peer of another version
    assert_string_equal(dtype_name(-1), "unknown");
    assert_int_equal(dtype_resolve(DTYPE_WANTED_AUTO, DTYPE_BF16), DTYPE_BF16);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_AUTO, DTYPE_F32), DTYPE_F32);
    assert_int_equal(dtype_resolve(DTYPE_WANTED_AUTO, DTYPE_F16), DTYPE_F32);
}

/* All 65,536 halves, and floats around the largest, by the C library's own opinion. */
static void test_dtype_counts_what_is_not_finite(void **state)
{
    (void)state;
    static uint16_t halves[65536];
    for (uint32_t bits = 0; bits < 65536; bits++) {
        halves[bits] = (uint16_t)bits;
    }
    assert_int_equal(dtype_count_not_finite(halves, DTYPE_F16, 65536), 2 * 1024);
    assert_int_equal(dtype_count_not_finite(halves, DTYPE_BF16, 65536), 2 * 128);
    assert_int_equal(dtype_count_not_finite(halves, DTYPE_F16, 0x7C00), 0);
    assert_int_equal(dtype_count_not_finite(halves, DTYPE_BF16, 0x7F81), 1);
    assert_int_equal(dtype_count_not_finite(halves, DTYPE_BF16, 0), 0);

    static float floats[10007];
    uint64_t want = 0;
    for (size_t i = 0; i < 10007; i++) {
        const uint32_t bits = (uint32_t)test_random_below(0x400) << 21;
        memcpy(&floats[i], &bits, sizeof bits);
        want += isfinite(floats[i]) ? 0 : 1;
    }
    assert_true(want > 0);
    assert_int_equal(dtype_count_not_finite(floats, DTYPE_F32, 10007), want);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtype_parse_knows_both_spellings),
        cmocka_unit_test(test_dtype_parse_names_the_unknown),
        cmocka_unit_test(test_dtype_resolve_follows_the_wish_or_the_fallback),
        cmocka_unit_test(test_dtype_counts_what_is_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/kernels/kernel_check.h"

#include <math.h>

#include "kernels/cpu/convert.h"

static void test_convert_bf16_round_trips_every_value(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits <= 0xFFFF; bits++) {
        const float x = f32_from_bf16((uint16_t)bits);
        const uint16_t back = bf16_from_f32(x);
        if (isnan(x)) {
            assert_true(isnan(f32_from_bf16(back)));
        } else {
            assert_int_equal(back, bits);
        }
    }
}

static void test_convert_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;

    static const struct {
        uint32_t bits;
        uint16_t want;
    } cases
        [] =
            {
                {0x3F808000, 0x3F80}, // a tie, to even
                {0x3F818000, 0x3F82}, // a tie, to even upwards
                {0x3F808001, 0x3F81}, {0x3F807FFF, 0x3F80},
                {0x7F7FFFFF, 0x7F80}, // the largest float rounds to infinity
                {0xFF7F8000, 0xFF80}, {0x00008000, 0x0000},
                {0x00018000, 0x0002}, {0x7F800000, 0x7F80},
            };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(bf16_from_f32(f32_from_bits(cases[i].bits)), cases[i].want);
    }
    for (int i = 0; i < 100000; i++) {
        const float x = (float)test_random_double(-100.0, 100.0);
        assert_int_equal(bf16_from_f32(x), bits_bf16(x));
    }
    // A NaN whose payload is in the lower half must not become an infinity.
    assert_true(isnan(f32_from_bf16(bf16_from_f32(f32_from_bits(0x7F800001u)))));
}

static void test_convert_f16_gives_every_value(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits <= 0xFFFF; bits++) {
        const int exponent = (int)(bits >> 10 & 0x1Fu);
        const double fraction = (double)(bits & 0x3FFu);
        const double sign = bits & 0x8000u ? -1.0 : 1.0;
        const float got = f32_from_f16((uint16_t)bits);
        if (exponent == 31) {
            assert_true(fraction > 0.0 ? isnan(got) : (double)got == sign * INFINITY);
        } else if (exponent == 0) {
            assert_true((double)got == sign * ldexp(fraction, -24));
            assert_int_equal(signbit(got) != 0, bits >> 15);
        } else {
            assert_true((double)got == sign * ldexp(1024.0 + fraction, exponent - 25));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert_bf16_round_trips_every_value),
        cmocka_unit_test(test_convert_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_convert_f16_gives_every_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

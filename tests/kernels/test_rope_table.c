#include "tests/support/test.h"

#include <math.h>

#include "kernels/rope_table.h"

/* Angles rounded to float32 where the reference implementation rounds them, from there in long double. */
static void check_table(int32_t max_positions, int32_t rotary_dim, double theta)
{
    struct rope_table table;
    assert_status_ok(rope_table_init(&table, max_positions, rotary_dim, theta));
    assert_int_equal(table.max_positions, max_positions);
    assert_int_equal(table.rotary_dim, rotary_dim);
    const int32_t half = rotary_dim / 2;
    for (int32_t p = 0; p < max_positions; p += p < 10 ? 1 : 97) {
        for (int32_t i = 0; i < half; i++) {
            const float exponent = (float)(2 * i) / (float)rotary_dim;
            const float power = (float)powl((long double)theta, (long double)exponent);
            const float angle = (1.0f / power) * (float)p;
            assert_close(table.cos[p * half + i], cosl((long double)angle), 1e-7, 1e-7);
            assert_close(table.sin[p * half + i], sinl((long double)angle), 1e-7, 1e-7);
        }
    }
    rope_table_destroy(&table);
    assert_null(table.cos);
}

static void test_rope_table_holds_the_reference_angles(void **state)
{
    (void)state;
    check_table(4096, 128, 10000.0);
    check_table(2048, 64, 500000.0);
    check_table(3, 2, 10000.0);
    check_table(100, 20, 8000.5);
}

/* Position 0 turns nothing; the first pair turns by one radian a position. */
static void test_rope_table_known_values(void **state)
{
    (void)state;
    struct rope_table table;
    assert_status_ok(rope_table_init(&table, 3, 4, 10000.0));
    assert_true(table.cos[0] == 1.0f && table.sin[0] == 0.0f && table.cos[1] == 1.0f);
    assert_close(table.cos[2], 0.54030230586813977, 1e-7, 0.0);
    assert_close(table.sin[2], 0.84147098480789651, 1e-7, 0.0);
    assert_close(table.sin[3], 0.00999983333416666, 1e-9, 0.0);
    assert_close(table.sin[4], 0.90929742682568170, 1e-7, 0.0);
    rope_table_destroy(&table);
}

/* Llama 3.3: of 64 pairs 29 stay, 29 turn 8 times slower, and 6 lie between. */
static void test_rope_table_scales_slow_pairs(void **state)
{
    (void)state;
    static const double between[] = {1.2075, 1.5534, 2.0263, 2.6945, 3.6843, 5.2573};
    const struct rope_scaling scaling = {
        .factor = 8.0, .low = 1.0, .high = 4.0, .original_positions = 8192};
    struct rope_table table;
    assert_status_ok(rope_table_init_scaled(&table, 2, 128, 500000.0, &scaling));
    for (int32_t i = 0; i < 64; i++) {
        double slower = i < 29 ? 1.0 : 8.0;
        if (i >= 29 && i < 35) {
            slower = between[i - 29];
        }
        const double angle = pow(500000.0, -2.0 * i / 128.0) / slower;
        assert_close(table.sin[64 + i], sin(angle), 1e-9, i >= 29 && i < 35 ? 5e-5 : 1e-6);
    }
    rope_table_destroy(&table);
}

static void test_rope_table_refuses_bad_shapes(void **state)
{
    (void)state;
    struct rope_table table = {0};
    assert_status_code(rope_table_init(&table, 0, 4, 10000.0), STATUS_INVALID_ARGUMENT);
    assert_status_code(rope_table_init(&table, 4, 3, 10000.0), STATUS_INVALID_ARGUMENT);
    assert_status_code(rope_table_init(&table, 4, 0, 10000.0), STATUS_INVALID_ARGUMENT);
    assert_status_code(rope_table_init(&table, 4, 4, 0.0), STATUS_INVALID_ARGUMENT);
    assert_status_code(rope_table_init(&table, 4, 4, NAN), STATUS_INVALID_ARGUMENT);
    rope_table_destroy(&table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rope_table_holds_the_reference_angles),
        cmocka_unit_test(test_rope_table_known_values),
        cmocka_unit_test(test_rope_table_scales_slow_pairs),
        cmocka_unit_test(test_rope_table_refuses_bad_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

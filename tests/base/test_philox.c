#include "tests/support/test.h"

#include "base/philox.h"

/* Known answers published with Random123 (philox4x32, 10 rounds). */
static const struct {
    uint32_t counter[4], key[2], want[4];
} known[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void test_philox_known_answers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint32_t got[4];
        philox_4x32(known[i].counter, known[i].key, got);
        assert_memory_equal(got, known[i].want, sizeof got);
    }
}

static void test_philox_may_overwrite_its_counter(void **state)
{
    (void)state;
    uint32_t block[4] = {0, 0, 0, 0};
    philox_4x32(block, known[0].key, block);
    assert_memory_equal(block, known[0].want, sizeof block);
}

static void test_philox_uniform_bounds_are_exact(void **state)
{
    (void)state;
    assert_true(philox_uniform(0) == 0.0f);
    assert_true(philox_uniform(255) == 0.0f);
    assert_true(philox_uniform(256) == 0x1p-24f);
    assert_true(philox_uniform(UINT32_MAX) == 1.0f - 0x1p-24f);
}

static void test_philox_uniform_is_even(void **state)
{
    (void)state;
    // 40,000 draws in 10 bins: expected 4000 each, standard deviation 60; 6 sigma is 360.
    int bins[10] = {0};
    for (uint32_t i = 0; i < 10000; i++) {
        uint32_t out[4];
        philox_4x32((const uint32_t[4]){i, 0, 0, 0}, (const uint32_t[2]){1, 2}, out);
        for (int k = 0; k < 4; k++) {
            bins[(int)(philox_uniform(out[k]) * 10.0f)]++;
        }
    }
    for (int i = 0; i < 10; i++) {
        assert_in_range(bins[i], 3640, 4360);
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_philox_may_overwrite_its_counter),
        cmocka_unit_test(test_philox_uniform_bounds_are_exact),
        cmocka_unit_test(test_philox_uniform_is_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

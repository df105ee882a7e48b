#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "tests/parallel/models.h"

static void test_plan_unpack_refuses_every_truncation(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct model_spec spec = models_random(true);
        const int32_t tp = models_between(1, spec.n_heads < 12 ? spec.n_heads : 12);
        struct plan plan = models_plan(&spec, tp,
                                       i % 3 == 0   ? PLAN_SHARE
                                       : i % 3 == 1 ? PLAN_TOKEN
                                                    : PLAN_REPLICATE);
        struct bytes wire;
        bytes_init(&wire, 1 << 20);
        assert_status_ok(plan_pack(&plan, &wire));
        struct plan copy;
        for (size_t size = 0; size < wire.size; size++) {
            // A block of its own, so that a read past the end is seen.
            uint8_t *cut = malloc(size + 1);
            assert_non_null(cut);
            memcpy(cut + 1, wire.data, size);
            assert_status_code(plan_unpack(cut + 1, size, &spec, &copy), STATUS_DATA_LOSS);
            free(cut);
        }
        bytes_destroy(&wire);
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
}

static uint64_t reference_sum(const uint8_t *data, size_t size)
{
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < size; i++) {
        hash ^= data[i];
        hash *= 1099511628211u;
    }
    return hash;
}

/*
 * Flips bits with and without making the sum right again: the sum refuses the first kind, and the
 * numbers themselves are checked for the second, which may only pass as a plan that keeps every rule.
 */
static void test_plan_unpack_survives_flipped_bytes(void **state)
{
    (void)state;
    int accepted = 0;
    for (int i = 0; i < 3000; i++) {
        struct model_spec spec = models_random(true);
        const int32_t tp = models_between(1, spec.n_heads < 12 ? spec.n_heads : 12);
        struct plan plan = models_plan(&spec, tp,
                                       i % 3 == 0   ? PLAN_REPLICATE
                                       : i % 3 == 1 ? PLAN_TOKEN
                                                    : PLAN_SHARE);
        struct bytes wire;
        bytes_init(&wire, 1 << 20);
        assert_status_ok(plan_pack(&plan, &wire));
        const size_t body = wire.size - 8;
        wire.data[test_random_below(body)] ^= (uint8_t)(1u << test_random_below(8));
        struct plan copy;
        assert_status_says(plan_unpack(wire.data, wire.size, &spec, &copy), STATUS_DATA_LOSS,
                           "checksum");

        const uint64_t sum = reference_sum(wire.data, body);
        for (size_t j = 0; j < 8; j++) {
            wire.data[body + j] = (uint8_t)(sum >> (8 * j));
        }
        const status_t s = plan_unpack(wire.data, wire.size, &spec, &copy);
        if (s.code == STATUS_OK) {
            accepted++;
            assert_status_ok(plan_check(&copy, &spec));
            plan_destroy(&copy);
        } else {
            assert_int_equal(s.code, STATUS_DATA_LOSS);
        }
        bytes_destroy(&wire);
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
    assert_true(accepted < 300); // nearly every flip breaks a rule
}

static void test_plan_unpack_refuses_another_model(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 4, PLAN_SHARE);
    struct bytes wire;
    bytes_init(&wire, 1 << 20);
    assert_status_ok(plan_pack(&plan, &wire));
    struct plan copy;
    spec.layers[20].n_kv_heads = 2;
    assert_status_says(plan_unpack(wire.data, wire.size, &spec, &copy), STATUS_DATA_LOSS,
                       "layer 20 has 2 KV heads");
    spec.layers[20].n_kv_heads = 1;
    spec.layers[20].n_ff = 11008;
    assert_status_code(plan_unpack(wire.data, wire.size, &spec, &copy), STATUS_DATA_LOSS);
    spec.layers[20].n_ff = 14336;
    spec.n_vocab--;
    assert_status_says(plan_unpack(wire.data, wire.size, &spec, &copy), STATUS_DATA_LOSS,
                       "made for 32 layers");
    bytes_destroy(&wire);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_unpack_refuses_every_truncation),
        cmocka_unit_test(test_plan_unpack_survives_flipped_bytes),
        cmocka_unit_test(test_plan_unpack_refuses_another_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/support/test.h"

#include <string.h>

#include "kernels/backend.h"
#include "parallel/plan_memory.h"
#include "tests/parallel/models.h"

static struct plan_memory_request request_of(const struct plan *plan, const struct model_spec *spec)
{
    return (struct plan_memory_request){
        .plan = plan,
        .spec = spec,
        .dtype = DTYPE_BF16,
        .kv_dtype = DTYPE_BF16,
        .max_seqs = 64,
        .max_rows = 512,
        .max_model_len = 4096,
        .blocks_per_lane = 100,
    };
}

static void test_plan_memory_of_int8_kv_is_130_bytes_where_bfloat16_has_256(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    spec.rotary_dim = 128;
    struct plan plan = models_plan(&spec, 1, PLAN_SHARE);
    struct plan_memory_request request = request_of(&plan, &spec);
    struct plan_memory half, byte;
    plan_memory_of(&request, 0, &half);
    request.kv_dtype = DTYPE_I8;
    plan_memory_of(&request, 0, &byte);
    assert_int_equal(byte.kv, (uint64_t)100 * 16 * 17420);
    assert_int_equal(half.total - byte.total, (uint64_t)100 * 16 * (34304 - 17420));
    // The same memory holds almost twice the blocks.
    assert_int_equal(plan_memory_blocks_in(&plan, DTYPE_BF16, 256000000), 466);
    assert_int_equal(plan_memory_blocks_in(&plan, DTYPE_I8, 256000000), 918);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

/* Counted by hand: two bytes a parameter, norms in float32, 34,304 bytes of KV a token. */
static void test_plan_memory_of_deci_7b_on_one_rank(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    spec.rotary_dim = 128;
    struct plan plan = models_plan(&spec, 1, PLAN_SHARE);
    const struct plan_memory_request request = request_of(&plan, &spec);
    struct plan_memory m;
    plan_memory_of(&request, 0, &m);
    const uint64_t norms = (uint64_t)65 * 4096;
    assert_int_equal(m.weights, 2 * (uint64_t)spec_parameters(&spec) + 2 * norms);
    assert_int_equal(m.kv, (uint64_t)100 * 16 * 34304);
    // 3 x 4096; queries of 32 heads with keys and values of at most 4, and as much for outputs; gate and up; logits; the rotation.
    const uint64_t row = 3 * 4096 + 2 * (32 + 2 * 4) * 128 + 2 * 14336;
    // A row's token, position and offset, and a unit in each of three classes. A sequence's 256 blocks and last id. 64 rows of logits
    // for sequences, and as many for prompts: which rows they are, how they are drawn from and what was drawn, on the device and
    // for the host; and 64 x 4096 tokens whose logits are changed.
    const uint64_t draw = 128 * (4 + sizeof(struct sample_row) + 2 * sizeof(struct sample_result)) +
                          (uint64_t)64 * 4096 * sizeof(struct sample_token);
    const uint64_t indices = 512 * (3 * 4 + 3 * 8) + 64 * (256 * 4 + 4) + draw;
    assert_int_equal(m.buffers,
                     4 * (512 * row + (uint64_t)128 * 32000 + (uint64_t)4096 * 128) + indices);
    assert_int_equal(m.comm + m.workspace, 0);
    assert_int_equal(m.total, m.weights + m.kv + m.buffers + m.runtime);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

/* Everything that is stored once is stored once over all ranks: norms alone are on each. */
static void test_plan_memory_adds_up_over_the_ranks(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++) {
        struct model_spec spec = models_random(false);
        const int32_t tp = models_between(1, spec.n_heads < 4 ? spec.n_heads : 4);
        struct plan plan = models_plan(&spec, tp, PLAN_SHARE);
        struct plan alone = models_plan(&spec, 1, PLAN_SHARE);
        struct plan_memory_request request = request_of(&plan, &spec);
        struct plan_memory_request whole = request_of(&alone, &spec);
        whole.blocks_per_lane = (int64_t)100 * plan.n_lanes;
        struct plan_memory sum = {0};
        struct plan_memory want;
        plan_memory_of(&whole, 0, &want);
        for (int32_t rank = 0; rank < tp; rank++) {
            struct plan_memory m;
            plan_memory_of(&request, rank, &m);
            sum.weights += m.weights;
            sum.kv += m.kv;
            assert_true(m.buffers > 0);
            // Rank 0 leads, here and alone.
            assert_true(rank == 0 ? m.runtime == want.runtime : m.runtime < want.runtime);
        }
        const uint64_t norms = (uint64_t)(spec_n_norms(&spec) * spec_norm_parameters(&spec)) * 4;
        assert_int_equal(sum.kv, want.kv);
        // A KV head that lies on several ranks has its k_proj and v_proj on each.
        assert_true(sum.weights >= want.weights + (uint64_t)(tp - 1) * norms);
        plan_destroy(&plan);
        plan_destroy(&alone);
        spec_destroy(&spec);
    }
}

static void test_plan_memory_counts_a_tied_head_where_it_lies(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 2, PLAN_SHARE);
    const struct plan_memory_request request = request_of(&plan, &spec);
    struct plan_memory untied;
    struct plan_memory tied;
    plan_memory_of(&request, 1, &untied);
    spec.tied_head = true;
    plan_memory_of(&request, 1, &tied);
    assert_int_equal(tied.weights, untied.weights); // rows of the embedding and a packed head
    plan_destroy(&plan);
    spec_destroy(&spec);
}

static void test_plan_memory_fills_what_it_is_given(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    for (int32_t tp = 1; tp <= 4; tp++) {
        struct plan plan = models_plan(&spec, tp, PLAN_SHARE);
        const uint64_t given = (uint64_t)1 << 30;
        const int64_t blocks = plan_memory_blocks_in(&plan, DTYPE_BF16, given);
        uint64_t most = 0;
        for (int32_t rank = 0; rank < tp; rank++) {
            const uint64_t block = (uint64_t)plan_kv_bytes(&plan, rank, DTYPE_BF16, 1);
            assert_true((uint64_t)blocks * block <= given);
            const uint64_t with_one_more = (uint64_t)(blocks + 1) * block;
            most = with_one_more > most ? with_one_more : most;
        }
        assert_true(most > given);
        // 9 sequences of 100 tokens are 7 blocks each, in the fullest lane.
        const int64_t per_lane = (9 + plan.n_lanes - 1) / plan.n_lanes;
        assert_int_equal(plan_memory_blocks_wanted(&plan, 9, 100), per_lane * 7);
        plan_destroy(&plan);
    }
    spec_destroy(&spec);
}

static void test_plan_memory_prints_a_line_for_each_rank(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 3, PLAN_SHARE);
    const struct plan_memory_request request = request_of(&plan, &spec);
    struct bytes text;
    bytes_init(&text, 1 << 16);
    assert_status_ok(plan_memory_print(&request, &text));
    assert_status_ok(bytes_append(&text, "", 1));
    int lines = 0;
    for (const char *c = (const char *)text.data; *c != '\0'; c++) {
        lines += *c == '\n' ? 1 : 0;
    }
    assert_int_equal(lines, 3 + 3); // a blank one, two of titles, the ranks
    assert_non_null(strstr((const char *)text.data, "\n    2  "));
    bytes_destroy(&text);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_memory_of_deci_7b_on_one_rank),
        cmocka_unit_test(test_plan_memory_of_int8_kv_is_130_bytes_where_bfloat16_has_256),
        cmocka_unit_test(test_plan_memory_adds_up_over_the_ranks),
        cmocka_unit_test(test_plan_memory_counts_a_tied_head_where_it_lies),
        cmocka_unit_test(test_plan_memory_fills_what_it_is_given),
        cmocka_unit_test(test_plan_memory_prints_a_line_for_each_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

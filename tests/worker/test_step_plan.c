#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "worker/step_plan.h"

static const struct step_limits limits = {
    .max_seqs = 4,
    .max_rows = 40,
    .max_blocks = 12,
    .max_moves = 3,
    .n_lanes = 3,
    .n_vocab = 100,
    .blocks_per_lane = 50,
    .host_blocks_per_lane = 9,
    .max_logits = 6,
};

static void add_example(struct step_plan *plan)
{
    static const int32_t tokens[] = {5, 6, -4, 8, 99};
    static const int32_t blocks[] = {49, 0, 3};
    const struct step_seq a = {.seq_id = 77,
                               .lane = 0,
                               .slot = 3,
                               .n_computed = 30,
                               .n_tokens = 3,
                               .n_blocks = 3,
                               .n_logits = 2};
    const struct step_seq b = {.seq_id = 1ull << 40, .lane = 2, .n_tokens = 2, .n_blocks = 1};
    assert_status_ok(step_plan_add(plan, &a, tokens, blocks));
    assert_status_ok(step_plan_add(plan, &b, tokens + 3, blocks + 1));
    const struct step_move there = {.kind = STEP_MOVE_COPY, .lane = 2, .from = 49, .to = 0};
    const struct step_move onward = {.kind = STEP_MOVE_OUT, .lane = 2, .from = 0, .to = 7};
    assert_status_ok(step_plan_add_move(plan, &there));
    assert_status_ok(step_plan_add_move(plan, &onward));
}

static void check_example(const struct step_plan *plan)
{
    assert_int_equal(plan->n_seqs, 2);
    assert_int_equal(plan->n_rows, 5);
    assert_int_equal(plan->n_blocks, 4);
    assert_int_equal(plan->n_logits, 2);
    assert_int_equal(plan->seqs[0].seq_id, 77);
    assert_int_equal(plan->seqs[1].seq_id, 1ull << 40);
    assert_int_equal(plan->seqs[0].slot, 3);
    assert_int_equal(plan->seqs[1].lane, 2);
    assert_int_equal(plan->seqs[1].first_row, 3);
    assert_int_equal(plan->seqs[1].first_block, 3);
    static const int32_t positions[] = {30, 31, 32, 0, 1};
    static const int32_t tokens[] = {5, 6, -4, 8, 99};
    static const int32_t blocks[] = {49, 0, 3, 0};
    assert_memory_equal(plan->positions, positions, sizeof positions);
    assert_memory_equal(plan->tokens, tokens, sizeof tokens);
    assert_memory_equal(plan->blocks, blocks, sizeof blocks);
    assert_int_equal(plan->n_moves, 2);
    assert_int_equal(plan->moves[0].from, 49);
    assert_int_equal(plan->moves[1].kind, STEP_MOVE_OUT);
    assert_int_equal(plan->moves[1].lane, 2);
    assert_int_equal(plan->moves[1].from, 0);
    assert_int_equal(plan->moves[1].to, 7);
}

static void test_step_plan_adds_sequences(void **state)
{
    (void)state;
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    add_example(&plan);
    check_example(&plan);
    step_plan_clear(&plan);
    assert_int_equal(plan.n_seqs + plan.n_rows + plan.n_blocks + plan.n_logits + plan.n_moves, 0);
    add_example(&plan);
    check_example(&plan);
    step_plan_destroy(&plan);
    step_plan_destroy(&plan);
}

static void test_step_plan_refuses_what_passes_a_limit(void **state)
{
    (void)state;
    static const struct step_seq good = {.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2};

    static const struct {
        struct step_seq seq;
        int32_t token, block;
    } bad[] = {
        {{.lane = -1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, 0},
        {{.lane = 0, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, 0}, // after lane 1
        {{.lane = 3, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, 0},
        {{.lane = 1, .n_computed = -1, .n_tokens = 3, .n_blocks = 1}, 0, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = 0, .n_blocks = 1}, 0, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = -3, .n_blocks = 1}, 0, 0},
        {{.lane = 1, .n_computed = 0, .n_tokens = 38, .n_blocks = 3}, 0, 0}, // 41 rows
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 1}, 0, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 3}, 0, 0},
        {{.lane = 1, .n_computed = 175, .n_tokens = 1, .n_blocks = 11}, 0, 0}, // 13 blocks
        {{.lane = 1, .n_computed = INT32_MAX, .n_tokens = 3, .n_blocks = 2}, 0, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2, .n_logits = 4}, 0, 0}, // of 3
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2, .n_logits = -1}, 0, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = 9, .n_blocks = 2, .n_logits = 7}, 0, 0}, // of 6
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 100, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, -5, 0}, // slot 4 of 4
        {{.lane = 1, .slot = 4, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, 0},
        {{.lane = 1, .slot = -1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, 0},
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, 50},
        {{.lane = 1, .n_computed = 14, .n_tokens = 3, .n_blocks = 2}, 0, -1},
    };
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        int32_t tokens[40] = {0};
        int32_t blocks[16] = {0};
        step_plan_clear(&plan);
        assert_status_ok(step_plan_add(&plan, &good, tokens, blocks));
        tokens[1] = bad[i].token;
        blocks[1] = bad[i].block;
        const status_t s = step_plan_add(&plan, &bad[i].seq, tokens, blocks);
        if (s.code == STATUS_OK) {
            print_error("sequence %zu\n", i);
        }
        assert_status_code(s, STATUS_INTERNAL);
        assert_int_equal(plan.n_seqs, 1);
        assert_int_equal(plan.n_rows, 3);
    }
    static const int32_t token = 1;
    static const int32_t block = 1;
    const struct step_seq one = {.lane = 2, .n_tokens = 1, .n_blocks = 1};
    for (int i = 0; i < 3; i++) {
        assert_status_ok(step_plan_add(&plan, &one, &token, &block));
    }
    assert_status_says(step_plan_add(&plan, &one, &token, &block), STATUS_INTERNAL, "4 sequences");
    step_plan_destroy(&plan);
}

static void test_step_plan_refuses_bad_moves(void **state)
{
    (void)state;
    static const struct step_move good = {.kind = STEP_MOVE_COPY, .lane = 1, .from = 3, .to = 4};
    static const struct step_move bad[] = {
        {.kind = -1, .lane = 1, .from = 3, .to = 4},
        {.kind = STEP_MOVE_IN + 1, .lane = 1, .from = 3, .to = 4},
        {.kind = STEP_MOVE_COPY, .lane = -1, .from = 3, .to = 4},
        {.kind = STEP_MOVE_COPY, .lane = 3, .from = 3, .to = 4},
        {.kind = STEP_MOVE_COPY, .lane = 1, .from = -1, .to = 4},
        {.kind = STEP_MOVE_COPY, .lane = 1, .from = 50, .to = 4},
        {.kind = STEP_MOVE_COPY, .lane = 1, .from = 3, .to = -1},
        {.kind = STEP_MOVE_COPY, .lane = 1, .from = 3, .to = 50},
        {.kind = STEP_MOVE_COPY, .lane = 1, .from = 3, .to = 3},
        {.kind = STEP_MOVE_OUT, .lane = 1, .from = 50, .to = 3},
        {.kind = STEP_MOVE_OUT, .lane = 1, .from = 3, .to = 9},
        {.kind = STEP_MOVE_OUT, .lane = 1, .from = 3, .to = -1},
        {.kind = STEP_MOVE_IN, .lane = 1, .from = 9, .to = 3},
        {.kind = STEP_MOVE_IN, .lane = 1, .from = -1, .to = 3},
        {.kind = STEP_MOVE_IN, .lane = 1, .from = 3, .to = 50},
    };
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_status_says(step_plan_add_move(&plan, &bad[i]), STATUS_INTERNAL, "move 0");
        assert_int_equal(plan.n_moves, 0);
    }
    for (int32_t i = 0; i < limits.max_moves; i++) {
        assert_status_ok(step_plan_add_move(&plan, &good));
    }
    assert_status_says(step_plan_add_move(&plan, &good), STATUS_INTERNAL, "more than 3 moves");
    step_plan_destroy(&plan);
    struct step_limits negative = limits;
    negative.max_moves = -1;
    assert_status_says(step_plan_init(&plan, &negative), STATUS_INTERNAL, "-1 moves");
}

static void test_step_plan_travels(void **state)
{
    (void)state;
    struct step_plan sent;
    struct step_plan got;
    assert_status_ok(step_plan_init(&sent, &limits));
    assert_status_ok(step_plan_init(&got, &limits));
    add_example(&sent);
    sent.step = 0x123456789abcull;
    struct bytes wire;
    bytes_init(&wire, 4096);
    assert_status_ok(step_plan_pack(&sent, &wire));
    add_example(&got); // what was there before must not matter
    assert_status_ok(step_plan_unpack(&got, wire.data, wire.size));
    assert_int_equal(got.step, 0x123456789abcull);
    check_example(&got);

    // Every cut is refused, and one byte more too.
    for (size_t size = 0; size < wire.size; size++) {
        uint8_t *copy = malloc(size > 0 ? size : 1);
        memcpy(copy, wire.data, size);
        assert_status_code(step_plan_unpack(&got, copy, size), STATUS_INTERNAL);
        assert_int_equal(got.n_seqs, 0);
        free(copy);
    }
    assert_status_ok(bytes_append(&wire, "", 1));
    assert_status_code(step_plan_unpack(&got, wire.data, wire.size), STATUS_INTERNAL);
    bytes_destroy(&wire);
    step_plan_destroy(&sent);
    step_plan_destroy(&got);
}

/* Random changes of the wire: refused, or a plan within the limits. */
static void test_step_plan_survives_mutations(void **state)
{
    (void)state;
    struct step_plan plan;
    assert_status_ok(step_plan_init(&plan, &limits));
    add_example(&plan);
    struct bytes wire;
    bytes_init(&wire, 4096);
    assert_status_ok(step_plan_pack(&plan, &wire));
    for (int round = 0; round < 20000; round++) {
        uint8_t copy[512];
        memcpy(copy, wire.data, wire.size);
        const uint64_t n_changes = 1 + test_random_below(4);
        for (uint64_t i = 0; i < n_changes; i++) {
            copy[test_random_below(wire.size)] = (uint8_t)test_random_below(4);
        }
        const status_t s = step_plan_unpack(&plan, copy, wire.size);
        assert_true(s.code == STATUS_OK || s.code == STATUS_INTERNAL);
        for (int32_t i = 0; i < plan.n_rows; i++) {
            assert_true(plan.tokens[i] >= -4 && plan.tokens[i] < limits.n_vocab);
        }
        for (int32_t i = 0; i < plan.n_blocks; i++) {
            assert_true(plan.blocks[i] >= 0 && plan.blocks[i] < limits.blocks_per_lane);
        }
        for (int32_t i = 0; i < plan.n_moves; i++) {
            assert_true(plan.moves[i].from >= 0 && plan.moves[i].from < limits.blocks_per_lane);
            assert_true(plan.moves[i].to >= 0 && plan.moves[i].to < limits.blocks_per_lane);
        }
        assert_in_range(plan.n_moves, 0, limits.max_moves);
    }
    bytes_destroy(&wire);
    step_plan_destroy(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step_plan_adds_sequences),
        cmocka_unit_test(test_step_plan_refuses_what_passes_a_limit),
        cmocka_unit_test(test_step_plan_refuses_bad_moves),
        cmocka_unit_test(test_step_plan_travels),
        cmocka_unit_test(test_step_plan_survives_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

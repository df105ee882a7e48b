/*
 * test_plan.c - plans of known models, and what is refused
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "tests/parallel/models.h"

static const struct weight_formats float32 = {.dtype = DTYPE_F32};
static const struct weight_formats bfloat16 = {.dtype = DTYPE_BF16};

static int64_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

// ---- known answers ----

static void test_plan_deci_7b(void **state)
{
    (void)state;

    static const struct {
        int32_t tp, lanes, replicas_times_67;
    } rows[] = {{1, 1, 67}, {2, 2, 78}, {4, 4, 128}, {8, 8, 256}, {16, 16, 512}};
    struct model_spec spec = models_deci_7b();
    assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_BF16), 34304);
    // 67 heads, a key and a value each of 128 int8 and a scale of two bytes
    assert_int_equal(spec_kv_bytes_per_token(&spec, DTYPE_I8), 67 * 2 * (128 + 2));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const int32_t tp = rows[i].tp;
        struct plan share = models_plan(&spec, tp, PLAN_SHARE);
        assert_int_equal(share.n_lanes, rows[i].lanes);
        assert_int_equal(share.n_classes, 3);
        assert_close(plan_kv_replication(&share, &spec), 1.0, 0, 0);
        assert_close(plan_kv_bytes_per_token(&share, tp - 1, DTYPE_BF16), 34304.0 / tp, 0, 1e-12);
        assert_close(plan_kv_bytes_per_token(&share, tp - 1, DTYPE_I8), 17420.0 / tp, 0, 1e-12);
        plan_destroy(&share);

        struct plan copies = models_plan(&spec, tp, PLAN_REPLICATE);
        assert_int_equal(copies.n_classes, 3);
        assert_close(plan_kv_replication(&copies, &spec), rows[i].replicas_times_67 / 67.0, 0,
                     1e-12);
        plan_destroy(&copies);
    }
    struct plan one = models_plan(&spec, 1, PLAN_AUTO);
    assert_int_equal(plan_weight_bytes(&one, &spec, 0, &float32), 4 * 7043551232);
    plan_destroy(&one);
    spec_destroy(&spec);
}

/* The drawing in plan.h. */
static void test_plan_three_ranks_four_heads(void **state)
{
    (void)state;
    static const int32_t owners[4][3] = {{0, 0, 0}, {0, 1, 1}, {1, 1, 2}, {2, 2, 2}};
    struct spec_layer layer = {.n_kv_heads = 4, .n_ff = 256};
    const struct model_spec spec = {.n_layers = 1,
                                    .n_hidden = 32,
                                    .n_heads = 4,
                                    .head_dim = 8,
                                    .n_vocab = 10,
                                    .layers = &layer};
    struct plan plan = models_plan(&spec, 3, PLAN_AUTO);
    assert_int_equal(plan.n_lanes, 3);
    assert_int_equal(plan.classes[0].placement, PLAN_SHARE);
    for (int32_t g = 0; g < 4; g++) {
        for (int32_t u = 0; u < 3; u++) {
            assert_int_equal(plan_attention_rank(&plan, 0, g, u, 0), owners[g][u]);
        }
    }
    plan_run_t runs[PLAN_MAX_RUNS];
    assert_int_equal(plan_kv_runs(&plan, 0, 1, runs), 2);
    assert_memory_equal(&runs[0], &((plan_run_t){1, 2, 1, 3}), sizeof runs[0]);
    assert_memory_equal(&runs[1], &((plan_run_t){2, 3, 0, 2}), sizeof runs[1]);
    plan_destroy(&plan);
}

/* 32 heads on 5 ranks: 7 7 6 6 6, and the next layer's extra heads go to the next ranks. Extra tiles go where the weights are
 * fewest: the inner ranks keep two KV heads each, the outer ones one. */
static void test_plan_deals_extra_units(void **state)
{
    (void)state;
    static const int32_t heads[3][5] = {{7, 7, 6, 6, 6}, {6, 6, 7, 7, 6}, {7, 6, 6, 6, 7}};
    // Heads of both kinds over the layers: 23 25 25 25 22.
    static const int32_t tiles[3][5] = {{2, 2, 2, 2, 3}, {3, 2, 2, 2, 2}, {2, 3, 2, 2, 2}};
    struct spec_layer layers[3];
    for (int i = 0; i < 3; i++) {
        layers[i] = (struct spec_layer){.n_kv_heads = 4, .n_ff = 11 * PLAN_TILE};
    }
    const struct model_spec spec = {.n_layers = 3,
                                    .n_hidden = 64,
                                    .n_heads = 32,
                                    .head_dim = 2,
                                    .n_vocab = 100,
                                    .layers = layers};
    struct plan plan = models_plan(&spec, 5, PLAN_SHARE);
    for (int32_t i = 0; i < 3; i++) {
        for (int32_t r = 0; r < 5; r++) {
            const plan_interval_t q = plan_q_heads(&plan, i, r);
            const plan_interval_t ffn = plan_ffn_columns(&plan, i, r);
            assert_int_equal(q.end - q.begin, heads[i][r]);
            assert_int_equal(ffn.end - ffn.begin, PLAN_TILE * tiles[i][r]);
        }
    }
    plan_destroy(&plan);
}

static void test_plan_leaves_ranks_without_tiles_or_rows(void **state)
{
    (void)state;
    struct spec_layer layer = {.n_kv_heads = 1, .n_ff = 70};
    const struct model_spec spec = {
        .n_layers = 1, .n_hidden = 16, .n_heads = 8, .head_dim = 2, .n_vocab = 3, .layers = &layer};
    struct plan plan = models_plan(&spec, 8, PLAN_SHARE);
    assert_status_ok(plan_check(&plan, &spec));
    int32_t with_columns = 0;
    int32_t with_rows = 0;
    for (int32_t r = 0; r < 8; r++) {
        const plan_interval_t ffn = plan_ffn_columns(&plan, 0, r);
        const plan_interval_t rows = plan_vocab_rows(&plan, r);
        with_columns += ffn.end > ffn.begin;
        with_rows += rows.end > rows.begin;
    }
    assert_int_equal(with_columns, 2);
    assert_int_equal(with_rows, 3);
    plan_destroy(&plan);
}

/* 224 tiles on 7 ranks leave none over, and some ranks keep more KV heads' weights than others: tiles move until ranks are even. */
static void test_plan_moves_tiles_where_kv_heads_are_copied(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    static const int32_t ranks[] = {2, 3, 5, 6, 7, 8, 9, 11, 12, 13, 16};
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        struct plan plan = models_plan(&spec, ranks[i], PLAN_SHARE);
        int64_t least = INT64_MAX;
        int64_t most = 0;
        for (int32_t r = 0; r < plan.tp; r++) {
            const int64_t bytes = plan_weight_bytes(&plan, &spec, r, &bfloat16);
            least = bytes < least ? bytes : least;
            most = bytes > most ? bytes : most;
        }
        assert_true((double)most <= 1.01 * (double)least);
        plan_destroy(&plan);
    }
    spec_destroy(&spec);
}

// ---- refusals ----

static void test_plan_refuses_layouts_that_cannot_be(void **state)
{
    (void)state;

    static const struct {
        struct plan_request request;
        int code;
        const char *says;
    } rows[] = {
        {{.tp = 33, .pp = 1, .placement = PLAN_AUTO},
         STATUS_FAILED_PRECONDITION,
         "33 is more than the 32 query heads"},
        {{.tp = 33, .pp = 1, .placement = PLAN_AUTO},
         STATUS_FAILED_PRECONDITION,
         STATUS_FIX "use 1 to 32"},
        {{.tp = 0, .pp = 1, .placement = PLAN_AUTO},
         STATUS_INVALID_ARGUMENT,
         "tensor-parallel-size is 0"},
        {{.tp = -1, .pp = 1, .placement = PLAN_AUTO},
         STATUS_INVALID_ARGUMENT,
         "tensor-parallel-size is -1"},
        {{.tp = 1, .pp = 33, .placement = PLAN_AUTO},
         STATUS_FAILED_PRECONDITION,
         "33 is more than the 32 layers"},
        {{.tp = 1, .pp = 0, .placement = PLAN_AUTO},
         STATUS_INVALID_ARGUMENT,
         "pipeline-parallel-size is 0"},
        {{.tp = 1, .pp = 1, .placement = 7},
         STATUS_INVALID_ARGUMENT,
         "use auto, share, replicate or token"},
    };
    struct model_spec spec = models_deci_7b();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct plan plan;
        assert_status_says(plan_make(&spec, &rows[i].request, &plan), rows[i].code, rows[i].says);
    }
    assert_string_equal(plan_placement_name(PLAN_AUTO), "auto");
    assert_string_equal(plan_placement_name(PLAN_SHARE), "share");
    assert_string_equal(plan_placement_name(PLAN_REPLICATE), "replicate");
    assert_string_equal(plan_placement_name(PLAN_TOKEN), "token");
    assert_string_equal(plan_placement_name(9), "unknown");
    spec_destroy(&spec);
}

static void test_plan_refuses_to_split_by_token(void **state)
{
    (void)state;
    const struct plan_request request = {.tp = 8, .pp = 1, .placement = PLAN_TOKEN};
    struct model_spec spec = models_deci_7b();
    struct plan plan;
    spec.sliding_window = 4096;
    assert_status_says(plan_make(&spec, &request, &plan), STATUS_FAILED_PRECONDITION,
                       "window of 4096 tokens, which is not split by token" STATUS_FIX
                       "--kv-placement share");
    spec.sliding_window = 0;
    spec.n_heads = 128;
    const struct plan_request wide = {.tp = 65, .pp = 1, .placement = PLAN_TOKEN};
    assert_status_says(plan_make(&spec, &wide, &plan), STATUS_FAILED_PRECONDITION,
                       "65 ranks, at most 64 share a head");
    spec_destroy(&spec);
}

/* DeciLM-7B on 8 ranks: 4 and 2 KV heads in halves and quarters, one in eighths, of every sequence. */
static void test_plan_splits_by_token(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 8, PLAN_TOKEN);
    assert_status_ok(plan_check(&plan, &spec));
    assert_int_equal(plan.n_lanes, 1);
    assert_int_equal(plan.stripe, 8);
    for (int32_t c = 0; c < plan.n_classes; c++) {
        const int32_t heads = plan.classes[c].n_kv_heads;
        assert_int_equal(plan.classes[c].placement, PLAN_TOKEN);
        for (int32_t rank = 0; rank < 8; rank++) {
            plan_run_t runs[PLAN_MAX_RUNS];
            assert_int_equal(plan_kv_runs(&plan, c, rank, runs), 1);
            assert_int_equal(runs[0].head_begin, rank * heads / 8);
            assert_int_equal(runs[0].lane_begin, rank * heads % 8);
            assert_int_equal(runs[0].lane_end - runs[0].lane_begin, heads);
            assert_true(plan_fuses_kv(&plan, c, rank));
        }
    }
    // 34304 bytes a token, an eighth on each rank, whole stripes at a time.
    for (int32_t rank = 0; rank < 8; rank++) {
        assert_int_equal(plan_kv_bytes(&plan, rank, DTYPE_BF16, 8), 34304 * 16);
    }
    assert_int_equal(plan_stripes_for(&plan, 9), 16);
    assert_int_equal(plan_stripes_in(&plan, 9), 8);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

/* Every table is damaged in turn; the check must see each. */
static void test_plan_check_sees_damage(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    struct plan plan = models_plan(&spec, 8, PLAN_SHARE);
    struct plan_class *last = &plan.classes[2];
    int32_t *const cells[] = {
        &plan.layers[3].attention_cuts[2],
        &plan.layers[3].attention_cuts[0],
        &plan.layers[3].attention_cuts[8],
        &plan.layers[7].ffn_cuts[4],
        &plan.vocab_cuts[1],
        &plan.layers[9].class_index,
        &plan.layers[9].attention,
        &plan.layers[9].ffn,
        &plan.layers[9].layer_in_class,
        &last->owned[0],
        &last->owned_at[3],
        &last->n_kv_heads,
        &last->n_layers,
        &last->placement,
        &plan.tp,
        &plan.n_lanes,
        &plan.n_vocab,
        &plan.n_layers,
        &plan.n_heads,
        &plan.head_dim,
        &plan.pp,
        &plan.stage_cuts[0],
        &plan.stage_cuts[1],
    };
    assert_status_ok(plan_check(&plan, &spec));
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++) {
        const int32_t saved = *cells[i];
        *cells[i] = saved > 0 ? saved - 1 : saved + 1;
        const status_t s = plan_check(&plan, &spec);
        *cells[i] = saved;
        if (s.code != STATUS_INTERNAL || strncmp(s.msg, "plan: ", 6) != 0) {
            fail_msg("cell %zu: %d %s", i, s.code, s.msg);
        }
    }
    assert_status_ok(plan_check(&plan, &spec));
    plan_destroy(&plan);
    spec_destroy(&spec);
}

/* 3 linear tiles on 2 ranks: the extra one goes to the rank without the FFN tile, until it has more. */
static void test_plan_deals_linear_rows_after_the_rest(void **state)
{
    (void)state;
    struct spec_layer layers[] = {
        {.n_kv_heads = 1, .n_ff = PLAN_TILE},
        {.attention = SPEC_BLOCK_LINEAR, .ffn = SPEC_BLOCK_NONE},
        {.attention = SPEC_BLOCK_NONE, .ffn = SPEC_BLOCK_LINEAR},
        {.attention = SPEC_BLOCK_NONE, .ffn = SPEC_BLOCK_NONE},
    };
    const struct model_spec spec = {.n_layers = 4,
                                    .n_hidden = 2 * PLAN_TILE + 6,
                                    .n_heads = 3,
                                    .head_dim = 2,
                                    .n_vocab = 4,
                                    .layers = layers};
    struct plan plan = models_plan(&spec, 2, PLAN_SHARE);
    assert_status_ok(plan_check(&plan, &spec));
    assert_int_equal(length(plan_q_heads(&plan, 0, 0)), 2);             // the extra head: rank 0
    assert_int_equal(length(plan_ffn_columns(&plan, 0, 1)), PLAN_TILE); // the extra tile: rank 1
    assert_int_equal(length(plan_attention_rows(&plan, 1, 0)), 2 * PLAN_TILE);
    assert_int_equal(length(plan_attention_rows(&plan, 1, 1)), 6);
    assert_int_equal(length(plan_ffn_rows(&plan, 2, 0)), 2 * PLAN_TILE);
    assert_int_equal(length(plan_ffn_rows(&plan, 2, 1)), 6);
    assert_int_equal(length(plan_attention_rows(&plan, 3, 0)), 0);
    assert_int_equal(plan.n_classes, 1);
    assert_int_equal(plan.classes[0].n_layers, 1);
    plan.layers[1].class_index = 0;
    assert_status_says(plan_check(&plan, &spec), STATUS_INTERNAL, "layer 1 keeps nothing");
    plan.layers[1].class_index = -1;
    plan.layers[1].attention_cuts[1] += PLAN_TILE;
    assert_status_says(plan_check(&plan, &spec), STATUS_INTERNAL, "layer 1 linear attention rows");
    plan_destroy(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_deci_7b),
        cmocka_unit_test(test_plan_three_ranks_four_heads),
        cmocka_unit_test(test_plan_deals_extra_units),
        cmocka_unit_test(test_plan_moves_tiles_where_kv_heads_are_copied),
        cmocka_unit_test(test_plan_deals_linear_rows_after_the_rest),
        cmocka_unit_test(test_plan_leaves_ranks_without_tiles_or_rows),
        cmocka_unit_test(test_plan_refuses_layouts_that_cannot_be),
        cmocka_unit_test(test_plan_refuses_to_split_by_token),
        cmocka_unit_test(test_plan_splits_by_token),
        cmocka_unit_test(test_plan_check_sees_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "tests/parallel/models.h"

static const struct weight_formats float32 = {.dtype = DTYPE_F32};

// ---- the definition, computed another way ----

/*
 * The rank r with r/T <= (g + (u + 1/2)/D)/G < (r+1)/T: both sides times 2DGT are integers, and every
 * rank is tried.
 */
static int32_t owner_by_definition(int32_t tp, int32_t heads, int32_t lanes, int32_t g, int32_t u)
{
    const int64_t point = (2 * (int64_t)lanes * g + 2 * (int64_t)u + 1) * tp;
    for (int32_t r = 0; r < tp; r++) {
        const int64_t unit = 2 * (int64_t)lanes * heads;
        if (r * unit <= point && point < (r + 1) * unit) {
            return r;
        }
    }
    return -1;
}

/* Least D for which r * G / T is a whole number of D-ths, in every class and for every r. */
static int32_t lanes_by_definition(const struct model_spec *spec, int32_t tp)
{
    for (int32_t d = 1;; d++) {
        bool good = true;
        for (int32_t i = 0; i < spec->n_layers && good; i++) {
            good = (int64_t)spec->layers[i].n_kv_heads * d % tp == 0;
        }
        if (good) {
            return d;
        }
    }
}

static bool holds(const struct plan *plan, int32_t class_index, int32_t rank, int32_t lane,
                  int32_t head)
{
    const int32_t *heads;
    const int32_t n = plan_held(plan, class_index, rank, lane, &heads);
    for (int32_t i = 0; i < n && heads[i] <= head; i++) {
        if (heads[i] == head) {
            return true;
        }
    }
    return false;
}

// ---- properties ----

static void check_share_owners(const struct plan *plan, const struct model_spec *spec)
{
    assert_int_equal(plan->n_lanes, lanes_by_definition(spec, plan->tp));
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const int32_t heads = plan->classes[c].n_kv_heads;
        for (int32_t g = 0; g < heads; g++) {
            for (int32_t u = 0; u < plan->n_lanes; u++) {
                const int32_t owner = owner_by_definition(plan->tp, heads, plan->n_lanes, g, u);
                const int32_t asker = models_between(0, plan->tp - 1);
                assert_int_equal(plan_attention_rank(plan, c, g, u, asker), owner);
                assert_true(holds(plan, c, owner, u, g));
            }
        }
    }
}

/* Under replicate a rank answers its own queries, so it must hold what they read. */
static void check_replicate_owners(const struct plan *plan, const struct model_spec *spec)
{
    assert_int_equal(plan->n_lanes, 1);
    for (int32_t i = 0; i < plan->n_layers; i++) {
        assert_true(plan_attention_is_local(plan, i));
        if (spec->layers[i].attention != SPEC_BLOCK_FULL) {
            continue;
        }
        const int32_t c = plan->layers[i].class_index;
        const int32_t group = spec->n_heads / spec->layers[i].n_kv_heads;
        for (int32_t r = 0; r < plan->tp; r++) {
            const plan_interval_t q = plan_q_heads(plan, i, r);
            const int32_t *held;
            const int32_t n = plan_held(plan, c, r, 0, &held);
            assert_int_equal(held[0], q.begin / group);
            assert_int_equal(held[n - 1], (q.end - 1) / group);
            for (int32_t h = q.begin; h < q.end; h++) {
                assert_true(holds(plan, c, r, 0, h / group));
                assert_int_equal(plan_attention_rank(plan, c, h / group, 0, r), r);
            }
        }
    }
}

/* Whether rank r asks nobody else in this layer. */
static bool rank_is_local(const struct plan *plan, const struct model_spec *spec, int32_t layer,
                          int32_t rank)
{
    const plan_interval_t q = plan_q_heads(plan, layer, rank);
    if (q.begin == q.end) {
        return true;
    }
    const int32_t c = plan->layers[layer].class_index;
    const int32_t group = spec->n_heads / spec->layers[layer].n_kv_heads;
    for (int32_t h = q.begin; h < q.end; h++) {
        for (int32_t u = 0; u < plan->n_lanes; u++) {
            if (plan_attention_rank(plan, c, h / group, u, rank) != rank) {
                return false;
            }
        }
    }
    return true;
}

static void check_locality(const struct plan *plan, const struct model_spec *spec)
{
    for (int32_t i = 0; i < plan->n_layers; i++) {
        bool local = true;
        for (int32_t r = 0; r < plan->tp; r++) {
            local = local && rank_is_local(plan, spec, i, r);
        }
        assert_int_equal(plan_attention_is_local(plan, i), local);
    }
}

/* Runs are rectangles that cover exactly what is held, and the weight range is their union. */
static void check_runs(const struct plan *plan, int32_t c, int32_t rank)
{
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n_runs = plan_kv_runs(plan, c, rank, runs);
    const plan_interval_t weights = plan_kv_weight_heads(plan, c, rank);
    assert_true(n_runs >= 1 && n_runs <= PLAN_MAX_RUNS);
    assert_int_equal(runs[0].head_begin, weights.begin);
    assert_int_equal(runs[n_runs - 1].head_end, weights.end);
    for (int32_t i = 0; i < n_runs; i++) {
        assert_true(runs[i].head_begin < runs[i].head_end);
        assert_true(0 <= runs[i].lane_begin && runs[i].lane_begin < runs[i].lane_end);
        assert_true(runs[i].lane_end <= plan->n_lanes);
        assert_true(i == 0 || runs[i].head_begin == runs[i - 1].head_end);
    }
    for (int32_t g = 0; g < plan->classes[c].n_kv_heads; g++) {
        for (int32_t u = 0; u < plan->n_lanes; u++) {
            int32_t covered = 0;
            for (int32_t i = 0; i < n_runs; i++) {
                covered += runs[i].head_begin <= g && g < runs[i].head_end &&
                           runs[i].lane_begin <= u && u < runs[i].lane_end;
            }
            assert_int_equal(covered, holds(plan, c, rank, u, g));
        }
    }
}

/* Lane u's units are [base(u), base(u) + n_blocks * held); together they are all units, in order. */
static void check_units(const struct plan *plan, int32_t c, int32_t rank)
{
    const int64_t n_blocks = models_between(0, 1000);
    int64_t next = 0;
    for (int32_t u = 0; u < plan->n_lanes; u++) {
        const int32_t *heads;
        assert_int_equal(plan_unit_base(plan, c, rank, u, n_blocks), next);
        next += n_blocks * plan_held(plan, c, rank, u, &heads);
    }
    assert_int_equal(plan_units(plan, c, rank, n_blocks), next);
}

/* Units of each kind on a rank over the stack. */
enum { HEADS, TILES, LINEAR_TILES, VOCAB_ROWS, N_UNITS };

static int64_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

static int64_t tiles(plan_interval_t interval)
{
    return (length(interval) + PLAN_TILE - 1) / PLAN_TILE;
}

static void count_units(const struct plan *plan, int32_t rank, int64_t units[N_UNITS])
{
    units[HEADS] = units[TILES] = units[LINEAR_TILES] = 0;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        units[HEADS] += length(plan_q_heads(plan, i, rank));
        units[TILES] += tiles(plan_ffn_columns(plan, i, rank));
        units[LINEAR_TILES] +=
            tiles(plan_attention_rows(plan, i, rank)) + tiles(plan_ffn_rows(plan, i, rank));
    }
    units[VOCAB_ROWS] = length(plan_vocab_rows(plan, rank));
}

/* Over the stack no rank is more than one unit of a kind ahead of another. */
static void check_even(const struct plan *plan)
{
    int64_t least[N_UNITS] = {0};
    int64_t most[N_UNITS] = {0};
    for (int32_t r = 0; r < plan->tp; r++) {
        int64_t units[N_UNITS];
        count_units(plan, r, units);
        for (int i = 0; i < N_UNITS; i++) {
            least[i] = r == 0 || units[i] < least[i] ? units[i] : least[i];
            most[i] = r == 0 || units[i] > most[i] ? units[i] : most[i];
        }
    }
    for (int i = 0; i < N_UNITS; i++) {
        assert_true(most[i] - least[i] <= 1);
    }
}

/* Every block is cut in its own units, and a layer that keeps nothing is in no class. */
static void check_blocks(const struct plan *plan, const struct model_spec *spec)
{
    for (int32_t i = 0; i < plan->n_layers; i++) {
        const struct spec_layer *kind = &spec->layers[i];
        int64_t heads = 0;
        int64_t columns = 0;
        int32_t next_attention = 0;
        int32_t next_ffn = 0;
        for (int32_t r = 0; r < plan->tp; r++) {
            const plan_interval_t attention = plan_attention_rows(plan, i, r);
            const plan_interval_t ffn = plan_ffn_rows(plan, i, r);
            heads += length(plan_q_heads(plan, i, r));
            columns += length(plan_ffn_columns(plan, i, r));
            assert_int_equal(attention.begin, next_attention);
            assert_int_equal(ffn.begin, next_ffn);
            next_attention = attention.end;
            next_ffn = ffn.end;
        }
        assert_int_equal(heads, kind->attention == SPEC_BLOCK_FULL ? spec->n_heads : 0);
        assert_int_equal(columns, kind->n_ff);
        assert_int_equal(next_attention, kind->attention == SPEC_BLOCK_LINEAR ? spec->n_hidden : 0);
        assert_int_equal(next_ffn, kind->ffn == SPEC_BLOCK_LINEAR ? spec->n_hidden : 0);
        assert_int_equal(plan->layers[i].class_index >= 0, kind->attention == SPEC_BLOCK_FULL);
    }
}

static void check_kv_bytes(const struct plan *plan, const struct model_spec *spec, int placement)
{
    const double once = (double)spec_kv_bytes_per_token(spec, DTYPE_BF16);
    double sum = 0;
    for (int32_t r = 0; r < plan->tp; r++) {
        const double bytes = plan_kv_bytes_per_token(plan, r, DTYPE_BF16);
        sum += bytes;
        // A block in every lane holds D sequences' tokens.
        assert_close(plan_kv_block_bytes(plan, r, DTYPE_BF16),
                     bytes * PLAN_BLOCK_TOKENS * plan->n_lanes, 0, 1e-12);
        if (placement == PLAN_SHARE) {
            assert_close(bytes, once / plan->tp, 1e-6, 0); // even, to the byte
        }
    }
    const double factor = plan_kv_replication(plan, spec);
    assert_close(sum, once * factor, 1e-6, 1e-12);
    if (placement == PLAN_SHARE) {
        assert_close(factor, 1.0, 0, 0);
    } else {
        assert_true(factor >= 1.0);
    }
}

/* The weights of all ranks are those of the model, plus what several ranks keep of k and v and norms. */
static void check_weight_bytes(const struct plan *plan, const struct model_spec *spec)
{
    int64_t sum = 0;
    int64_t copies = 0; // of k_proj and v_proj rows
    for (int32_t r = 0; r < plan->tp; r++) {
        sum += plan_weight_bytes(plan, spec, r, &float32);
        for (int32_t i = 0; i < plan->n_layers; i++) {
            if (plan->layers[i].class_index < 0) {
                continue;
            }
            const plan_interval_t kv = plan_kv_weight_heads(plan, plan->layers[i].class_index, r);
            copies += 2 * (int64_t)(kv.end - kv.begin) * spec->head_dim;
        }
    }
    for (int32_t i = 0; i < plan->n_layers; i++) {
        copies -= 2 * (int64_t)spec->layers[i].n_kv_heads * spec->head_dim;
    }
    int64_t norms = 1;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        norms += spec->layers[i].attention != SPEC_BLOCK_NONE;
        norms += spec->layers[i].ffn != SPEC_BLOCK_NONE;
    }
    norms *= plan->tp - 1; // every rank has them all
    assert_int_equal(sum, 4 * (spec_parameters(spec) + (copies + norms) * spec->n_hidden));
}

static void check_wire(const struct plan *plan, const struct model_spec *spec)
{
    struct bytes wire;
    struct bytes again;
    bytes_init(&wire, 64 << 20);
    bytes_init(&again, 64 << 20);
    assert_status_ok(plan_pack(plan, &wire));
    struct plan copy;
    assert_status_ok(plan_unpack(wire.data, wire.size, spec, &copy));
    assert_status_ok(plan_check(&copy, spec));
    assert_status_ok(plan_pack(&copy, &again));
    assert_int_equal(again.size, wire.size);
    assert_memory_equal(again.data, wire.data, wire.size);
    assert_int_equal(copy.n_lanes, plan->n_lanes);
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const size_t n_pairs = (size_t)plan->tp * (size_t)plan->n_lanes;
        const struct plan_class *a = &plan->classes[c];
        const struct plan_class *b = &copy.classes[c];
        assert_memory_equal(a->owned_at, b->owned_at, (n_pairs + 1) * sizeof(int32_t));
        assert_memory_equal(a->owned, b->owned, (size_t)a->owned_at[n_pairs] * sizeof(int32_t));
    }
    plan_destroy(&copy);
    bytes_destroy(&again);
    bytes_destroy(&wire);
}

static void check_everything(const struct plan *plan, const struct model_spec *spec, int placement)
{
    assert_status_ok(plan_check(plan, spec));
    if (placement == PLAN_SHARE) {
        check_share_owners(plan, spec);
    } else {
        check_replicate_owners(plan, spec);
    }
    check_locality(plan, spec);
    check_blocks(plan, spec);
    for (int32_t c = 0; c < plan->n_classes; c++) {
        assert_int_equal(plan->classes[c].placement, placement);
        // All ranks of small plans, some of large ones: the sum over the cases is what takes time.
        const int32_t n = plan->tp < 8 ? plan->tp : 8;
        for (int32_t i = 0; i < n; i++) {
            const int32_t rank = n < 8 ? i : models_between(0, plan->tp - 1);
            check_runs(plan, c, rank);
            check_units(plan, c, rank);
        }
    }
    check_kv_bytes(plan, spec, placement);
    check_weight_bytes(plan, spec);
}

static void test_plan_properties_of_random_schedules(void **state)
{
    (void)state;
    int shared = 0;
    int without_keys = 0;
    for (int i = 0; i < 3000; i++) {
        struct model_spec spec = models_random(i % 8 == 0);
        const int32_t tp = models_between(1, spec.n_heads < 64 ? spec.n_heads : 64);
        const int placement = i % 4 == 3 ? PLAN_REPLICATE : PLAN_SHARE;
        struct plan plan = models_plan(&spec, tp, placement);
        check_everything(&plan, &spec, placement);
        if (i % 8 != 0) {
            check_even(&plan);
        }
        if (i % 16 == 0) {
            check_wire(&plan, &spec);
        }
        shared += plan.n_lanes > 1;
        without_keys += plan.n_classes == 0;
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
    assert_true(shared > 1000); // the interesting case was the common one
    assert_true(without_keys > 20);
}

/* Columns of an odd width: cover, order and size, whatever the width; some ranks may have none. */
static void test_plan_covers_odd_widths(void **state)
{
    (void)state;
    for (int i = 0; i < 500; i++) {
        struct model_spec spec = models_random(true);
        const int32_t tp = models_between(1, spec.n_heads < 64 ? spec.n_heads : 64);
        struct plan plan = models_plan(&spec, tp, PLAN_SHARE);
        for (int32_t l = 0; l < spec.n_layers; l++) {
            int32_t next = 0;
            for (int32_t r = 0; r < tp; r++) {
                const plan_interval_t ffn = plan_ffn_columns(&plan, l, r);
                assert_int_equal(ffn.begin, next);
                assert_true(ffn.end >= ffn.begin);
                assert_true(ffn.begin % PLAN_TILE == 0 || ffn.begin == spec.layers[l].n_ff);
                next = ffn.end;
            }
            assert_int_equal(next, spec.layers[l].n_ff);
        }
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
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

/* 32 heads on 5 ranks: 7 7 6 6 6, and the next layer's extra heads go to the next ranks. */
static void test_plan_deals_extra_units_in_turn(void **state)
{
    (void)state;
    static const int32_t heads[3][5] = {{7, 7, 6, 6, 6}, {6, 6, 7, 7, 6}, {7, 6, 6, 6, 7}};
    // 3 layers leave the sixth extra head with rank 0, so the first tile goes to rank 1.
    static const int32_t tiles[3][5] = {{2, 3, 2, 2, 2}, {2, 2, 3, 2, 2}, {2, 2, 2, 3, 2}};
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

// ---- refusals ----

static void test_plan_refuses_layouts_that_cannot_be(void **state)
{
    (void)state;

    static const struct {
        struct plan_request request;
        int code;
        const char *says;
    } rows[] = {
        {{33, 1, PLAN_AUTO}, STATUS_FAILED_PRECONDITION, "33 is more than the 32 query heads"},
        {{33, 1, PLAN_AUTO}, STATUS_FAILED_PRECONDITION, STATUS_FIX "use 1 to 32"},
        {{0, 1, PLAN_AUTO}, STATUS_INVALID_ARGUMENT, "tensor-parallel-size is 0"},
        {{-1, 1, PLAN_AUTO}, STATUS_INVALID_ARGUMENT, "tensor-parallel-size is -1"},
        {{1, 2, PLAN_AUTO}, STATUS_UNIMPLEMENTED, "pipeline-parallel-size 2"},
        {{1, 0, PLAN_AUTO}, STATUS_INVALID_ARGUMENT, "pipeline-parallel-size is 0"},
        {{1, 1, 7}, STATUS_INVALID_ARGUMENT, "use auto, share or replicate"},
    };
    struct model_spec spec = models_deci_7b();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct plan plan;
        assert_status_says(plan_make(&spec, &rows[i].request, &plan), rows[i].code, rows[i].says);
    }
    assert_string_equal(plan_placement_name(PLAN_AUTO), "auto");
    assert_string_equal(plan_placement_name(PLAN_SHARE), "share");
    assert_string_equal(plan_placement_name(PLAN_REPLICATE), "replicate");
    assert_string_equal(plan_placement_name(9), "unknown");
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

/* 3 linear tiles on 2 ranks: the extra one goes to the rank behind the last extra head and FFN tile. */
static void test_plan_deals_linear_rows_behind_the_rest(void **state)
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
    assert_int_equal(length(plan_ffn_rows(&plan, 2, 0)), PLAN_TILE);
    assert_int_equal(length(plan_ffn_rows(&plan, 2, 1)), PLAN_TILE + 6);
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
        cmocka_unit_test(test_plan_properties_of_random_schedules),
        cmocka_unit_test(test_plan_covers_odd_widths),
        cmocka_unit_test(test_plan_deci_7b),
        cmocka_unit_test(test_plan_three_ranks_four_heads),
        cmocka_unit_test(test_plan_deals_extra_units_in_turn),
        cmocka_unit_test(test_plan_deals_linear_rows_behind_the_rest),
        cmocka_unit_test(test_plan_leaves_ranks_without_tiles_or_rows),
        cmocka_unit_test(test_plan_refuses_layouts_that_cannot_be),
        cmocka_unit_test(test_plan_check_sees_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

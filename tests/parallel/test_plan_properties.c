/*
 * test_plan_properties.c - what holds for the plan of any model on any ranks
 */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "tests/parallel/models.h"

static const struct weight_formats float32 = {.dtype = DTYPE_F32};
static const struct weight_formats bfloat16 = {.dtype = DTYPE_BF16};

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

/* Under share the columns are lanes, under token the blocks of a stripe; who owns what is the same. */
static void check_owners(const struct plan *plan, const struct model_spec *spec, int placement)
{
    const bool token = placement == PLAN_TOKEN;
    assert_int_equal(token ? plan->stripe : plan->n_lanes, lanes_by_definition(spec, plan->tp));
    assert_int_equal(token ? plan->n_lanes : plan->stripe, 1);
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const int32_t heads = plan->classes[c].n_kv_heads;
        const int32_t columns = plan_columns(plan, c);
        // All places of small classes, some of large ones: the sum over the cases is what takes time.
        const int32_t n = heads * columns;
        for (int32_t i = 0; i < n && i < 128; i++) {
            const int32_t place = n <= 128 ? i : models_between(0, n - 1);
            const int32_t g = place / columns;
            const int32_t u = place % columns;
            const int32_t owner = owner_by_definition(plan->tp, heads, columns, g, u);
            const int32_t asker = models_between(0, plan->tp - 1);
            assert_int_equal(plan_attention_rank(plan, c, g, u, asker), owner);
            assert_true(holds(plan, c, owner, u, g));
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
        for (int32_t u = 0; u < plan_columns(plan, c); u++) {
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
        assert_true(runs[i].lane_end <= plan_columns(plan, c));
        assert_true(i == 0 || runs[i].head_begin == runs[i - 1].head_end);
    }
    for (int32_t g = 0; g < plan->classes[c].n_kv_heads; g++) {
        for (int32_t u = 0; u < plan_columns(plan, c); u++) {
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
    const int64_t n_blocks = plan_stripes_for(plan, models_between(0, 1000));
    int64_t next = 0;
    for (int32_t u = 0; u < plan->n_lanes; u++) {
        const int32_t *heads;
        assert_int_equal(plan_unit_base(plan, c, rank, u, n_blocks), next);
        next += n_blocks * plan_held(plan, c, rank, u, &heads);
    }
    assert_int_equal(plan_units(plan, c, rank, n_blocks), next);
}

/* A run's own blocks are numbered without gaps, in the order of their ids, and its units come to what the class has. */
static void check_token_units(const struct plan *plan, int32_t c, int32_t rank)
{
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n_runs = plan_kv_runs(plan, c, rank, runs);
    const int64_t n_blocks = plan_stripes_for(plan, models_between(0, 200));
    int64_t units = 0;
    assert_true(n_blocks % plan->stripe == 0 && plan_stripes_in(plan, n_blocks) == n_blocks);
    for (int32_t i = 0; i < n_runs; i++) {
        int64_t next = 0;
        for (int64_t block = 0; block < n_blocks; block++) {
            const int32_t place = (int32_t)(block % plan->stripe);
            const bool held = runs[i].lane_begin <= place && place < runs[i].lane_end;
            assert_int_equal(plan_run_block(plan, &runs[i], block), held ? next : -1);
            next += held;
        }
        const int64_t n = next * (runs[i].head_end - runs[i].head_begin);
        assert_int_equal(plan_run_units(plan, &runs[i], n_blocks), n);
        units += n;
    }
    assert_int_equal(plan_units(plan, c, rank, n_blocks), units * plan->n_lanes);
}

static int64_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

static int32_t tiles(int64_t n)
{
    return (int32_t)((n + PLAN_TILE - 1) / PLAN_TILE);
}

/* Over the layers of a stage no rank is more than one head ahead of another, and of the vocabulary not more than one row. */
static void check_heads_even(const struct plan *plan, int32_t stage)
{
    const plan_interval_t layers = plan_stage_layers(plan, stage);
    int64_t least = INT64_MAX;
    int64_t most = 0;
    for (int32_t r = 0; r < plan->tp; r++) {
        int64_t heads = 0;
        for (int32_t i = layers.begin; i < layers.end; i++) {
            heads += length(plan_q_heads(plan, i, r));
        }
        least = heads < least ? heads : least;
        most = heads > most ? heads : most;
        const int64_t rows = length(plan_vocab_rows(plan, r));
        assert_true(rows >= plan->n_vocab / plan->tp && rows <= plan->n_vocab / plan->tp + 1);
    }
    assert_true(most - least <= 1);
}

/* Whether `from` could give `to` a tile of the layer and both stay within one tile of an even share. */
static bool could_move(const struct plan *plan, int32_t layer, int32_t from, int32_t to)
{
    const int64_t all = length((plan_interval_t){plan_ffn_columns(plan, layer, 0).begin,
                                                 plan_ffn_columns(plan, layer, plan->tp - 1).end});
    const int32_t n = tiles(all);
    const int32_t given = tiles(length(plan_ffn_columns(plan, layer, from))) - 1;
    const int32_t taken = tiles(length(plan_ffn_columns(plan, layer, to))) + 1;
    return given >= 0 && given >= n / plan->tp - 1 && taken <= (n + plan->tp - 1) / plan->tp + 1;
}

enum evenness { EVEN, AS_FAR_AS_TILES_GO };

/* Weights of a stage's ranks are within 1 % of each other, or within a head and a tile, or there is no tile left that the
 * heaviest rank could give the lightest. */
static enum evenness check_weights_even(const struct plan *plan, const struct model_spec *spec,
                                        int32_t stage)
{
    int64_t sum = 0;
    int32_t light = stage * plan->tp;
    int32_t heavy = light;
    for (int32_t rank = stage * plan->tp; rank < (stage + 1) * plan->tp; rank++) {
        const int64_t bytes = plan_weight_bytes(plan, spec, rank, &bfloat16);
        sum += bytes;
        light = bytes < plan_weight_bytes(plan, spec, light, &bfloat16) ? rank : light;
        heavy = bytes > plan_weight_bytes(plan, spec, heavy, &bfloat16) ? rank : heavy;
    }
    const int64_t head = 4 * (int64_t)spec->head_dim * spec->n_hidden;
    const int64_t tile = 6 * (int64_t)PLAN_TILE * spec->n_hidden;
    const double mean = (double)sum / plan->tp;
    const int64_t spread = plan_weight_bytes(plan, spec, heavy, &bfloat16) -
                           plan_weight_bytes(plan, spec, light, &bfloat16);
    if ((double)spread <= 0.01 * mean || spread <= head + tile) {
        return EVEN;
    }
    const plan_interval_t layers = plan_stage_layers(plan, stage);
    for (int32_t i = layers.begin; i < layers.end; i++) {
        assert_true(plan->layers[i].ffn != SPEC_BLOCK_FULL ||
                    !could_move(plan, i, heavy % plan->tp, light % plan->tp));
    }
    return AS_FAR_AS_TILES_GO;
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
    double all = 0;
    for (int32_t stage = 0; stage < plan->pp; stage++) {
        const plan_interval_t layers = plan_stage_layers(plan, stage);
        int64_t heads = 0;
        for (int32_t i = layers.begin; i < layers.end; i++) {
            heads += spec->layers[i].n_kv_heads;
        }
        const double even = 2.0 * (double)heads * spec->head_dim * 2 / plan->tp;
        for (int32_t rank = stage * plan->tp; rank < (stage + 1) * plan->tp; rank++) {
            const double bytes = plan_kv_bytes_per_token(plan, rank, DTYPE_BF16);
            all += bytes;
            // A stripe in every lane holds so many blocks of D sequences' tokens.
            const int64_t stripe = plan_kv_bytes(plan, rank, DTYPE_BF16, plan->stripe);
            assert_close(stripe, bytes * PLAN_BLOCK_TOKENS * plan->n_lanes * plan->stripe, 0,
                         1e-12);
            if (stripe > 0) {
                const uint64_t given = (uint64_t)stripe * 7;
                assert_int_equal(plan_kv_blocks_in(plan, rank, DTYPE_BF16, given),
                                 7 * plan->stripe);
                assert_int_equal(plan_kv_blocks_in(plan, rank, DTYPE_BF16, given - 1),
                                 6 * plan->stripe);
            }
            if (placement != PLAN_REPLICATE) {
                assert_close(bytes, even, 1e-6, 0); // to the byte
            }
        }
    }
    const double factor = plan_kv_replication(plan, spec);
    assert_close(all, (double)spec_kv_bytes_per_token(spec, DTYPE_BF16) * factor, 1e-6, 1e-12);
    if (placement != PLAN_REPLICATE) {
        assert_close(factor, 1.0, 0, 0);
    } else {
        assert_true(factor >= 1.0);
    }
}

/* The weights of all ranks are those of the model, plus what several ranks keep of k and v and norms, and a tied head apart
 * from its embedding. */
static void check_weight_bytes(const struct plan *plan, const struct model_spec *spec)
{
    int64_t sum = 0;
    int64_t copies = 0; // rows
    for (int32_t r = 0; r < plan_n_ranks(plan); r++) {
        sum += plan_weight_bytes(plan, spec, r, &float32);
    }
    for (int32_t i = 0; i < plan->n_layers; i++) {
        const int32_t c = plan->layers[i].class_index;
        for (int32_t r = 0; r < plan->tp && c >= 0; r++) {
            copies += 2 * length(plan_kv_weight_heads(plan, c, r)) * spec->head_dim;
        }
        copies -= 2 * (int64_t)spec->layers[i].n_kv_heads * spec->head_dim;
    }
    copies += spec->tied_head && plan->pp > 1 ? spec->n_vocab : 0;
    int64_t norms = 1;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        norms += spec->layers[i].attention != SPEC_BLOCK_NONE;
        norms += spec->layers[i].ffn != SPEC_BLOCK_NONE;
    }
    norms *= plan->tp - 1; // every rank of a stage has its layers'
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
    assert_int_equal(copy.stripe, plan->stripe);
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const size_t n_pairs = (size_t)plan->tp * (size_t)plan_columns(plan, c);
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
    if (placement == PLAN_REPLICATE) {
        check_replicate_owners(plan, spec);
    } else {
        check_owners(plan, spec, placement);
    }
    check_locality(plan, spec);
    check_blocks(plan, spec);
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const bool whole = plan->classes[c].n_kv_heads % plan->tp == 0;
        const bool token = placement == PLAN_TOKEN && !whole;
        assert_int_equal(plan->classes[c].placement,
                         placement == PLAN_TOKEN && whole ? PLAN_SHARE : placement);
        // All ranks of small plans, some of large ones: the sum over the cases is what takes time.
        const int32_t n = plan->tp < 8 ? plan->tp : 8;
        for (int32_t i = 0; i < n; i++) {
            const int32_t rank = n < 8 ? i : models_between(0, plan->tp - 1);
            check_runs(plan, c, rank);
            if (token) {
                check_token_units(plan, c, rank);
            } else {
                check_units(plan, c, rank);
            }
        }
    }
    check_kv_bytes(plan, spec, placement);
    check_weight_bytes(plan, spec);
}

/* Layers in order, each in one stage, and something to compute in every stage. */
static void check_stages(const struct plan *plan, const struct model_spec *spec)
{
    int32_t next = 0;
    for (int32_t stage = 0; stage < plan->pp; stage++) {
        const plan_interval_t layers = plan_stage_layers(plan, stage);
        bool works = plan->pp == 1;
        assert_int_equal(layers.begin, next);
        for (int32_t i = layers.begin; i < layers.end; i++) {
            assert_int_equal(plan_stage_of_layer(plan, i), stage);
            works = works || spec->layers[i].attention != SPEC_BLOCK_NONE ||
                    spec->layers[i].ffn != SPEC_BLOCK_NONE;
        }
        assert_true(works);
        next = layers.end;
        for (int32_t r = 0; r < plan->tp; r++) {
            const int32_t rank = stage * plan->tp + r;
            const int64_t rows = length(plan_vocab_rows(plan, r));
            assert_int_equal(plan_stage(plan, rank), stage);
            assert_int_equal(plan_tp_rank(plan, rank), r);
            assert_int_equal(length(plan_embedding_rows(plan, rank)), stage == 0 ? rows : 0);
            assert_int_equal(length(plan_head_rows(plan, rank)), stage == plan->pp - 1 ? rows : 0);
        }
    }
    assert_int_equal(next, spec->n_layers);
}

static void test_plan_properties_of_random_schedules(void **state)
{
    (void)state;
    int shared = 0;
    int split = 0;
    int without_keys = 0;
    int n_stages = 0;
    int at_the_end = 0;
    for (int i = 0; i < 10000; i++) {
        struct model_spec spec = models_random(i % 8 == 0);
        const int32_t n_working = models_working_layers(&spec);
        const struct plan_request request = {
            .tp = models_between(1, spec.n_heads < 64 ? spec.n_heads : 64),
            .pp = n_working < 2 ? 1 : models_between(1, n_working < 8 ? n_working : 8),
            .placement = i % 4 == 3   ? PLAN_REPLICATE
                         : i % 4 == 1 ? PLAN_TOKEN
                                      : PLAN_SHARE,
        };
        struct plan plan = models_plan_stages(&spec, &request);
        check_everything(&plan, &spec, request.placement);
        check_stages(&plan, &spec);
        for (int32_t stage = 0; stage < plan.pp && i % 8 != 0; stage++) {
            check_heads_even(&plan, stage);
            at_the_end += check_weights_even(&plan, &spec, stage) == AS_FAR_AS_TILES_GO;
            n_stages++;
        }
        if (i % 16 == 0) {
            check_wire(&plan, &spec);
        }
        shared += plan.n_lanes > 1;
        split += plan.stripe > 1;
        without_keys += plan.n_classes == 0;
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
    assert_true(shared > 2000 && split > 1000); // the interesting cases were the common ones
    assert_true(without_keys > 60);
    print_message("%d of %d stages end out of tiles\n", at_the_end, n_stages);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_properties_of_random_schedules),
        cmocka_unit_test(test_plan_covers_odd_widths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

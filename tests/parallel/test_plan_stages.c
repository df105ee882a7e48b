/*
 * test_plan_stages.c - where layers are cut into stages, against a search of another kind
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdlib.h>

#include "tests/parallel/models.h"

// ---- the definition, from the model alone ----

/* Elements; of the layers [begin, end) as a stage. */
struct parts {
    double weights, kv, decode, prefill;
};

static double layer_weights(const struct model_spec *spec, int32_t layer)
{
    const struct spec_layer *at = &spec->layers[layer];
    const double hidden = spec->n_hidden;
    double n = 0;
    if (at->attention == SPEC_BLOCK_FULL) {
        n += hidden + 2 * hidden * spec->head_dim * ((double)spec->n_heads + at->n_kv_heads);
    } else if (at->attention == SPEC_BLOCK_LINEAR) {
        n += hidden + hidden * hidden;
    }
    if (at->ffn == SPEC_BLOCK_FULL) {
        n += hidden + 3 * hidden * at->n_ff;
    } else if (at->ffn == SPEC_BLOCK_LINEAR) {
        n += hidden + hidden * hidden;
    }
    return n;
}

static double kv_of(const struct model_spec *spec, int32_t begin, int32_t end)
{
    double heads = 0;
    for (int32_t i = begin; i < end; i++) {
        heads += spec->layers[i].n_kv_heads;
    }
    return 2 * heads * spec->head_dim;
}

static struct parts parts_of(const struct model_spec *spec, int32_t begin, int32_t end,
                             double kv_scale)
{
    const bool first = begin == 0;
    const bool last = end == spec->n_layers;
    const double rows = (double)spec->n_vocab * spec->n_hidden;
    const double head = last ? rows + spec->n_hidden : 0;
    struct parts p = {.weights = (first ? rows : 0) + head, .prefill = head};
    double matrices = head;
    for (int32_t i = begin; i < end; i++) {
        const double weights = layer_weights(spec, i);
        const double heads = spec->layers[i].attention == SPEC_BLOCK_FULL ? spec->n_heads : 0;
        p.weights += weights;
        matrices += weights;
        p.prefill += weights + 2 * heads * spec->head_dim * 1024;
    }
    p.kv = kv_scale * kv_of(spec, begin, end);
    p.decode = matrices + p.kv + (last ? 256.0 * spec->n_vocab : 0);
    return p;
}

/* The larger of a stage's parts of bytes and of time. */
static double part_of(const struct model_spec *spec, int32_t begin, int32_t end)
{
    const double kv = kv_of(spec, 0, spec->n_layers);
    const double scale = kv > 0 ? parts_of(spec, 0, spec->n_layers, 0).weights / kv : 0;
    const struct parts whole = parts_of(spec, 0, spec->n_layers, scale);
    const struct parts p = parts_of(spec, begin, end, scale);
    const double bytes = (p.weights + p.kv) / (whole.weights + whole.kv);
    const double time = 0.5 * p.decode / whole.decode + 0.5 * p.prefill / whole.prefill;
    return fmax(bytes, time);
}

// ---- the optimum, by trying limits ----

/* Where the stage that begins at `begin` may end next after `end`: before a layer that computes something, and behind one. */
static int32_t next_end(const struct model_spec *spec, int32_t begin, int32_t end)
{
    bool works = false;
    for (int32_t i = begin; i < spec->n_layers; i++) {
        const bool here =
            spec->layers[i].attention != SPEC_BLOCK_NONE || spec->layers[i].ffn != SPEC_BLOCK_NONE;
        if (i > end && works && here) {
            return i;
        }
        works = works || here;
    }
    return spec->n_layers;
}

/* Stages needed when each takes layers as long as its part stays within the limit; a number too large when one layer does
 * not. Fewer stages than wanted can always be split further. */
static int32_t stages_within(const struct model_spec *spec, double limit)
{
    int32_t n = 0;
    int32_t begin = 0;
    while (begin < spec->n_layers) {
        int32_t end = begin;
        int32_t next = next_end(spec, begin, end);
        while (end < spec->n_layers && part_of(spec, begin, next) <= limit) {
            end = next;
            next = next_end(spec, begin, end);
        }
        if (end == begin) {
            return INT32_MAX;
        }
        begin = end;
        n++;
    }
    return n;
}

static double optimum(const struct model_spec *spec, int32_t pp)
{
    double lo = 0;
    double hi = 1;
    for (int i = 0; i < 50; i++) {
        const double limit = (lo + hi) / 2;
        if (stages_within(spec, limit) <= pp) {
            hi = limit;
        } else {
            lo = limit;
        }
    }
    return hi;
}

/* The largest part of the plan; its loads are those of the definition, and sum to 1. */
static double largest_part(const struct plan *plan, const struct model_spec *spec)
{
    double largest = 0;
    double bytes = 0;
    double time = 0;
    for (int32_t stage = 0; stage < plan->pp; stage++) {
        const plan_interval_t layers = plan_stage_layers(plan, stage);
        const plan_load_t load = plan_stage_load(plan, spec, stage);
        const double part = fmax(load.bytes, load.time);
        assert_close(part, part_of(spec, layers.begin, layers.end), 0, 1e-9);
        largest = fmax(largest, part);
        bytes += load.bytes;
        time += load.time;
    }
    assert_close(bytes, 1, 0, 1e-9);
    assert_close(time, 1, 0, 1e-9);
    return largest;
}

/* Makes the model a deep one, as searched architectures are: its layers over and over, in random order. */
static void deepen(struct model_spec *spec)
{
    const int32_t n = models_between(32, 120);
    struct spec_layer *layers = calloc((size_t)n, sizeof *layers);
    assert_non_null(layers);
    for (int32_t i = 0; i < n; i++) {
        layers[i] = spec->layers[test_random_below((uint64_t)spec->n_layers)];
    }
    free(spec->layers);
    spec->layers = layers;
    spec->n_layers = n;
}

static void test_plan_stages_are_as_even_as_can_be(void **state)
{
    (void)state;
    int n_even = 0;
    for (int i = 0; i < 1000; i++) {
        struct model_spec spec = models_random(i % 4 == 0);
        if (i % 10 == 0) {
            deepen(&spec);
        }
        const int32_t most = models_working_layers(&spec);
        if (most >= 2) {
            const struct plan_request request = {
                .tp = 1, .pp = models_between(2, most < 8 ? most : 8), .placement = PLAN_SHARE};
            struct plan plan = models_plan_stages(&spec, &request);
            const double largest = largest_part(&plan, &spec);
            const double best = optimum(&spec, plan.pp);
            assert_close(largest, best, 0, 1e-9);
            n_even += best * plan.pp <= 1.05;
            plan_destroy(&plan);
        }
        spec_destroy(&spec);
    }
    print_message("%d plans with max / mean within 1.05\n", n_even);
    assert_true(n_even > 20); // such cuts exist, and were found
}

/* Among cuts with the same largest part the even ones are taken: a large first layer must not make the rest lopsided. */
static void test_plan_stages_even_out_the_rest(void **state)
{
    (void)state;
    struct spec_layer layers[9] = {{.n_kv_heads = 1, .n_ff = 40 * PLAN_TILE}};
    for (int i = 1; i < 9; i++) {
        layers[i] = (struct spec_layer){.n_kv_heads = 1, .n_ff = PLAN_TILE};
    }
    const struct model_spec spec = {
        .n_layers = 9, .n_hidden = 64, .n_heads = 1, .head_dim = 8, .n_vocab = 1, .layers = layers};
    const struct plan_request request = {.tp = 1, .pp = 5, .placement = PLAN_SHARE};
    struct plan plan = models_plan_stages(&spec, &request);
    static const int32_t cuts[6] = {0, 1, 3, 5, 7, 9};
    assert_memory_equal(plan.stage_cuts, cuts, sizeof cuts);
    plan_destroy(&plan);
}

/* Long runs without attention, as searched architectures have: cut by what layers weigh and not by how many there are. */
static void test_plan_stages_do_not_count_layers(void **state)
{
    (void)state;
    struct spec_layer layers[40];
    for (int i = 0; i < 40; i++) {
        const bool empty = i >= 10 && i < 30;
        layers[i] = empty
                        ? (struct spec_layer){.attention = SPEC_BLOCK_NONE, .ffn = SPEC_BLOCK_NONE}
                        : (struct spec_layer){.n_kv_heads = 2, .n_ff = 10 * PLAN_TILE};
    }
    const struct model_spec spec = {.n_layers = 40,
                                    .n_hidden = 512,
                                    .n_heads = 8,
                                    .head_dim = 64,
                                    .n_vocab = 8,
                                    .layers = layers};
    for (int32_t pp = 2; pp <= 20; pp++) {
        const struct plan_request request = {.tp = 2, .pp = pp, .placement = PLAN_SHARE};
        struct plan plan = models_plan_stages(&spec, &request);
        assert_status_ok(plan_check(&plan, &spec));
        const int32_t most = (20 + pp - 1) / pp;
        for (int32_t stage = 0; stage < pp; stage++) {
            int32_t n = 0;
            const plan_interval_t at = plan_stage_layers(&plan, stage);
            for (int32_t i = at.begin; i < at.end; i++) {
                n += layers[i].n_ff > 0;
            }
            assert_true(n >= 1 && n <= most);
        }
        plan_destroy(&plan);
    }
}

static void test_plan_stages_of_deci_7b(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    for (int32_t pp = 1; pp <= 8; pp++) {
        for (int32_t tp = 1; tp <= 8; tp++) {
            const struct plan_request request = {.tp = tp, .pp = pp, .placement = PLAN_SHARE};
            struct plan plan = models_plan_stages(&spec, &request);
            assert_status_ok(plan_check(&plan, &spec));
            assert_true(largest_part(&plan, &spec) * pp < 1.16); // 32 layers leave no better cut
            plan_destroy(&plan);
        }
    }
    spec_destroy(&spec);
}

static void test_plan_stages_need_layers_that_work(void **state)
{
    (void)state;
    struct spec_layer layers[] = {
        {.attention = SPEC_BLOCK_NONE, .ffn = SPEC_BLOCK_NONE},
        {.n_kv_heads = 2, .n_ff = PLAN_TILE},
        {.attention = SPEC_BLOCK_NONE, .ffn = SPEC_BLOCK_NONE},
        {.attention = SPEC_BLOCK_LINEAR, .ffn = SPEC_BLOCK_NONE},
    };
    const struct model_spec spec = {.name = "thin",
                                    .n_layers = 4,
                                    .n_hidden = 16,
                                    .n_heads = 2,
                                    .head_dim = 8,
                                    .n_vocab = 10,
                                    .layers = layers};
    struct plan plan;
    struct plan_request request = {.tp = 2, .pp = 3};
    assert_status_says(plan_make(&spec, &request, &plan), STATUS_FAILED_PRECONDITION,
                       "pipeline-parallel-size 3 is more than the 2 layers of thin that compute "
                       "something: a stage would have none" STATUS_FIX "use 1 to 2");
    request.pp = 2;
    plan = models_plan_stages(&spec, &request);
    assert_status_ok(plan_check(&plan, &spec));
    plan.stage_cuts[1] = 1; // the first stage would be the layer that is empty
    assert_status_says(plan_check(&plan, &spec), STATUS_INTERNAL, "stage 0 of layers [0, 1)");
    plan.stage_cuts[1] = 5;
    assert_status_code(plan_check(&plan, &spec), STATUS_INTERNAL);
    plan_destroy(&plan);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_stages_are_as_even_as_can_be),
        cmocka_unit_test(test_plan_stages_even_out_the_rest),
        cmocka_unit_test(test_plan_stages_do_not_count_layers),
        cmocka_unit_test(test_plan_stages_of_deci_7b),
        cmocka_unit_test(test_plan_stages_need_layers_that_work),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#include "tests/parallel/models.h"

#include <stdlib.h>

#include "tests/support/test.h"

static int32_t random_divisor(int32_t n)
{
    int32_t divisors[64];
    int32_t count = 0;
    for (int32_t d = 1; d <= n; d++) {
        if (n % d == 0) {
            divisors[count++] = d;
        }
    }
    return divisors[test_random_below((uint64_t)count)];
}

int32_t models_between(int32_t lo, int32_t hi)
{
    return lo + (int32_t)test_random_below((uint64_t)hi - (uint64_t)lo + 1);
}

/* Full half of the time. */
static int random_block(void)
{
    static const int blocks[4] = {SPEC_BLOCK_FULL, SPEC_BLOCK_FULL, SPEC_BLOCK_LINEAR,
                                  SPEC_BLOCK_NONE};
    return blocks[test_random_below(4)];
}

struct model_spec models_random(bool odd_widths)
{
    struct model_spec spec = {.name = "random"};
    spec.n_heads = models_between(1, 128);
    spec.n_layers = models_between(1, 16);
    spec.head_dim = 2 * models_between(1, 64);
    spec.n_hidden = models_between(1, 4096);
    spec.n_vocab = models_between(1, 60000);
    spec.tied_head = test_random_below(2) == 0;
    spec.layers = calloc((size_t)spec.n_layers, sizeof *spec.layers);
    assert_non_null(spec.layers);
    int32_t kinds[3];
    for (int i = 0; i < 3; i++) {
        kinds[i] = random_divisor(spec.n_heads);
    }
    const bool blocks = test_random_below(3) == 0;
    for (int32_t i = 0; i < spec.n_layers; i++) {
        struct spec_layer *layer = &spec.layers[i];
        layer->attention = blocks ? random_block() : SPEC_BLOCK_FULL;
        layer->ffn = blocks ? random_block() : SPEC_BLOCK_FULL;
        if (layer->attention == SPEC_BLOCK_FULL) {
            layer->n_kv_heads = kinds[test_random_below(3)];
        }
        if (layer->ffn == SPEC_BLOCK_FULL) {
            layer->n_ff = odd_widths ? models_between(1, 6000) : PLAN_TILE * models_between(1, 200);
        }
    }
    return spec;
}

struct model_spec models_deci_7b(void)
{
    static const int32_t kv[32] = {4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 4, 2, 2, 2, 2, 2,
                                   2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4};
    struct model_spec spec = {.name = "deci-7b",
                              .n_layers = 32,
                              .n_hidden = 4096,
                              .n_heads = 32,
                              .head_dim = 128,
                              .n_vocab = 32000};
    spec.layers = calloc(32, sizeof *spec.layers);
    assert_non_null(spec.layers);
    for (int32_t i = 0; i < 32; i++) {
        spec.layers[i].n_kv_heads = kv[i];
        spec.layers[i].n_ff = 14336;
    }
    return spec;
}

struct plan models_plan(const struct model_spec *spec, int32_t tp, int placement)
{
    const struct plan_request request = {.tp = tp, .pp = 1, .placement = placement};
    return models_plan_stages(spec, &request);
}

struct plan models_plan_stages(const struct model_spec *spec, const struct plan_request *request)
{
    struct plan plan;
    assert_status_ok(plan_make(spec, request, &plan));
    return plan;
}

int32_t models_working_layers(const struct model_spec *spec)
{
    int32_t n = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        n += spec->layers[i].attention != SPEC_BLOCK_NONE || spec->layers[i].ffn != SPEC_BLOCK_NONE;
    }
    return n;
}

/*
 * plan_stages.c - where the layers are cut into pipeline stages
 *
 * What:    each stage has a part of the model's bytes and a part of a step's time, and the cuts make the largest part of
 *          either, over all stages, as small as it can be. Among cuts that do, those with the least sum of squares are
 *          taken, so that the stages that do not decide are even too.
 *
 *            bytes   weights + KV. How much KV there will be is not known here; as many bytes as there are weights are
 *                    assumed, spread over the layers as their KV heads are.
 *            time    half decode: weights read + KV read + sampling; half prefill: multiply-adds of the matrices and of
 *                    attention over CONTEXT_TOKENS keys. The embedding is stored and not read whole.
 *
 *          Layers without attention or without a feed-forward weigh what they have. The first stage has the embedding,
 *          the last the final norm, the head and sampling. Every stage has a layer that computes something.
 * Numbers: in elements; a matrix element is one read of decode and one multiply-add of a token in prefill. Elements of
 *          weights and of KV count alike: KV is scaled to the weights anyway.
 * Method:  parts of intervals are differences of prefix sums; they only grow with the interval. First the least largest
 *          part by dynamic programming over (stages, layers), then the least sum of squares among intervals within it.
 * Cost:    O(P n log n) and O(P n w), n layers, w the layers of the largest stage.
 */
#include <math.h>
#include <stdlib.h>

#include "parallel/plan.h"
#include "parallel/plan_parts.h"

/* Keys that a token attends to in the middle of a long prompt. */
#define CONTEXT_TOKENS 1024

/* Elements that sampling moves for each row of the vocabulary: 64 sequences, written once and read once in float32. */
#define SAMPLING_ELEMENTS 256

/* Of one layer, or summed over several. */
struct cost {
    double weights, kv, prefill;
};

struct stage_costs {
    const struct model_spec *spec;
    struct cost *before;  /* [n_layers + 1]: sums over the layers before */
    int32_t *working;     /* [n_layers + 1]: layers before that compute something */
    double kv_scale;      /* from elements of a token to as many as there are weights */
    double embedding;     /* elements, on the first stage */
    double head;          /* on the last, with the final norm */
    double bytes, decode; /* of the whole model */
    double prefill;
};

bool plan_layer_works(const struct model_spec *spec, int32_t layer)
{
    return spec->layers[layer].attention != SPEC_BLOCK_NONE ||
           spec->layers[layer].ffn != SPEC_BLOCK_NONE;
}

static struct cost layer_cost(const struct model_spec *spec, int32_t layer)
{
    const struct spec_layer *at = &spec->layers[layer];
    const double weights = (double)spec_layer_parameters(spec, layer);
    const double heads = at->attention == SPEC_BLOCK_FULL ? spec->n_heads : 0;
    return (struct cost){
        .weights = weights,
        .kv = 2.0 * at->n_kv_heads * spec->head_dim,
        .prefill = weights + 2.0 * heads * spec->head_dim * CONTEXT_TOKENS,
    };
}

static bool costs_init(struct stage_costs *c, const struct model_spec *spec)
{
    const int32_t n = spec->n_layers;
    *c = (struct stage_costs){.spec = spec};
    c->before = calloc((size_t)n + 1, sizeof *c->before);
    c->working = calloc((size_t)n + 1, sizeof *c->working);
    if (c->before == NULL || c->working == NULL) {
        return false;
    }
    for (int32_t i = 0; i < n; i++) {
        const struct cost layer = layer_cost(spec, i);
        c->before[i + 1] = (struct cost){
            .weights = c->before[i].weights + layer.weights,
            .kv = c->before[i].kv + layer.kv,
            .prefill = c->before[i].prefill + layer.prefill,
        };
        c->working[i + 1] = c->working[i] + plan_layer_works(spec, i);
    }
    const struct cost all = c->before[n];
    c->embedding = (double)spec->n_vocab * spec->n_hidden;
    c->head = c->embedding + (double)spec_norm_parameters(spec);
    const double weights = all.weights + c->embedding + c->head;
    c->kv_scale = all.kv > 0 ? weights / all.kv : 0;
    c->bytes = weights + all.kv * c->kv_scale;
    c->decode =
        all.weights + c->head + all.kv * c->kv_scale + (double)SAMPLING_ELEMENTS * spec->n_vocab;
    c->prefill = all.prefill + c->head;
    return true;
}

static void costs_destroy(struct stage_costs *c)
{
    free(c->before);
    free(c->working);
}

static plan_load_t load_of(const struct stage_costs *c, int32_t begin, int32_t end)
{
    const struct cost *a = &c->before[begin];
    const struct cost *b = &c->before[end];
    const double kv = (b->kv - a->kv) * c->kv_scale;
    const double weights = b->weights - a->weights;
    const bool first = begin == 0;
    const bool last = end == c->spec->n_layers;
    const double embedding = first ? c->embedding : 0;
    const double head = last ? c->head : 0;
    const double sampling = last ? (double)SAMPLING_ELEMENTS * c->spec->n_vocab : 0;
    const double decode = weights + kv + head + sampling;
    const double prefill = b->prefill - a->prefill + head;
    return (plan_load_t){
        .bytes = (weights + kv + embedding + head) / c->bytes,
        .time = 0.5 * decode / c->decode + 0.5 * prefill / c->prefill,
    };
}

/* The larger part; infinite where the layers compute nothing, which no stage may. */
static double part_of(const struct stage_costs *c, int32_t begin, int32_t end)
{
    const plan_load_t load = load_of(c, begin, end);
    return c->working[end] == c->working[begin] ? INFINITY : fmax(load.bytes, load.time);
}

// ---- the least largest part ----

/* The first j in [lo, hi) where the stages before j have at least the part of [j, i); hi when there is none. */
static int32_t crossing(const struct stage_costs *c, const double *least, plan_interval_t js,
                        int32_t i)
{
    int32_t lo = js.begin;
    int32_t hi = js.end;
    while (lo < hi) {
        const int32_t j = lo + (hi - lo) / 2;
        if (least[j] >= part_of(c, j, i)) {
            hi = j;
        } else {
            lo = j + 1;
        }
    }
    return lo;
}

/*
 * least[i]: of the first i layers in some number of stages, infinite where they are too few; next_out: in one stage more. Where
 * it is finite it grows with i, and the part of [j, i) shrinks with j, so that the best j is on one side or the other of where
 * they cross.
 */
static void add_stage(const struct stage_costs *c, const double *least, double *next_out)
{
    plan_interval_t js = {0, 0}; // [j, i) computes something, and so does each stage before j
    while (js.begin < c->spec->n_layers && isinf(least[js.begin])) {
        js.begin++;
    }
    for (int32_t i = 0; i <= c->spec->n_layers; i++) {
        while (js.end < i && c->working[js.end] < c->working[i]) {
            js.end++;
        }
        const int32_t j = crossing(c, least, js, i);
        double best = INFINITY;
        if (j < js.end) {
            best = fmax(least[j], part_of(c, j, i));
        }
        if (j > js.begin) {
            best = fmin(best, fmax(least[j - 1], part_of(c, j - 1, i)));
        }
        next_out[i] = best;
    }
}

/* rows[2][n_layers + 1]: working memory. */
static double least_part(const struct stage_costs *c, int32_t pp, double *rows)
{
    const int32_t n = c->spec->n_layers;
    double *least = rows;
    double *next = rows + n + 1;
    for (int32_t i = 0; i <= n; i++) {
        least[i] = i > 0 ? part_of(c, 0, i) : INFINITY;
    }
    for (int32_t p = 1; p < pp; p++) {
        add_stage(c, least, next);
        double *swap = least;
        least = next;
        next = swap;
    }
    return least[n];
}

// ---- the least sum of squares within it ----

/* sums[p][i]: of the first i layers in p + 1 stages none of which has more than `most`; from[p][i]: where the last begins. */
static void fill_sums(const struct stage_costs *c, int32_t p, double most, double *sums,
                      int32_t *from)
{
    const int32_t n = c->spec->n_layers;
    const double *before = sums + (ptrdiff_t)(p - 1) * (n + 1);
    double *row = sums + (ptrdiff_t)p * (n + 1);
    for (int32_t i = 0; i <= n; i++) {
        row[i] = INFINITY;
        for (int32_t j = i - 1; j >= 0; j--) {
            const plan_load_t load = load_of(c, j, i);
            const double part = fmax(load.bytes, load.time);
            if (part > most) {
                break;
            }
            const double sum = before[j] + part * part;
            if (c->working[i] > c->working[j] && sum < row[i]) {
                row[i] = sum;
                from[(ptrdiff_t)p * (n + 1) + i] = j;
            }
        }
    }
}

static void choose_cuts(const struct stage_costs *c, struct plan *plan, double *sums, int32_t *from)
{
    const int32_t n = c->spec->n_layers;
    const double most = least_part(c, plan->pp, sums);
    for (int32_t i = 0; i <= n; i++) {
        const double part = i > 0 ? part_of(c, 0, i) : INFINITY;
        sums[i] = part <= most ? part * part : INFINITY;
    }
    for (int32_t p = 1; p < plan->pp; p++) {
        fill_sums(c, p, most, sums, from);
    }
    plan->stage_cuts[plan->pp] = n;
    for (int32_t p = plan->pp - 1; p > 0; p--) {
        plan->stage_cuts[p] = from[(ptrdiff_t)p * (n + 1) + plan->stage_cuts[p + 1]];
    }
}

bool plan_cut_stages(struct plan *plan, const struct model_spec *spec)
{
    plan->stage_cuts[plan->pp] = spec->n_layers;
    if (plan->pp == 1) {
        return true; // also for a model without a layer that computes
    }
    struct stage_costs costs;
    const size_t n = ((size_t)spec->n_layers + 1) * (size_t)plan->pp;
    double *sums = calloc(n, sizeof *sums);
    int32_t *from = calloc(n, sizeof *from);
    const bool made = costs_init(&costs, spec) && sums != NULL && from != NULL;
    if (made) {
        choose_cuts(&costs, plan, sums, from);
    }
    costs_destroy(&costs);
    free(sums);
    free(from);
    return made;
}

plan_load_t plan_stage_load(const struct plan *plan, const struct model_spec *spec, int32_t stage)
{
    struct stage_costs costs;
    plan_load_t load = {0};
    if (costs_init(&costs, spec)) {
        load = load_of(&costs, plan->stage_cuts[stage], plan->stage_cuts[stage + 1]);
    }
    costs_destroy(&costs);
    return load;
}

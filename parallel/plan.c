#include "parallel/plan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention_args.h"
#include "parallel/plan_parts.h"

// ---- numbers ----

static int32_t gcd(int32_t a, int32_t b)
{
    while (b != 0) {
        const int32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static int32_t max_i32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

// ---- memory ----

static int32_t *make_table(size_t n)
{
    return calloc(n > 0 ? n : 1, sizeof(int32_t));
}

bool plan_allocate(struct plan *plan, const struct model_spec *spec, int32_t tp, int32_t pp)
{
    plan->tp = tp;
    plan->pp = pp;
    plan->n_heads = spec->n_heads;
    plan->head_dim = spec->head_dim;
    plan->n_vocab = spec->n_vocab;
    const size_t n_cuts = (size_t)tp + 1;
    plan->stage_cuts = make_table((size_t)pp + 1);
    plan->vocab_cuts = make_table(n_cuts);
    plan->layers = calloc((size_t)spec->n_layers, sizeof *plan->layers);
    if (plan->stage_cuts == NULL || plan->vocab_cuts == NULL || plan->layers == NULL) {
        return false;
    }
    plan->n_layers = spec->n_layers;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        plan->layers[i].attention = spec->layers[i].attention;
        plan->layers[i].ffn = spec->layers[i].ffn;
        plan->layers[i].class_index = -1;
        plan->layers[i].attention_cuts = make_table(n_cuts);
        plan->layers[i].ffn_cuts = make_table(n_cuts);
        if (plan->layers[i].attention_cuts == NULL || plan->layers[i].ffn_cuts == NULL) {
            return false;
        }
    }
    return true;
}

bool plan_allocate_classes(struct plan *plan, int32_t n_classes)
{
    plan->classes = calloc(n_classes > 0 ? (size_t)n_classes : 1, sizeof *plan->classes);
    plan->n_classes = plan->classes != NULL ? n_classes : 0;
    return plan->classes != NULL;
}

void plan_destroy(struct plan *plan)
{
    for (int32_t i = 0; i < plan->n_layers; i++) {
        free(plan->layers[i].attention_cuts);
        free(plan->layers[i].ffn_cuts);
    }
    free(plan->layers);
    for (int32_t i = 0; i < plan->n_classes; i++) {
        free(plan->classes[i].owned);
        free(plan->classes[i].owned_at);
    }
    free(plan->classes);
    free(plan->stage_cuts);
    free(plan->vocab_cuts);
    memset(plan, 0, sizeof *plan);
}

// ---- the request ----

const char *plan_placement_name(int placement)
{
    static const char *const names[] = {
        [PLAN_AUTO] = "auto",
        [PLAN_SHARE] = "share",
        [PLAN_REPLICATE] = "replicate",
        [PLAN_TOKEN] = "token",
    };
    const bool known = placement >= PLAN_AUTO && placement <= PLAN_TOKEN;
    return known ? names[placement] : "unknown";
}

static status_t check_tp(const struct model_spec *spec, int32_t tp)
{
    if (tp < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "tensor-parallel-size is %d" STATUS_FIX "use 1 to %d", tp,
                             spec->n_heads);
    }
    if (tp > spec->n_heads) {
        return status_errorf(
            STATUS_FAILED_PRECONDITION,
            "tensor-parallel-size %d is more than the %d query heads of %s: a rank "
            "would have none" STATUS_FIX "use 1 to %d",
            tp, spec->n_heads, spec->name, spec->n_heads);
    }
    return status_ok();
}

static status_t check_pp(const struct model_spec *spec, int32_t pp)
{
    int32_t n_working = 0;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        n_working += plan_layer_works(spec, i);
    }
    const int32_t most = n_working > 0 ? n_working : 1;
    if (pp < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "pipeline-parallel-size is %d" STATUS_FIX "use 1 to %d", pp, most);
    }
    if (pp > most) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "pipeline-parallel-size %d is more than the %d layers of %s that "
                             "compute something: a stage would have none" STATUS_FIX "use 1 to %d",
                             pp, n_working, spec->name, most);
    }
    return status_ok();
}

/* A window bounds what a rank reads of a sequence anyway, and a merge takes its sources as one list. */
static status_t check_token(const struct model_spec *spec, const struct plan_request *request)
{
    if (spec->sliding_window > 0) {
        return status_errorf(
            STATUS_FAILED_PRECONDITION,
            "kv-placement token: %s attends to a window of %d tokens, which is not "
            "split by token" STATUS_FIX "--kv-placement share",
            spec->name, spec->sliding_window);
    }
    if (request->tp > ATTENTION_MAX_SOURCES) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "kv-placement token: %d ranks, at most %d share a head" STATUS_FIX
                             "--kv-placement share, or -tp %d",
                             request->tp, ATTENTION_MAX_SOURCES, ATTENTION_MAX_SOURCES);
    }
    return status_ok();
}

static status_t check_request(const struct model_spec *spec, const struct plan_request *request)
{
    TRY(check_tp(spec, request->tp));
    TRY(check_pp(spec, request->pp));
    if (request->placement < PLAN_AUTO || request->placement > PLAN_TOKEN) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "kv-placement %d is unknown" STATUS_FIX
                             "use auto, share, replicate or token",
                             request->placement);
    }
    return request->placement == PLAN_TOKEN ? check_token(spec, request) : status_ok();
}

// ---- classes ----

plan_interval_t plan_read_heads(const struct plan *plan, int32_t layer, int32_t n_kv_heads,
                                int32_t rank)
{
    const int32_t group = plan->n_heads / n_kv_heads;
    const int32_t *cuts = plan->layers[layer].attention_cuts;
    const plan_interval_t heads = {.begin = cuts[rank] / group,
                                   .end = (cuts[rank + 1] - 1) / group + 1};
    return heads;
}

/* Under replicate the KV heads follow the query heads, whose cuts move from layer to layer. */
static bool same_copies(const struct plan *plan, int32_t n_kv_heads, int32_t a, int32_t b)
{
    for (int32_t r = 0; r < plan->tp; r++) {
        const plan_interval_t x = plan_read_heads(plan, a, n_kv_heads, r);
        const plan_interval_t y = plan_read_heads(plan, b, n_kv_heads, r);
        if (x.begin != y.begin || x.end != y.end) {
            return false;
        }
    }
    return true;
}

/*
 * auto is share where nobody says what else: bytes of KV decide how many sequences fit, and sharing never stores one twice.
 * Its price, an exchange of queries and outputs inside each sharing group, is small beside the weights a step reads unless
 * a batch is tiny, and that depends on rates which a plan alone does not know.
 */
static int choose_placement(const struct plan_request *request, const struct model_spec *spec,
                            int32_t layer)
{
    const plan_placer_t *placer = &request->placer;
    int placement = request->placement;
    if (placement == PLAN_AUTO) {
        placement = placer->place != NULL ? placer->place(placer->user, layer) : PLAN_SHARE;
    }
    const bool splits = spec->layers[layer].n_kv_heads % request->tp != 0 &&
                        spec->sliding_window == 0 && request->tp <= ATTENTION_MAX_SOURCES;
    return placement == PLAN_TOKEN && !splits ? PLAN_SHARE : placement;
}

/* Groups layers with the same KV pattern; classes are numbered in order of first appearance. */
static bool classify(struct plan *plan, const struct model_spec *spec,
                     const struct plan_request *request)
{
    int32_t first[SPEC_MAX_LAYERS]; // the first layer of each class
    int placements[SPEC_MAX_LAYERS] = {0};
    int32_t n_classes = 0;
    assert(plan->n_layers <= SPEC_MAX_LAYERS);
    for (int32_t i = 0; i < plan->n_layers; i++) {
        if (plan->layers[i].attention != SPEC_BLOCK_FULL) {
            continue;
        }
        const int32_t n_kv = spec->layers[i].n_kv_heads;
        int32_t c = 0;
        placements[i] = choose_placement(request, spec, i);
        while (c < n_classes &&
               !(spec->layers[first[c]].n_kv_heads == n_kv &&
                 placements[first[c]] == placements[i] &&
                 (placements[i] != PLAN_REPLICATE || same_copies(plan, n_kv, first[c], i)))) {
            c++;
        }
        if (c == n_classes) {
            first[n_classes++] = i;
        }
        plan->layers[i].class_index = c;
    }

    if (!plan_allocate_classes(plan, n_classes)) {
        return false;
    }
    for (int32_t i = 0; i < plan->n_layers; i++) {
        if (plan->layers[i].class_index < 0) {
            continue;
        }
        struct plan_class *kv_class = &plan->classes[plan->layers[i].class_index];
        kv_class->n_kv_heads = spec->layers[i].n_kv_heads;
        kv_class->placement = placements[i];
        plan->layers[i].layer_in_class = kv_class->n_layers++;
    }
    return true;
}

// ---- owners ----

int32_t plan_places(const struct plan *plan, const struct plan_class *kv_class)
{
    const int32_t columns = kv_class->placement == PLAN_TOKEN ? plan->stripe : plan->n_lanes;
    return (int32_t)((int64_t)kv_class->n_kv_heads * columns / plan->tp);
}

/* Least common multiple of the denominators of r * G / T over the classes of the placement; it divides T. */
static int32_t count_columns(const struct plan *plan, int placement)
{
    int32_t lanes = 1;
    for (int32_t c = 0; c < plan->n_classes; c++) {
        if (plan->classes[c].placement == placement) {
            const int32_t denominator = plan->tp / gcd(plan->tp, plan->classes[c].n_kv_heads);
            lanes = lanes / gcd(lanes, denominator) * denominator;
        }
    }
    return lanes;
}

/*
 * Heads of the class that the rank holds in the lane. Under share and token these are the heads g whose place
 * g * columns + u lies in the rank's interval of places.
 */
static plan_interval_t held_heads(const struct plan *plan, const struct plan_class *kv_class,
                                  int32_t layer, int32_t rank, int32_t lane)
{
    if (kv_class->placement == PLAN_REPLICATE) {
        return plan_read_heads(plan, layer, kv_class->n_kv_heads, rank);
    }
    const int32_t lanes = kv_class->placement == PLAN_TOKEN ? plan->stripe : plan->n_lanes;
    const int32_t n = plan_places(plan, kv_class);
    const int32_t first = max_i32(rank * n - lane, 0);
    const int32_t last = max_i32((rank + 1) * n - lane, 0);
    const plan_interval_t heads = {.begin = (first + lanes - 1) / lanes,
                                   .end = (last + lanes - 1) / lanes};
    return heads;
}

/* `layer` is any layer of the class. */
static bool fill_class(const struct plan *plan, struct plan_class *kv_class, int32_t layer)
{
    const int32_t lanes = kv_class->placement == PLAN_TOKEN ? plan->stripe : plan->n_lanes;
    const int32_t n_pairs = plan->tp * lanes;
    kv_class->owned_at = make_table((size_t)n_pairs + 1);
    if (kv_class->owned_at == NULL) {
        return false;
    }
    int32_t total = 0;
    for (int32_t i = 0; i < n_pairs; i++) {
        const plan_interval_t heads = held_heads(plan, kv_class, layer, i / lanes, i % lanes);
        total += heads.end - heads.begin;
        kv_class->owned_at[i + 1] = total;
    }
    kv_class->owned = make_table((size_t)total);
    if (kv_class->owned == NULL) {
        return false;
    }
    for (int32_t i = 0; i < n_pairs; i++) {
        const plan_interval_t heads = held_heads(plan, kv_class, layer, i / lanes, i % lanes);
        for (int32_t g = heads.begin; g < heads.end; g++) {
            kv_class->owned[kv_class->owned_at[i] + g - heads.begin] = g;
        }
    }
    return true;
}

bool plan_complete(struct plan *plan)
{
    plan->n_lanes = count_columns(plan, PLAN_SHARE);
    plan->stripe = count_columns(plan, PLAN_TOKEN);
    for (int32_t i = 0; i < plan->n_layers; i++) {
        const int32_t c = plan->layers[i].class_index;
        if (c >= 0 && plan->classes[c].owned_at == NULL &&
            !fill_class(plan, &plan->classes[c], i)) {
            return false;
        }
    }
    return true;
}

// ---- all of it ----

/* In this order: KV heads that are copied follow the query heads, and tiles even out what both weigh. */
static bool build(struct plan *plan, const struct model_spec *spec,
                  const struct plan_request *request)
{
    if (!plan_allocate(plan, spec, request->tp, request->pp) || !plan_cut_stages(plan, spec)) {
        return false;
    }
    plan_cut_heads(plan, spec);
    return classify(plan, spec, request) && plan_complete(plan) && plan_cut_tiles(plan, spec);
}

status_t plan_make(const struct model_spec *spec, const struct plan_request *request,
                   struct plan *plan_out)
{
    TRY(check_request(spec, request));
    struct plan plan = {0};
    if (!build(&plan, spec, request)) {
        plan_destroy(&plan);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "plan: no memory for %d layers on %d x %d ranks", spec->n_layers,
                             request->pp, request->tp);
    }
    *plan_out = plan;
    return status_ok();
}

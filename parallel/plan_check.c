#include <stdlib.h>
#include <string.h>

#include "kernels/attention_args.h"
#include "parallel/plan.h"
#include "parallel/plan_parts.h"

// ---- lines ----

/* n whole units of `unit` elements and a shorter last one; a rank may have `off` units more or fewer than an even share. */
struct line {
    const char *what;
    int32_t n, unit, off;
};

static status_t check_cuts(const int32_t *cuts, int32_t tp, const struct line *line)
{
    const char *what = line->what;
    const int32_t n = line->n;
    const int32_t unit = line->unit;
    if (cuts[0] != 0 || cuts[tp] != n) {
        return status_errorf(STATUS_INTERNAL, "%s: cuts run from %d to %d, not from 0 to %d", what,
                             cuts[0], cuts[tp], n);
    }
    const int32_t n_units = n / unit + (n % unit != 0);
    const int32_t least = n_units / tp;
    const int32_t most = least + (n_units % tp != 0);
    for (int32_t r = 0; r < tp; r++) {
        if (cuts[r + 1] < cuts[r] || cuts[r + 1] > n) {
            return status_errorf(STATUS_INTERNAL, "%s: rank %d has [%d, %d)", what, r, cuts[r],
                                 cuts[r + 1]);
        }
        if (cuts[r] % unit != 0 && cuts[r] != n) {
            return status_errorf(STATUS_INTERNAL, "%s: cut %d of rank %d is not a multiple of %d",
                                 what, cuts[r], r, unit);
        }
        const int32_t size = cuts[r + 1] - cuts[r];
        const int32_t units = size / unit + (size % unit != 0);
        if (units < least - line->off || units > most + line->off) {
            return status_errorf(STATUS_INTERNAL,
                                 "%s: rank %d has %d units, an even share is %d to %d", what, r,
                                 units, least, most);
        }
    }
    return status_ok();
}

/* A layer that keeps keys and values is in the class of its KV heads, */
static status_t check_layer_class(const struct plan *plan, const struct model_spec *spec, int32_t i)
{
    const struct plan_layer *layer = &plan->layers[i];
    if (layer->class_index < 0 || layer->class_index >= plan->n_classes) {
        return status_errorf(STATUS_INTERNAL, "layer %d is in class %d of %d", i,
                             layer->class_index, plan->n_classes);
    }
    const struct plan_class *kv_class = &plan->classes[layer->class_index];
    if (kv_class->n_kv_heads != spec->layers[i].n_kv_heads) {
        return status_errorf(STATUS_INTERNAL, "layer %d has %d KV heads, its class %d has %d", i,
                             spec->layers[i].n_kv_heads, layer->class_index, kv_class->n_kv_heads);
    }
    return status_ok();
}

/* and one that does not in none. */
static status_t check_no_class(const struct plan_layer *layer, int32_t i)
{
    if (layer->class_index != -1 || layer->layer_in_class != 0) {
        return status_errorf(STATUS_INTERNAL,
                             "layer %d keeps nothing, and is number %d of class %d", i,
                             layer->layer_in_class, layer->class_index);
    }
    return status_ok();
}

static status_t check_layer(const struct plan *plan, const struct model_spec *spec, int32_t i)
{
    const struct plan_layer *layer = &plan->layers[i];
    if (layer->attention != spec->layers[i].attention || layer->ffn != spec->layers[i].ffn) {
        return status_errorf(STATUS_INTERNAL, "layer %d has attention %s and ffn %s, not %s and %s",
                             i, spec_block_name(layer->attention), spec_block_name(layer->ffn),
                             spec_block_name(spec->layers[i].attention),
                             spec_block_name(spec->layers[i].ffn));
    }
    const bool full = layer->attention == SPEC_BLOCK_FULL;
    const bool columns = layer->ffn == SPEC_BLOCK_FULL;
    char what[64];
    snprintf(what, sizeof what, "layer %d %s", i, full ? "query heads" : "linear attention rows");
    const struct line attention = {what, plan_attention_units(spec, i), full ? 1 : PLAN_TILE, 0};
    TRY(check_cuts(layer->attention_cuts, plan->tp, &attention));
    snprintf(what, sizeof what, "layer %d feed-forward %s", i, columns ? "columns" : "rows");
    const struct line ffn = {what, plan_ffn_units(spec, i), PLAN_TILE,
                             columns ? PLAN_TILES_OFF : 0};
    TRY(check_cuts(layer->ffn_cuts, plan->tp, &ffn));
    return full ? check_layer_class(plan, spec, i) : check_no_class(layer, i);
}

/* Layers are numbered 0, 1, 2, ... within their class. */
static status_t check_numbering(const struct plan *plan)
{
    for (int32_t c = 0; c < plan->n_classes; c++) {
        int32_t next = 0;
        for (int32_t i = 0; i < plan->n_layers; i++) {
            if (plan->layers[i].class_index != c) {
                continue;
            }
            if (plan->layers[i].layer_in_class != next) {
                return status_errorf(STATUS_INTERNAL, "layer %d is number %d of its class, not %d",
                                     i, plan->layers[i].layer_in_class, next);
            }
            next++;
        }
        if (next != plan->classes[c].n_layers || next == 0) {
            return status_errorf(STATUS_INTERNAL, "class %d has %d layers, says %d", c, next,
                                 plan->classes[c].n_layers);
        }
    }
    return status_ok();
}

// ---- owners ----

/* The rank's list for a lane: ascending heads of the class, each counted in copies[head * columns + lane]. */
static status_t count_held(const struct plan *plan, int32_t c, int32_t rank, int32_t lane,
                           int32_t *copies)
{
    const int32_t *held;
    const int32_t n = plan_held(plan, c, rank, lane, &held);
    if (n < 0) {
        return status_errorf(STATUS_INTERNAL, "class %d rank %d lane %d holds %d heads", c, rank,
                             lane, n);
    }
    for (int32_t i = 0; i < n; i++) {
        if (held[i] < 0 || held[i] >= plan->classes[c].n_kv_heads ||
            (i > 0 && held[i] <= held[i - 1])) {
            return status_errorf(STATUS_INTERNAL,
                                 "class %d rank %d lane %d holds head %d out of order", c, rank,
                                 lane, held[i]);
        }
        copies[held[i] * plan_columns(plan, c) + lane]++;
        if (plan->classes[c].placement != PLAN_REPLICATE &&
            plan_attention_rank(plan, c, held[i], lane, rank) != rank) {
            return status_errorf(STATUS_INTERNAL,
                                 "class %d rank %d lane %d holds head %d of rank %d", c, rank, lane,
                                 held[i], plan_attention_rank(plan, c, held[i], lane, rank));
        }
    }
    return status_ok();
}

/* Every (head, lane) is stored once under share and token, at least once under replicate. */
static status_t check_copies(const struct plan *plan, int32_t c, const int32_t *copies)
{
    const struct plan_class *kv_class = &plan->classes[c];
    const bool once = kv_class->placement != PLAN_REPLICATE;
    const int32_t columns = plan_columns(plan, c);
    for (int32_t i = 0; i < kv_class->n_kv_heads * columns; i++) {
        if (copies[i] < 1 || (once && copies[i] > 1)) {
            return status_errorf(STATUS_INTERNAL, "class %d head %d lane %d is stored %d times", c,
                                 i / columns, i % columns, copies[i]);
        }
    }
    return status_ok();
}

static status_t count_class(const struct plan *plan, int32_t c, int32_t *copies)
{
    const int32_t columns = plan_columns(plan, c);
    for (int32_t i = 0; i < plan->tp * columns; i++) {
        TRY(count_held(plan, c, i / columns, i % columns, copies));
    }
    return check_copies(plan, c, copies);
}

static status_t check_class(const struct plan *plan, int32_t c)
{
    const struct plan_class *kv_class = &plan->classes[c];
    if (kv_class->placement != PLAN_SHARE && kv_class->placement != PLAN_REPLICATE &&
        kv_class->placement != PLAN_TOKEN) {
        return status_errorf(STATUS_INTERNAL, "class %d has placement %d", c, kv_class->placement);
    }
    const int32_t columns = plan_columns(plan, c);
    if (kv_class->placement != PLAN_REPLICATE && kv_class->n_kv_heads * columns % plan->tp != 0) {
        return status_errorf(
            STATUS_INTERNAL,
            "class %d: %d heads of %d lanes or blocks do not fall on whole places of %d ranks", c,
            kv_class->n_kv_heads, columns, plan->tp);
    }
    if (kv_class->placement == PLAN_TOKEN &&
        (kv_class->n_kv_heads % plan->tp == 0 || plan->tp > ATTENTION_MAX_SOURCES)) {
        return status_errorf(STATUS_INTERNAL, "class %d: %d heads are split by token on %d ranks",
                             c, kv_class->n_kv_heads, plan->tp);
    }
    int32_t *copies = calloc((size_t)kv_class->n_kv_heads * (size_t)columns, sizeof *copies);
    if (copies == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to check class %d", c);
    }
    const status_t s = count_class(plan, c, copies);
    free(copies);
    return s;
}

/* Under replicate a rank holds what its query heads read, in every layer of the class. */
static status_t check_reads(const struct plan *plan, int32_t layer)
{
    const int32_t c = plan->layers[layer].class_index;
    if (c < 0 || plan->classes[c].placement != PLAN_REPLICATE) {
        return status_ok();
    }
    const struct plan_class *kv_class = &plan->classes[c];
    for (int32_t i = 0; i < plan->tp * plan->n_lanes; i++) {
        const int32_t rank = i / plan->n_lanes;
        const plan_interval_t read = plan_read_heads(plan, layer, kv_class->n_kv_heads, rank);
        const int32_t *held;
        const int32_t n = plan_held(plan, c, rank, i % plan->n_lanes, &held);
        if (n != read.end - read.begin || held[0] != read.begin) {
            return status_errorf(STATUS_INTERNAL,
                                 "layer %d rank %d reads KV heads [%d, %d), holds %d", layer, rank,
                                 read.begin, read.end, n);
        }
    }
    return status_ok();
}

// ---- all of it ----

static status_t check_sizes(const struct plan *plan, const struct model_spec *spec)
{
    if (plan->n_layers != spec->n_layers || plan->n_heads != spec->n_heads ||
        plan->head_dim != spec->head_dim || plan->n_vocab != spec->n_vocab) {
        return status_errorf(
            STATUS_INTERNAL,
            "made for %d layers, %d heads of %d and %d rows; the model has %d, %d of %d "
            "and %d",
            plan->n_layers, plan->n_heads, plan->head_dim, plan->n_vocab, spec->n_layers,
            spec->n_heads, spec->head_dim, spec->n_vocab);
    }
    if (plan->tp < 1 || plan->tp > plan->n_heads || plan->pp < 1 || plan->pp > plan->n_layers ||
        plan->n_lanes < 1 || plan->tp % plan->n_lanes != 0 || plan->stripe < 1 ||
        plan->tp % plan->stripe != 0 || (plan->stripe > 1 && spec->sliding_window > 0)) {
        return status_errorf(STATUS_INTERNAL, "%d ranks, %d stages, %d lanes, stripes of %d blocks",
                             plan->tp, plan->pp, plan->n_lanes, plan->stripe);
    }
    return status_ok();
}

/* Stages follow each other, and each has something to compute. */
static status_t check_stages(const struct plan *plan, const struct model_spec *spec)
{
    const int32_t *cuts = plan->stage_cuts;
    if (cuts[0] != 0 || cuts[plan->pp] != plan->n_layers) {
        return status_errorf(STATUS_INTERNAL, "stages run from layer %d to %d, not from 0 to %d",
                             cuts[0], cuts[plan->pp], plan->n_layers);
    }
    for (int32_t p = 0; p < plan->pp && plan->pp > 1; p++) {
        bool works = false;
        for (int32_t i = cuts[p]; i < cuts[p + 1] && i < plan->n_layers; i++) {
            works = works || plan_layer_works(spec, i);
        }
        if (cuts[p] > cuts[p + 1] || cuts[p] < 0 || !works) {
            return status_errorf(STATUS_INTERNAL,
                                 "stage %d of layers [%d, %d) has nothing to compute", p, cuts[p],
                                 cuts[p + 1]);
        }
    }
    return status_ok();
}

static status_t check_layers(const struct plan *plan, const struct model_spec *spec)
{
    for (int32_t i = 0; i < plan->n_layers; i++) {
        TRY(check_layer(plan, spec, i));
    }
    return check_numbering(plan);
}

static status_t check_owners(const struct plan *plan)
{
    for (int32_t c = 0; c < plan->n_classes; c++) {
        TRY(check_class(plan, c));
    }
    for (int32_t i = 0; i < plan->n_layers; i++) {
        TRY(check_reads(plan, i));
    }
    return status_ok();
}

static status_t check_all(const struct plan *plan, const struct model_spec *spec)
{
    TRY(check_sizes(plan, spec));
    TRY(check_stages(plan, spec));
    const struct line vocabulary = {"vocabulary rows", plan->n_vocab, 1, 0};
    TRY(check_cuts(plan->vocab_cuts, plan->tp, &vocabulary));
    TRY(check_layers(plan, spec));
    return check_owners(plan);
}

status_t plan_check(const struct plan *plan, const struct model_spec *spec)
{
    return status_wrapf(check_all(plan, spec), "plan");
}

/*
 * plan_cuts.c - query heads, vocabulary rows and tiles of matrices, dealt to the ranks of a stage
 *
 * Query heads are dealt like cards: sizes differ by at most one, and the next layer goes on where the last one stopped, so
 * that no rank is more than one head ahead of another over any run of layers.
 *
 * Tiles even out what the ranks weigh, stage by stage. A KV head on several ranks has its k_proj and v_proj on each of them,
 * and those are not the same number everywhere (T = 5, G = 4: 1 2 2 2 1 heads), in every layer of the class alike. So a layer's
 * extra tiles go to the ranks with the fewest weights so far, and where that is not enough (no layer has an extra one, say)
 * single tiles of the FFN move from the heaviest rank to the lightest until ranks differ by less than EVEN_SHARE. A rank is then
 * at most PLAN_TILES_OFF tiles beside an even share: a step waits in every layer for the rank with most to multiply.
 */
#include <stdlib.h>

#include "parallel/plan.h"
#include "parallel/plan_parts.h"

/* Of the mean: ranks of a stage that differ by less are even. */
#define EVEN_SHARE 0.01

/* A rank of the stage that is being cut. */
struct holder {
    int64_t rows; /* of n_hidden elements, so far */
    int32_t turn; /* among those that hold as much, the first to get something */
    int32_t rank;
};

struct dealing {
    struct plan *plan;
    const struct model_spec *spec;
    plan_interval_t layers; /* of the stage */
    struct holder *by_rank; /* [tp] */
    struct holder *by_turn; /* [tp]: sorted */
    int32_t next;           /* the rank behind the last that got an extra unit */
};

int32_t plan_n_tiles(int32_t n)
{
    return n / PLAN_TILE + (n % PLAN_TILE != 0);
}

int32_t plan_attention_units(const struct model_spec *spec, int32_t layer)
{
    const int kind = spec->layers[layer].attention;
    return kind == SPEC_BLOCK_FULL ? spec->n_heads : kind == SPEC_BLOCK_LINEAR ? spec->n_hidden : 0;
}

int32_t plan_ffn_units(const struct model_spec *spec, int32_t layer)
{
    return spec->layers[layer].ffn == SPEC_BLOCK_LINEAR ? spec->n_hidden : spec->layers[layer].n_ff;
}

static int32_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

// ---- heads and rows ----

static void deal_heads(int32_t n, int32_t tp, int32_t *next, int32_t *cuts)
{
    const int32_t base = n / tp;
    const int32_t extra = n % tp;
    cuts[0] = 0;
    for (int32_t r = 0; r < tp; r++) {
        const int32_t turn = (r - *next + tp) % tp;
        cuts[r + 1] = cuts[r] + base + (turn < extra ? 1 : 0);
    }
    *next = (*next + extra) % tp;
}

void plan_cut_heads(struct plan *plan, const struct model_spec *spec)
{
    int32_t next = 0;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        if (plan->layers[i].attention == SPEC_BLOCK_FULL) {
            deal_heads(spec->n_heads, plan->tp, &next, plan->layers[i].attention_cuts);
        }
    }
    for (int32_t r = 0; r <= plan->tp; r++) {
        plan->vocab_cuts[r] = (int32_t)((int64_t)spec->n_vocab * r / plan->tp);
    }
}

// ---- tiles ----

static int by_rows_then_turn(const void *a, const void *b)
{
    const struct holder *x = a;
    const struct holder *y = b;
    return x->rows != y->rows ? (x->rows < y->rows ? -1 : 1) : x->turn - y->turn;
}

/* Counts of tiles become cuts of units; the last tile may be shorter. */
static void add_up(int32_t *cuts, int32_t tp, int32_t n_units)
{
    for (int32_t r = 0; r < tp; r++) {
        const int64_t end = cuts[r] + (int64_t)cuts[r + 1] * PLAN_TILE;
        cuts[r + 1] = end < n_units ? (int32_t)end : n_units;
    }
}

/* Deals n units in whole tiles, each of whose units weighs rows_of_unit. */
static void deal_tiles(struct dealing *d, int32_t n, int32_t rows_of_unit, int32_t *cuts)
{
    const int32_t tp = d->plan->tp;
    const int32_t base = plan_n_tiles(n) / tp;
    const int32_t extra = plan_n_tiles(n) % tp;
    for (int32_t r = 0; r < tp; r++) {
        d->by_turn[r] = d->by_rank[r];
        d->by_turn[r].turn = (r - d->next + tp) % tp;
        cuts[r + 1] = base;
    }
    if (extra > 0) {
        qsort(d->by_turn, (size_t)tp, sizeof *d->by_turn, by_rows_then_turn);
        d->next = (d->by_turn[extra - 1].rank + 1) % tp;
    }
    for (int32_t i = 0; i < extra; i++) {
        cuts[d->by_turn[i].rank + 1]++;
    }
    cuts[0] = 0;
    add_up(cuts, tp, n);
    for (int32_t r = 0; r < tp; r++) {
        d->by_rank[r].rows += (int64_t)(cuts[r + 1] - cuts[r]) * rows_of_unit;
    }
}

// ---- moving single tiles ----

#define FFN_MATRICES 3 /* gate, up, down */
#define TILE_ROWS    ((int64_t)FFN_MATRICES * PLAN_TILE)

/* A layer's tiles on two ranks, beside an even share. */
static int32_t tiles_of(const struct dealing *d, int32_t layer, int32_t rank)
{
    return plan_n_tiles(length(plan_ffn_columns(d->plan, layer, rank)));
}

/* Whether `from` has a tile to give in the layer, and 1 or 2 for how good a choice that is: 2 leaves both at an even share. */
static int32_t rate_move(const struct dealing *d, int32_t layer, int32_t from, int32_t to)
{
    if (d->plan->layers[layer].ffn != SPEC_BLOCK_FULL) {
        return 0;
    }
    const int32_t n = plan_n_tiles(d->spec->layers[layer].n_ff);
    const int32_t least = n / d->plan->tp;
    const int32_t most = least + (n % d->plan->tp != 0);
    const int32_t given = tiles_of(d, layer, from) - 1;
    const int32_t taken = tiles_of(d, layer, to) + 1;
    if (given < 0 || given < least - PLAN_TILES_OFF || taken > most + PLAN_TILES_OFF) {
        return 0;
    }
    return given >= least && taken <= most ? 2 : 1;
}

/* The ranks between the two keep their number of tiles; what they hold moves along by one tile. */
static void move_in_layer(struct dealing *d, int32_t layer, int32_t from, int32_t to)
{
    int32_t *cuts = d->plan->layers[layer].ffn_cuts;
    const int32_t tp = d->plan->tp;
    for (int32_t r = 0; r < tp; r++) {
        d->by_rank[r].rows -= (int64_t)FFN_MATRICES * (cuts[r + 1] - cuts[r]);
    }
    for (int32_t r = tp; r > 0; r--) {
        cuts[r] = plan_n_tiles(cuts[r] - cuts[r - 1]);
    }
    cuts[from + 1]--;
    cuts[to + 1]++;
    add_up(cuts, tp, d->spec->layers[layer].n_ff);
    for (int32_t r = 0; r < tp; r++) {
        d->by_rank[r].rows += (int64_t)FFN_MATRICES * (cuts[r + 1] - cuts[r]);
    }
}

static bool move_tile(struct dealing *d, int32_t from, int32_t to)
{
    int32_t best = 0;
    int32_t best_layer = 0;
    if (d->by_rank[from].rows - d->by_rank[to].rows <= TILE_ROWS) {
        return false; // they would only change places
    }
    for (int32_t i = d->layers.begin; i < d->layers.end && best < 2; i++) {
        const int32_t rate = rate_move(d, i, from, to);
        if (rate > best) {
            best = rate;
            best_layer = i;
        }
    }
    if (best > 0) {
        move_in_layer(d, best_layer, from, to);
    }
    return best > 0;
}

/* One tile from the heaviest rank to the lightest, or else from or to some other; false when they are even or nothing can move.
 * Every move makes the sum of squares smaller, so that it ends. */
static bool move_one(struct dealing *d)
{
    const int32_t tp = d->plan->tp;
    int64_t sum = 0;
    int32_t heaviest = 0;
    int32_t lightest = 0;
    for (int32_t r = 0; r < tp; r++) {
        sum += d->by_rank[r].rows;
        heaviest = d->by_rank[r].rows > d->by_rank[heaviest].rows ? r : heaviest;
        lightest = d->by_rank[r].rows < d->by_rank[lightest].rows ? r : lightest;
    }
    const int64_t spread = d->by_rank[heaviest].rows - d->by_rank[lightest].rows;
    if ((double)spread <= EVEN_SHARE * (double)sum / tp) {
        return false;
    }
    bool moved = move_tile(d, heaviest, lightest);
    for (int32_t r = 0; r < tp && !moved; r++) {
        moved = move_tile(d, heaviest, r) || move_tile(d, r, lightest);
    }
    return moved;
}

// ---- a stage ----

/* What the ranks hold beside tiles: heads, and vocabulary rows where the stage has any. */
static void weigh_rest(struct dealing *d, int32_t stage)
{
    const struct plan *plan = d->plan;
    const bool tied = d->spec->tied_head && plan->pp == 1; // one of two, as in plan_weight_bytes
    for (int32_t r = 0; r < plan->tp; r++) {
        const int32_t rank = stage * plan->tp + r;
        int64_t heads = 0;
        for (int32_t i = d->layers.begin; i < d->layers.end; i++) {
            if (plan->layers[i].class_index >= 0) {
                heads += length(plan_q_heads(plan, i, r)) +
                         length(plan_kv_weight_heads(plan, plan->layers[i].class_index, r));
            }
        }
        d->by_rank[r] = (struct holder){
            .rows = 2 * heads * plan->head_dim + length(plan_embedding_rows(plan, rank)) +
                    (tied ? 0 : length(plan_head_rows(plan, rank))),
            .rank = r,
        };
    }
}

/* The larger tiles first, those of linear blocks even out the rest. */
static void cut_stage(struct dealing *d, int32_t stage)
{
    struct plan *plan = d->plan;
    d->layers = plan_stage_layers(plan, stage);
    weigh_rest(d, stage);
    for (int32_t i = d->layers.begin; i < d->layers.end; i++) {
        if (plan->layers[i].ffn == SPEC_BLOCK_FULL) {
            deal_tiles(d, d->spec->layers[i].n_ff, FFN_MATRICES, plan->layers[i].ffn_cuts);
        }
    }
    for (int32_t i = d->layers.begin; i < d->layers.end; i++) {
        if (plan->layers[i].attention == SPEC_BLOCK_LINEAR) {
            deal_tiles(d, d->spec->n_hidden, 1, plan->layers[i].attention_cuts);
        }
        if (plan->layers[i].ffn == SPEC_BLOCK_LINEAR) {
            deal_tiles(d, d->spec->n_hidden, 1, plan->layers[i].ffn_cuts);
        }
    }
    while (move_one(d)) {
    }
}

bool plan_cut_tiles(struct plan *plan, const struct model_spec *spec)
{
    struct dealing d = {.plan = plan, .spec = spec};
    d.by_rank = calloc((size_t)plan->tp, sizeof *d.by_rank);
    d.by_turn = calloc((size_t)plan->tp, sizeof *d.by_turn);
    const bool made = d.by_rank != NULL && d.by_turn != NULL;
    for (int32_t stage = 0; made && stage < plan->pp; stage++) {
        cut_stage(&d, stage);
    }
    free(d.by_rank);
    free(d.by_turn);
    return made;
}

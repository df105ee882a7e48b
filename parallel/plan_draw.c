#include "parallel/plan_draw.h"

#include <string.h>

enum { COLUMNS = 80, LEFT_COLUMNS = 22, CELL_BYTES = 96, LEVELS = 8 };

/* How much of the lanes: nothing, one to eight eighths; the matrix of a linear block; no block. */
struct glyphs {
    const char *parts[LEVELS + 1];
    const char *linear, *none, *edge;
};

static const struct glyphs glyph_sets[] = {
    [PLAN_DRAW_ASCII] = {.parts = {" ", "-", "-", "-", "+", "+", "+", "+", "#"},
                         .linear = "~",
                         .none = ".",
                         .edge = "|"},
    [PLAN_DRAW_UTF8] = {.parts = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"},
                        .linear = "≈",
                        .none = "·",
                        .edge = "│"},
};

// ---- runs ----

static bool holds_the_same(const struct plan *plan, int32_t a, int32_t b)
{
    if (a == b || a < 0 || b < 0) {
        return a == b;
    }
    for (int32_t rank = 0; rank < plan->tp; rank++) {
        plan_run_t x[PLAN_MAX_RUNS], y[PLAN_MAX_RUNS];
        const int32_t n = plan_kv_runs(plan, a, rank, x);
        if (n != plan_kv_runs(plan, b, rank, y) || memcmp(x, y, (size_t)n * sizeof *x) != 0) {
            return false;
        }
    }
    return plan->classes[a].placement == plan->classes[b].placement;
}

static bool look_alike(const struct plan_draw_args *args, int32_t a, int32_t b)
{
    const struct spec_layer *x = &args->spec->layers[a];
    const struct spec_layer *y = &args->spec->layers[b];
    return x->attention == y->attention && x->ffn == y->ffn && x->n_kv_heads == y->n_kv_heads &&
           x->n_ff == y->n_ff &&
           holds_the_same(args->plan, args->plan->layers[a].class_index,
                          args->plan->layers[b].class_index);
}

int32_t plan_draw_run_end(const struct plan_draw_args *args, int32_t layer)
{
    const int32_t stage = plan_stage_of_layer(args->plan, layer);
    const int32_t last = plan_stage_layers(args->plan, stage).end;
    int32_t end = layer + 1;
    while (end < last && look_alike(args, layer, end)) {
        end++;
    }
    return end;
}

// ---- cells ----

static void range_text(int32_t begin, int32_t end, char buf[24])
{
    if (end == begin + 1) {
        snprintf(buf, 24, "%d", begin);
    } else {
        snprintf(buf, 24, "%d-%d", begin, end - 1);
    }
}

/* Rounded up: what is held, however little, is seen. */
static int level_of(const struct plan *plan, int32_t class_index, const plan_run_t *run)
{
    const int32_t lanes = run->lane_end - run->lane_begin;
    const int32_t all = plan_columns(plan, class_index);
    return (int)(((int64_t)lanes * LEVELS + all - 1) / all);
}

/* "█0-1▃2", and how many columns that is. */
static int cell_text(const struct plan_draw_args *args, int32_t layer, int32_t rank,
                     char buf[CELL_BYTES])
{
    const struct glyphs *glyphs = &glyph_sets[args->charset];
    const struct plan_layer *at = &args->plan->layers[layer];
    if (at->class_index < 0) {
        snprintf(buf, CELL_BYTES, "%s",
                 at->attention == SPEC_BLOCK_LINEAR ? glyphs->linear : glyphs->none);
        return 1;
    }
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n = plan_kv_runs(args->plan, at->class_index, rank, runs);
    size_t used = 0;
    int columns = 0;
    for (int32_t i = 0; i < n; i++) {
        char heads[24];
        range_text(runs[i].head_begin, runs[i].head_end, heads);
        const int written =
            snprintf(buf + used, CELL_BYTES - used, "%s%s",
                     glyphs->parts[level_of(args->plan, at->class_index, &runs[i])], heads);
        used += written > 0 ? (size_t)written : 0;
        columns += 1 + (int)strlen(heads);
    }
    return columns;
}

/* Columns of the widest cell. */
static int cell_columns(const struct plan_draw_args *args)
{
    const struct plan *plan = args->plan;
    int most = 2; // a rank's number above it
    for (int32_t layer = 0; layer < plan->n_layers; layer = plan_draw_run_end(args, layer)) {
        for (int32_t rank = 0; rank < plan->tp; rank++) {
            char cell[CELL_BYTES];
            const int columns = cell_text(args, layer, rank, cell);
            most = columns > most ? columns : most;
        }
    }
    return most;
}

// ---- lines ----

void plan_draw_block_text(int block, int32_t n, char buf[12])
{
    if (block == SPEC_BLOCK_FULL) {
        snprintf(buf, 12, "%d", n);
    } else {
        snprintf(buf, 12, "%s", spec_block_name(block));
    }
}

static status_t pad(struct bytes *out, int columns)
{
    return columns > 0 ? bytes_printf(out, "%*s", columns, "") : status_ok();
}

static bool by_token(const struct plan *plan, int32_t layer)
{
    const int32_t c = plan->layers[layer].class_index;
    return c >= 0 && plan->classes[c].placement == PLAN_TOKEN;
}

static status_t draw_line(const struct plan_draw_args *args, int32_t layer, plan_interval_t ranks,
                          int width, struct bytes *out)
{
    const struct spec_layer *of = &args->spec->layers[layer];
    char layers[24], kv[12], ffn[12];
    range_text(layer, plan_draw_run_end(args, layer), layers);
    plan_draw_block_text(of->attention, of->n_kv_heads, kv);
    if (by_token(args->plan, layer)) {
        snprintf(kv, sizeof kv, "%dt", of->n_kv_heads);
    }
    plan_draw_block_text(of->ffn, of->n_ff, ffn);
    TRY(bytes_printf(out, "%7s %6s %6s ", layers, kv, ffn));
    for (int32_t rank = ranks.begin; rank < ranks.end; rank++) {
        char cell[CELL_BYTES];
        const int columns = cell_text(args, layer, rank, cell);
        TRY(bytes_printf(out, "%s%s", glyph_sets[args->charset].edge, cell));
        TRY(pad(out, rank + 1 < ranks.end ? width - columns : 0));
    }
    return bytes_append_str(out, "\n");
}

static status_t draw_stage(const struct plan_draw_args *args, int32_t stage, plan_interval_t ranks,
                           int width, struct bytes *out)
{
    const plan_interval_t layers = plan_stage_layers(args->plan, stage);
    TRY(bytes_append_str(out, " layers     kv    ffn "));
    for (int32_t rank = ranks.begin; rank < ranks.end; rank++) {
        TRY(bytes_printf(out, " %-*d", rank + 1 < ranks.end ? width : 0,
                         stage * args->plan->tp + rank));
    }
    TRY(bytes_append_str(out, "\n"));
    for (int32_t layer = layers.begin; layer < layers.end; layer = plan_draw_run_end(args, layer)) {
        TRY(draw_line(args, layer, ranks, width, out));
    }
    return status_ok();
}

/* As many ranks side by side as there is room for, the others below. */
status_t plan_draw_text(const struct plan_draw_args *args, struct bytes *out)
{
    const struct plan *plan = args->plan;
    const int width = cell_columns(args);
    const int32_t fit = (COLUMNS - LEFT_COLUMNS) / (width + 1);
    const int32_t n_across = fit > 1 ? fit : 1;
    for (int32_t stage = 0; stage < plan->pp; stage++) {
        for (int32_t rank = 0; rank < plan->tp; rank += n_across) {
            const int32_t end = rank + n_across < plan->tp ? rank + n_across : plan->tp;
            TRY(bytes_printf(out, "\nKV heads by rank, stage %d of %d\n", stage + 1, plan->pp));
            TRY(draw_stage(args, stage, (plan_interval_t){rank, end}, width, out));
        }
    }
    const struct glyphs *glyphs = &glyph_sets[args->charset];
    if (plan->stripe > 1) {
        TRY(bytes_append_str(out,
                             "\nt  split by token: parts of a head are blocks of every sequence"));
    }
    return bytes_printf(
        out, "\n%s whole head  %s half of the sequences%s  %s a matrix  %s nothing\n",
        glyphs->parts[LEVELS], glyphs->parts[LEVELS / 2],
        args->charset == PLAN_DRAW_ASCII ? " or more  - less" : "", glyphs->linear, glyphs->none);
}

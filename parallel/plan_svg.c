/*
 * plan_svg.c - the picture of plan_draw.h as SVG: 960 units wide, at most about as high as a page is
 */
#include <string.h>

#include "parallel/plan_draw.h"

enum {
    WIDTH = 960,
    MARGIN = 20,
    LABELS = 150,
    HEADER = 74,
    LEGEND = 46,
    PAGE = 1250,
    MAX_ACROSS = 16
};

struct picture {
    const struct plan_draw_args *args;
    struct bytes *out;
    int32_t n_across;    /* ranks side by side; further ones go below, as further stages do */
    double cell, row;    /* sizes of a cell */
    int32_t max_columns; /* of the feed-forward on a rank */
    double y;
};

/* Neighbours differ in hue and in lightness, for eyes and printers that see no hue. */
static const char *const palette[] = {"#1f5fa8", "#f0a132", "#2e8b57", "#d9574a",
                                      "#7756b0", "#4fb6c4", "#8a6d3b", "#e58fb8"};

enum { N_COLOURS = sizeof palette / sizeof palette[0] };

// ---- text ----

static status_t append_escaped(struct bytes *out, const char *text)
{
    for (; *text != '\0'; text++) {
        const char one[2] = {*text, '\0'};
        const char *const safe = *text == '<'                  ? "&lt;"
                                 : *text == '>'                ? "&gt;"
                                 : *text == '&'                ? "&amp;"
                                 : *text == '"'                ? "&quot;"
                                 : (unsigned char)*text < 0x20 ? " "
                                                               : one;
        TRY(bytes_append_str(out, safe));
    }
    return status_ok();
}

static status_t label(struct picture *p, double x, double y, double size, const char *anchor,
                      const char *text)
{
    TRY(bytes_printf(p->out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%.1f\" text-anchor=\"%s\">",
                     x, y, size, anchor));
    TRY(append_escaped(p->out, text));
    return bytes_append_str(p->out, "</text>\n");
}

/* Readable on any colour. */
static status_t head_label(struct picture *p, double x, double y, double size, int32_t head)
{
    return bytes_printf(p->out,
                        "<text class=\"head\" x=\"%.1f\" y=\"%.1f\" font-size=\"%.1f\" "
                        "text-anchor=\"middle\">%d</text>\n",
                        x, y, size, head);
}

static status_t box(struct picture *p, double x, double y, double width, double height,
                    const char *fill)
{
    return bytes_printf(
        p->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y,
        width, height, fill);
}

// ---- cells ----

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

/* Heads held whole or in part side by side, each as high as its part of the lanes. */
static status_t draw_heads(struct picture *p, double x, double height, int32_t layer, int32_t rank)
{
    const struct plan *plan = p->args->plan;
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n = plan_kv_runs(plan, plan->layers[layer].class_index, rank, runs);
    int32_t n_heads = 0;
    for (int32_t i = 0; i < n; i++) {
        n_heads += runs[i].head_end - runs[i].head_begin;
    }
    const double width = n_heads > 0 ? (p->cell - 4) / n_heads : 0;
    const double size = smaller(smaller(height - 1, 11), width * .8);
    double at = x + 2;
    for (int32_t i = 0; i < n; i++) {
        const double part = (double)(runs[i].lane_end - runs[i].lane_begin) /
                            plan_columns(plan, plan->layers[layer].class_index);
        for (int32_t head = runs[i].head_begin; head < runs[i].head_end; head++) {
            TRY(box(p, at, p->y + height * (1 - part), width > 2 ? width - .6 : width,
                    height * part, palette[head % N_COLOURS]));
            if (size >= 5) {
                TRY(head_label(p, at + width / 2, p->y + height - 3, size, head));
            }
            at += width;
        }
    }
    return status_ok();
}

static status_t draw_cell(struct picture *p, double x, int32_t layer, int32_t rank)
{
    const struct plan *plan = p->args->plan;
    const double bar = p->row > 14 ? 3 : 2;
    const double height = p->row - bar - 3;
    const plan_interval_t columns = plan_ffn_columns(plan, layer, rank);
    const plan_interval_t rows = plan_ffn_rows(plan, layer, rank);
    TRY(box(p, x + 1, p->y, p->cell - 2, height, "#eef1f4"));
    if (plan->layers[layer].class_index >= 0) {
        TRY(draw_heads(p, x, height, layer, rank));
    } else if (plan->layers[layer].attention == SPEC_BLOCK_LINEAR) {
        TRY(box(p, x + 2, p->y + height * .3, p->cell - 4, height * .4, "#9aa5b1"));
    }
    const double part =
        p->max_columns > 0 ? (double)(columns.end - columns.begin) / p->max_columns : 0;
    if (part > 0) {
        TRY(box(p, x + 2, p->y + height + 1, (p->cell - 4) * part, bar, "#55606b"));
    }
    return rows.end > rows.begin
               ? box(p, x + 2, p->y + height + 1, (p->cell - 4) * .15, bar, "#9aa5b1")
               : status_ok();
}

// ---- rows ----

static status_t draw_row(struct picture *p, int32_t layer, plan_interval_t ranks)
{
    const struct spec_layer *of = &p->args->spec->layers[layer];
    const int32_t end = plan_draw_run_end(p->args, layer);
    const double size = smaller(p->row * .72, 11);
    const double base = p->y + p->row * .68;
    char layers[24], kv[12], ffn[12];
    snprintf(layers, sizeof layers, end == layer + 1 ? "%d" : "%d-%d", layer, end - 1);
    plan_draw_block_text(of->attention, of->n_kv_heads, kv);
    plan_draw_block_text(of->ffn, of->n_ff, ffn);
    TRY(label(p, MARGIN + 44, base, size, "end", layers));
    TRY(label(p, MARGIN + 86, base, size, "end", kv));
    TRY(label(p, MARGIN + LABELS - 12, base, size, "end", ffn));
    for (int32_t rank = ranks.begin; rank < ranks.end; rank++) {
        TRY(draw_cell(p, MARGIN + LABELS + (rank - ranks.begin) * p->cell, layer, rank));
    }
    p->y += p->row;
    return status_ok();
}

static status_t draw_panel(struct picture *p, int32_t stage, plan_interval_t ranks)
{
    const struct plan *plan = p->args->plan;
    const plan_interval_t layers = plan_stage_layers(plan, stage);
    TRY(label(p, MARGIN + 44, p->y + 11, 10, "end", "layers"));
    TRY(label(p, MARGIN + 86, p->y + 11, 10, "end", "kv"));
    TRY(label(p, MARGIN + LABELS - 12, p->y + 11, 10, "end", "ffn"));
    for (int32_t rank = ranks.begin; rank < ranks.end; rank++) {
        char text[24];
        snprintf(text, sizeof text, p->cell > 60 ? "rank %d" : "%d", stage * plan->tp + rank);
        TRY(label(p, MARGIN + LABELS + (rank - ranks.begin + .5) * p->cell, p->y + 11, 10, "middle",
                  text));
    }
    p->y += 18;
    for (int32_t layer = layers.begin; layer < layers.end;
         layer = plan_draw_run_end(p->args, layer)) {
        TRY(draw_row(p, layer, ranks));
    }
    p->y += 12;
    return status_ok();
}

static status_t draw_legend(struct picture *p)
{
    const double height = 12;
    double x = MARGIN;
    const double y = p->y + 4;

    static const struct {
        const char *text;
        double part, width;
        const char *fill;
    } items[] = {
        {"KV head of all sequences", 1, 14, "#1f5fa8"},
        {"of a part of the sequences, or of their blocks", .5, 14, "#1f5fa8"},
        {"no keys and values", 0, 14, "#1f5fa8"},
        {"a matrix in the place of attention", .4, 14, "#9aa5b1"},
        {"feed-forward columns", .25, 30, "#55606b"},
    };

    for (size_t i = 0; i < sizeof items / sizeof items[0]; i++) {
        TRY(box(p, x, y, items[i].width, height, "#eef1f4"));
        TRY(box(p, x, y + height * (1 - items[i].part), items[i].width, height * items[i].part,
                items[i].fill));
        TRY(label(p, x + items[i].width + 5, y + 10, 10, "start", items[i].text));
        x += items[i].width + 22 + 5.1 * (double)strlen(items[i].text);
    }
    return status_ok();
}

// ---- all ----

/* Lines and panels of the whole picture. */
static void measure(struct picture *p, int32_t *rows_out, int32_t *panels_out)
{
    const struct plan *plan = p->args->plan;
    const int32_t panels = (plan->tp + p->n_across - 1) / p->n_across;
    int32_t rows = 0;
    for (int32_t layer = 0; layer < plan->n_layers; layer = plan_draw_run_end(p->args, layer)) {
        rows += panels;
        for (int32_t rank = 0; rank < plan->tp; rank++) {
            const plan_interval_t columns = plan_ffn_columns(plan, layer, rank);
            const int32_t n = columns.end - columns.begin;
            p->max_columns = n > p->max_columns ? n : p->max_columns;
        }
    }
    *rows_out = rows;
    *panels_out = panels * plan->pp;
}

static status_t draw_head(struct picture *p, double height)
{
    const struct plan *plan = p->args->plan;
    char text[160];
    TRY(bytes_printf(p->out,
                     "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" "
                     "viewBox=\"0 0 %d %.0f\" font-family=\"Helvetica, Arial, sans-serif\" "
                     "fill=\"#1c232b\">\n"
                     "<style>.head { stroke: #ffffff; stroke-width: 2.5px; paint-order: stroke; "
                     "font-weight: bold }</style>\n"
                     "<rect width=\"%d\" height=\"%.0f\" fill=\"#ffffff\"/>\n",
                     WIDTH, height, WIDTH, height, WIDTH, height));
    TRY(label(p, MARGIN, 28, 17, "start", p->args->title));
    snprintf(text, sizeof text,
             "%d tensor-parallel ranks, %d pipeline %s, %d %s, stripes of %d %s; keys and values "
             "stored %.3f times",
             plan->tp, plan->pp, plan->pp == 1 ? "stage" : "stages", plan->n_lanes,
             plan->n_lanes == 1 ? "lane" : "lanes", plan->stripe,
             plan->stripe == 1 ? "block" : "blocks", plan_kv_replication(plan, p->args->spec));
    return label(p, MARGIN, 48, 12, "start", text);
}

status_t plan_draw_svg(const struct plan_draw_args *args, struct bytes *out)
{
    const struct plan *plan = args->plan;
    struct picture p = {.args = args,
                        .out = out,
                        .n_across = plan->tp < MAX_ACROSS ? plan->tp : MAX_ACROSS,
                        .y = HEADER};
    int32_t n_rows, n_panels;
    measure(&p, &n_rows, &n_panels);
    const double room = (PAGE - HEADER - LEGEND - 30.0 * n_panels) / n_rows;
    p.row = room > 24 ? 24 : room < 9 ? 9 : room;
    p.cell = smaller((WIDTH - 2.0 * MARGIN - LABELS) / p.n_across, 200);
    TRY(draw_head(&p, HEADER + n_rows * p.row + 30.0 * n_panels + LEGEND));
    for (int32_t stage = 0; stage < plan->pp; stage++) {
        for (int32_t rank = 0; rank < plan->tp; rank += p.n_across) {
            const int32_t end = rank + p.n_across < plan->tp ? rank + p.n_across : plan->tp;
            TRY(draw_panel(&p, stage, (plan_interval_t){rank, end}));
        }
    }
    TRY(draw_legend(&p));
    return bytes_append_str(out, "</svg>\n");
}

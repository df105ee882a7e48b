#include "parallel/plan_print.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan_draw.h"

#define COLUMNS      80
#define LEFT_COLUMNS 21 /* layers, their KV heads and FFN columns */
#define CELL_BYTES   64

/* How many ranks stand side by side in one table, and the columns of each. */
struct grid {
    int32_t n_across, width;
};

static status_t summary(const struct plan_print_args *a, struct bytes *out)
{
    const struct model_spec *spec = a->spec;
    const struct plan *plan = a->plan;
    const double once = (double)spec_kv_bytes_per_token(spec, a->kv_dtype);
    const double replication = plan_kv_replication(plan, spec);
    TRY(bytes_printf(out, "model      %s (%s)\n", spec->name, spec->architecture));
    TRY(bytes_printf(out, "           %.1f M parameters, %d layers, %d query heads\n",
                     (double)spec_parameters(spec) / 1e6, spec->n_layers, spec->n_heads));
    TRY(bytes_printf(out, "layout     tensor parallel %d, pipeline parallel %d, %d %s", plan->tp,
                     plan->pp, plan->n_lanes, plan->n_lanes == 1 ? "lane" : "lanes"));
    if (plan->stripe > 1) {
        TRY(bytes_printf(out, ", stripes of %d blocks", plan->stripe));
    }
    TRY(bytes_append_str(out, "\n"));
    if (a->quantization != QUANTIZATION_NONE) {
        TRY(bytes_printf(out, "weights    %s in the layers, %s elsewhere\n",
                         dtype_quantization_name(a->quantization), dtype_name(a->dtype)));
    }
    return bytes_printf(out,
                        "KV cache   %.0f bytes a token, stored %.3f times = %.0f over all ranks\n",
                        once, replication, once * replication);
}

/* "0-3" or "2" or "-" for an empty interval. */
static void interval_text(plan_interval_t interval, char *buf, size_t size)
{
    if (interval.begin == interval.end) {
        snprintf(buf, size, "-");
    } else if (interval.end == interval.begin + 1) {
        snprintf(buf, size, "%d", interval.begin);
    } else {
        snprintf(buf, size, "%d-%d", interval.begin, interval.end - 1);
    }
}

static status_t rank_table(const struct plan_print_args *a, struct bytes *out)
{
    const struct weight_formats formats = {a->dtype, a->quantization};
    TRY(bytes_append_str(out, "\n rank  stage    layers    weights MB   KV bytes/token\n"));
    for (int32_t rank = 0; rank < plan_n_ranks(a->plan); rank++) {
        const int32_t stage = plan_stage(a->plan, rank);
        char layers[24];
        interval_text(plan_stage_layers(a->plan, stage), layers, sizeof layers);
        TRY(bytes_printf(out, "%5d  %5d  %8s  %12.2f  %15.1f\n", rank, stage, layers,
                         (double)plan_weight_bytes(a->plan, a->spec, rank, &formats) / 1e6,
                         plan_kv_bytes_per_token(a->plan, rank, a->kv_dtype)));
    }
    return status_ok();
}

/* "0 1/0-1": head 0 for every lane, head 1 for lanes 0 and 1; "1%0-1": blocks 0 and 1 of each stripe. */
static void kv_text(const struct plan *plan, int32_t class_index, int32_t rank, char *buf,
                    size_t size)
{
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n = plan_kv_runs(plan, class_index, rank, runs);
    size_t at = 0;
    buf[0] = '\0';
    for (int32_t i = 0; i < n && at < size; i++) {
        char heads[32], lanes[40] = "";
        interval_text((plan_interval_t){runs[i].head_begin, runs[i].head_end}, heads, sizeof heads);
        if (runs[i].lane_begin != 0 || runs[i].lane_end != plan_columns(plan, class_index)) {
            lanes[0] = plan->classes[class_index].placement == PLAN_TOKEN ? '%' : '/';
            interval_text((plan_interval_t){runs[i].lane_begin, runs[i].lane_end}, lanes + 1,
                          sizeof lanes - 1);
        }
        const int written =
            snprintf(buf + at, size - at, "%s%s%s", at > 0 ? " " : "", heads, lanes);
        at += written > 0 ? (size_t)written : 0;
    }
    if (n == 0) {
        snprintf(buf, size, "-");
    }
}

static void cell_text(const struct plan *plan, int32_t layer, int32_t rank, char buf[CELL_BYTES])
{
    char q[24], kv[40] = "";
    if (plan->layers[layer].attention != SPEC_BLOCK_FULL) {
        interval_text(plan_attention_rows(plan, layer, rank), buf, CELL_BYTES);
        return;
    }
    interval_text(plan_q_heads(plan, layer, rank), q, sizeof q);
    kv_text(plan, plan->layers[layer].class_index, rank, kv, sizeof kv);
    snprintf(buf, CELL_BYTES, "%s|%s", q, kv);
}

static bool layers_look_alike(const struct plan_print_args *args, int32_t a, int32_t b)
{
    const struct plan_layer *x = &args->plan->layers[a];
    const struct plan_layer *y = &args->plan->layers[b];
    const size_t cuts = (size_t)(args->plan->tp + 1) * sizeof(int32_t);
    return x->class_index == y->class_index && x->attention == y->attention && x->ffn == y->ffn &&
           args->spec->layers[a].n_ff == args->spec->layers[b].n_ff &&
           memcmp(x->attention_cuts, y->attention_cuts, cuts) == 0;
}

static int32_t end_rank_of(const struct plan *plan, int32_t first_rank, const struct grid *grid)
{
    const int32_t end = first_rank + grid->n_across;
    return end < plan->tp ? end : plan->tp;
}

static status_t layer_line(const struct plan_print_args *args, plan_interval_t layers,
                           int32_t first_rank, const struct grid *grid, struct bytes *out)
{
    const struct plan *plan = args->plan;
    const struct spec_layer *layer = &args->spec->layers[layers.begin];
    char range[24], kv[12], ffn[12];
    interval_text(layers, range, sizeof range);
    plan_draw_block_text(layer->attention, layer->n_kv_heads, kv);
    plan_draw_block_text(layer->ffn, layer->n_ff, ffn);
    TRY(bytes_printf(out, "%7s %6s %6s", range, kv, ffn));
    const int32_t end_rank = end_rank_of(plan, first_rank, grid);
    for (int32_t rank = first_rank; rank < end_rank; rank++) {
        char cell[CELL_BYTES];
        cell_text(plan, layers.begin, rank, cell);
        TRY(bytes_printf(out, " %-*s", rank + 1 < end_rank ? grid->width - 1 : 0, cell));
    }
    return bytes_append_str(out, "\n");
}

/* Ranks from the first_rank-th of the stage on. */
static status_t layer_table(const struct plan_print_args *args, int32_t stage, int32_t first_rank,
                            const struct grid *grid, struct bytes *out)
{
    const struct plan *plan = args->plan;
    const plan_interval_t layers = plan_stage_layers(plan, stage);
    const int32_t end_rank = end_rank_of(plan, first_rank, grid);
    TRY(bytes_append_str(out, "\n layers     kv    ffn"));
    for (int32_t rank = first_rank; rank < end_rank; rank++) {
        char title[24];
        snprintf(title, sizeof title, "rank %d", stage * plan->tp + rank);
        TRY(bytes_printf(out, " %-*s", rank + 1 < end_rank ? grid->width - 1 : 0, title));
    }
    TRY(bytes_append_str(out, "\n"));
    for (int32_t layer = layers.begin; layer < layers.end;) {
        int32_t end = layer + 1;
        while (end < layers.end && layers_look_alike(args, layer, end)) {
            end++;
        }
        TRY(layer_line(args, (plan_interval_t){layer, end}, first_rank, grid, out));
        layer = end;
    }
    return status_ok();
}

static status_t layer_tables(const struct plan_print_args *args, const struct grid *grid,
                             struct bytes *out)
{
    for (int32_t stage = 0; stage < args->plan->pp; stage++) {
        for (int32_t rank = 0; rank < args->plan->tp; rank += grid->n_across) {
            TRY(layer_table(args, stage, rank, grid, out));
        }
    }
    return status_ok();
}

/* As many ranks across as the longest cell lets fit. */
static struct grid make_grid(const struct plan *plan)
{
    int32_t longest = (int32_t)strlen("rank 0000");
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        for (int32_t rank = 0; rank < plan->tp; rank++) {
            char cell[CELL_BYTES];
            cell_text(plan, layer, rank, cell);
            const int32_t length = (int32_t)strlen(cell);
            longest = length > longest ? length : longest;
        }
    }
    const int32_t n_across = (COLUMNS - LEFT_COLUMNS) / (longest + 1);
    return (struct grid){.n_across = n_across > 1 ? n_across : 1, .width = longest + 1};
}

static bool has_linear_attention(const struct plan *plan)
{
    bool found = false;
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        found = found || plan->layers[layer].attention == SPEC_BLOCK_LINEAR;
    }
    return found;
}

status_t plan_print_text(const struct plan_print_args *args, struct bytes *out)
{
    TRY(summary(args, out));
    TRY(rank_table(args, out));
    if (args->memory != NULL) {
        TRY(plan_memory_print(args->memory, out));
    }
    if (args->view != PLAN_PRINT_TABLE) {
        const struct plan_draw_args draw = {
            .plan = args->plan,
            .spec = args->spec,
            .charset = args->view == PLAN_PRINT_UTF8 ? PLAN_DRAW_UTF8 : PLAN_DRAW_ASCII,
        };
        return plan_draw_text(&draw, out);
    }
    const struct grid grid = make_grid(args->plan);
    TRY(layer_tables(args, &grid, out));
    TRY(bytes_append_str(
        out, "\nA cell is query heads|KV heads of a rank; g/u: head g for sequences in lane u.\n"));
    if (args->plan->stripe > 1) {
        TRY(bytes_append_str(out, "g%b: head g for block b of each stripe of a sequence.\n"));
    }
    return has_linear_attention(args->plan)
               ? bytes_append_str(out, "Where kv is linear: rows of its matrix.\n")
               : status_ok();
}

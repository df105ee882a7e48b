/*
 * plan_draw.h - a picture of a plan: layers down, ranks across, and who holds which keys and values
 *
 * What:      runs of layers that look alike are one line; in each, every rank has a cell with the KV heads it holds. Text for
 *            a terminal of 80 columns, in UTF-8 or ASCII:
 *
 *                layers     kv    ffn   0    1    2    3        a cell: how much of the lanes, and the heads
 *                   0-4      4  14336  |█0  |█1  |█2  |█3       whole heads
 *                   5-9      2  14336  |▄0  |▄0  |▄1  |▄1       half of the sequences each; 2t: of each one's blocks
 *                    10   none   5632  |·   |·   |·   |·        no attention
 *
 *            and the same as SVG: a bar a head, as high as its part of the lanes, a colour a head; below it the rank's part of
 *            the feed-forward.
 * Thread:    any
 * Errors:    RESOURCE_EXHAUSTED for memory.
 */
#pragma once

#include "base/bytes.h"
#include "parallel/plan.h"

enum plan_draw_charset { PLAN_DRAW_ASCII, PLAN_DRAW_UTF8 };

struct plan_draw_args {
    const struct plan *plan;
    const struct model_spec *spec;
    int charset;       /* text: enum plan_draw_charset */
    const char *title; /* SVG */
};

MUST_USE status_t plan_draw_text(const struct plan_draw_args *args, struct bytes *out);
MUST_USE status_t plan_draw_svg(const struct plan_draw_args *args, struct bytes *out);

/* The end of the run of layers that look like this one, in its stage. */
int32_t plan_draw_run_end(const struct plan_draw_args *args, int32_t layer);

/* "4", or what stands for a block that has no such number: "linear", "none". */
void plan_draw_block_text(int block, int32_t n, char buf[12]);

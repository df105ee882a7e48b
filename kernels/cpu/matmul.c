/*
 * matmul.c - y = x W^T over packed weights
 *
 * Shapes:   x [M, K] (ld_x), W [N, K] packed (struct matrix), out [M, N] (ld_out); any M, N, K.
 * Mapping:  a task is a block of rows by a group of panels. Inside it k is cut into stretches that keep a stretch of
 *           x in the second-level cache and of a panel in the first; register tiles (matmul_tiles.h) continue the sums
 *           they left in out. Few rows take k in one stretch. Tiles ask for weights before they are needed.
 *           Where several tiles of rows pass over int8 panels, these are made float32 first, in the thread's scratch: the values,
 *           and so the sums, are the same.
 * Numerics: an output is one chain of fp32 fma over ascending k, whatever M, the blocks and the threads. W8A8: rows of x are
 *           rounded first, into the caller's scratch; sums are int32, which out holds between two stretches of k.
 * Cost:     memory bound up to about 16 rows: N K elements of weights. Above, 2 M N K flops.
 */
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

enum {
    ROW_BLOCK = 96,                       /* rows of a task */
    PANEL_GROUP = 8,                      /* panels of a task */
    PANELS_AT_ONCE = CPU_UNPACKED_PANELS, /* of those, in the inner loop */
    K_STRETCH = CPU_UNPACKED_K,           /* a multiple of the k of a word */
    K_STRETCH_W8A8 = 2048,                /* as many bytes of x */
    AHEAD_WORDS =
        48 * CPU_PANEL,    /* a single stream of lines: the processor by itself asks for too few */
    SERIAL_MACS = 1 << 18, /* below, waking another thread costs more than it saves */
};

struct matmul_plan {
    const struct matmul_args *args;
    const struct cpu_isa *isa;
    struct cpu_scratch *scratch;           /* by thread */
    const struct cpu_tile_kernel *kernels; /* of the weight's format, by rows */
    int32_t rows_per_task, n_row_blocks;
    int32_t panels_per_task;
    int32_t k_stretch;
    struct int8_row *rows; /* W8A8: of x, else NULL */
    int8_t *values;        /* W8A8: [n_rows, int8_rows_stride(n_in)] */
};

/* One stretch of k for the tiles of a task. */
struct stretch {
    int32_t k_begin, n_k;
    int32_t row_begin, row_end;
    float *room;           /* the thread's, for unpacked panels */
    const float *unpacked; /* panels from first_panel on; NULL: as they are packed */
    int32_t first_panel;
};

static struct cpu_tile make_tile(const struct matmul_plan *plan, const struct stretch *s,
                                 int32_t row, int32_t panel)
{
    const struct matmul_args *a = plan->args;
    const struct matrix *w = a->weight;
    const size_t panel_words = (size_t)w->n_words * CPU_PANEL;
    const int32_t word = s->k_begin / cpu_matrix_word(w->dtype);
    const bool last = s->k_begin + s->n_k == w->n_in;
    const bool rounded = plan->rows != NULL;
    const int64_t stride = (int64_t)int8_rows_stride(w->n_in);
    const float *const x = (const float *)a->x + row * a->ld_x + s->k_begin;
    struct cpu_tile tile = {
        .x = rounded ? (const void *)(plan->values + row * stride + s->k_begin) : (const void *)x,
        .ld_x = rounded ? stride : a->ld_x,
        .rows = rounded ? plan->rows + row : NULL,
        .w = w->data + (size_t)panel * panel_words + (size_t)word * CPU_PANEL,
        .panel_words = panel_words,
        .ahead = w->data + (size_t)panel * panel_words + (size_t)word * CPU_PANEL + AHEAD_WORDS,
        .n_k = s->n_k,
        .resume = s->k_begin > 0,
        .scales = last && w->scales != NULL ? w->scales + (size_t)panel * CPU_PANEL : NULL,
        .out = (float *)a->out + row * a->ld_out + (int64_t)panel * CPU_PANEL,
        .ld_out = a->ld_out,
    };
    if (s->unpacked != NULL) {
        tile.panel_words = (size_t)CPU_UNPACKED_K * CPU_PANEL;
        tile.w =
            (const uint32_t *)s->unpacked + (size_t)(panel - s->first_panel) * tile.panel_words;
        tile.ahead = tile.w; // near already
    }
    return tile;
}

/* The last panel when N is not a multiple of 16: a tile beside out, so that nothing is written past the row. */
static void run_last_panel(const struct cpu_tile *tile, cpu_tile_fn *fn, int32_t n_rows,
                           int32_t n_columns)
{
    float buffer[CPU_MAX_TILE_ROWS * CPU_PANEL];
    const size_t row_bytes = (size_t)n_columns * sizeof(float);
    struct cpu_tile aside = *tile;
    aside.out = buffer;
    aside.ld_out = CPU_PANEL;
    if (tile->resume) {
        memset(buffer, 0, sizeof buffer);
        for (int32_t r = 0; r < n_rows; r++) {
            memcpy(buffer + (int64_t)r * CPU_PANEL, tile->out + r * tile->ld_out, row_bytes);
        }
    }
    fn(&aside);
    for (int32_t r = 0; r < n_rows; r++) {
        memcpy(tile->out + r * tile->ld_out, buffer + (int64_t)r * CPU_PANEL, row_bytes);
    }
}

/* Of the rows of a task, which tiles share as evenly as they can: more rows hide more of a chain's latency. */
static int32_t count_tiles(const struct matmul_plan *plan, const struct stretch *s)
{
    return (s->row_end - s->row_begin - 1) / plan->isa->max_tile_rows + 1;
}

static int32_t tile_begin(const struct stretch *s, int32_t tile, int32_t n_tiles)
{
    return s->row_begin + (int32_t)((int64_t)(s->row_end - s->row_begin) * tile / n_tiles);
}

/* A tile of rows over panels [begin, end). */
static void run_row_tile(const struct matmul_plan *plan, const struct stretch *s, int32_t tile,
                         const int32_t panels[2])
{
    const int32_t n_out = plan->args->weight->n_out;
    const int32_t n_whole = n_out / CPU_PANEL;
    const int32_t n_tiles = count_tiles(plan, s);
    const int32_t row = tile_begin(s, tile, n_tiles);
    const int32_t n_rows = tile_begin(s, tile + 1, n_tiles) - row;
    const struct cpu_tile_kernel *kernel =
        s->unpacked != NULL ? &plan->isa->tile_f32[n_rows] : &plan->kernels[n_rows];
    int32_t panel = panels[0];
    while (panel < panels[1]) {
        const struct cpu_tile t = make_tile(plan, s, row, panel);
        if (panel == n_whole) {
            run_last_panel(&t, kernel->single, n_rows, n_out % CPU_PANEL);
            panel++;
        } else if (panel + kernel->n_panels <= (panels[1] < n_whole ? panels[1] : n_whole)) {
            kernel->wide(&t);
            panel += kernel->n_panels;
        } else {
            kernel->single(&t);
            panel++;
        }
    }
}

/* Panels [panel, panel + n) of the stretch as float32, where enough rows pass over them to be worth it. */
static void unpack_panels(const struct matmul_plan *plan, struct stretch *s, int32_t panel,
                          int32_t n)
{
    const struct matrix *w = plan->args->weight;
    const int32_t worth_it = 2 * plan->isa->max_tile_rows;
    s->unpacked = NULL;
    s->first_panel = panel;
    if (w->format != MATRIX_I8 || s->row_end - s->row_begin <= worth_it) {
        return;
    }
    const size_t panel_words = (size_t)w->n_words * CPU_PANEL;
    const int32_t first_word = s->k_begin / cpu_matrix_word(w->dtype);
    const int32_t n_words = (s->n_k - 1) / cpu_matrix_word(w->dtype) + 1;
    for (int32_t i = 0; i < n; i++) {
        const uint32_t *const from =
            w->data + (size_t)(panel + i) * panel_words + (size_t)first_word * CPU_PANEL;
        plan->isa->unpack_i8(from, n_words, s->room + (size_t)i * CPU_UNPACKED_K * CPU_PANEL);
    }
    s->unpacked = s->room;
}

static void run_task(void *context, int64_t task, int thread)
{
    const struct matmul_plan *plan = context;
    const struct matmul_args *a = plan->args;
    const struct matrix *w = a->weight;
    const int32_t row_begin = (int32_t)(task % plan->n_row_blocks) * plan->rows_per_task;
    const int32_t panel_begin = (int32_t)(task / plan->n_row_blocks) * plan->panels_per_task;
    const int32_t rows_left = a->n_rows - row_begin;
    const int32_t panels_left = w->n_panels - panel_begin;
    const int32_t n_rows = rows_left < plan->rows_per_task ? rows_left : plan->rows_per_task;
    const int32_t n_panels =
        panels_left < plan->panels_per_task ? panels_left : plan->panels_per_task;
    struct stretch s = {.row_begin = row_begin,
                        .row_end = row_begin + n_rows,
                        .room = plan->scratch[thread].panels};
    for (s.k_begin = 0; s.k_begin < w->n_in; s.k_begin += s.n_k) {
        s.n_k = w->n_in - s.k_begin < plan->k_stretch ? w->n_in - s.k_begin : plan->k_stretch;
        // A few panels at a time: their stretch stays near while every tile of rows passes over it.
        for (int32_t done = 0; done < n_panels; done += PANELS_AT_ONCE) {
            const int32_t n = n_panels - done < PANELS_AT_ONCE ? n_panels - done : PANELS_AT_ONCE;
            unpack_panels(plan, &s, panel_begin + done, n);
            for (int32_t tile = 0; tile < count_tiles(plan, &s); tile++) {
                run_row_tile(plan, &s, tile,
                             (const int32_t[2]){panel_begin + done, panel_begin + done + n});
            }
        }
    }
}

// ---- rows of int8 ----

static void round_row(void *context, int64_t row)
{
    const struct matmul_plan *plan = context;
    const struct matmul_args *a = plan->args;
    const int32_t n = a->weight->n_in;
    const size_t stride = int8_rows_stride(n);
    const float *const x = (const float *)a->x + row * a->ld_x;
    int8_t *const values = plan->values + row * (int64_t)stride;
    const float largest = int8_rows_largest(x, n);
    int8_rows_round(x, n, largest, values);
    memset(values + n, 0, stride - (size_t)n);
    plan->rows[row] =
        (struct int8_row){.scale = int8_rows_scale(largest), .sum = int8_rows_sum(values, n)};
}

static void round_rows(const struct backend_stream *stream, struct matmul_plan *plan)
{
    const struct matmul_args *a = plan->args;
    plan->rows = a->scratch;
    plan->values = (int8_t *)a->scratch + int8_rows_offset(a->n_rows);
    cpu_team_rows(stream, a->n_rows, a->weight->n_in, round_row, plan);
}

static const struct cpu_tile_kernel *find_kernels(const struct backend_stream *stream,
                                                  const struct matrix *w)
{
    switch (w->format) {
    case MATRIX_BF16:
        return stream->isa->tile_bf16;
    case MATRIX_I8:
        return stream->isa->tile_i8;
    case MATRIX_W8A8:
        return stream->tile_w8a8;
    default:
        return stream->isa->tile_f32;
    }
}

static int32_t stretch_of(const struct cpu_isa *isa, const struct matmul_args *a)
{
    if (a->n_rows <= isa->max_tile_rows) {
        return a->weight->n_in;
    }
    return a->weight->format == MATRIX_W8A8 ? K_STRETCH_W8A8 : K_STRETCH;
}

static status_t check(const struct matmul_args *a)
{
    if (a->n_rows < 0 || a->ld_x < a->weight->n_in || a->ld_out < a->weight->n_out ||
        a->out_dtype != DTYPE_F32) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "matmul [%d, %d]: %d rows, strides %lld in and %lld out, dtype %d",
                             a->weight->n_out, a->weight->n_in, a->n_rows, (long long)a->ld_x,
                             (long long)a->ld_out, a->out_dtype);
    }
    if (a->weight->format == MATRIX_W8A8 && a->n_rows > 0 && a->scratch == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matmul [%d, %d]: no room for int8 rows",
                             a->weight->n_out, a->weight->n_in);
    }
    return status_ok();
}

status_t cpu_matmul(struct backend_stream *stream, const struct matmul_args *a)
{
    TRY(check(a));
    if (a->n_rows == 0) {
        return status_ok();
    }
    const struct matrix *w = a->weight;
    const struct cpu_isa *isa = stream->isa;
    struct matmul_plan plan = {
        .args = a,
        .isa = isa,
        .scratch = stream->scratch,
        .kernels = find_kernels(stream, w),
        .panels_per_task = PANEL_GROUP,
        .k_stretch = stretch_of(isa, a),
    };
    if (w->format == MATRIX_W8A8) {
        round_rows(stream, &plan);
    }
    // Blocks of rows of nearly the same size, whole tiles each.
    const int32_t n_blocks = (a->n_rows - 1) / ROW_BLOCK + 1;
    const int32_t n_tiles = (a->n_rows - 1) / isa->max_tile_rows + 1;
    plan.rows_per_task = ((n_tiles - 1) / n_blocks + 1) * isa->max_tile_rows;
    plan.n_row_blocks = (a->n_rows - 1) / plan.rows_per_task + 1;

    const int64_t n_groups = (w->n_panels - 1) / plan.panels_per_task + 1;
    const int64_t macs = (int64_t)a->n_rows * w->n_out * w->n_in;
    cpu_team_run(macs < SERIAL_MACS ? NULL : stream->team, n_groups * plan.n_row_blocks, run_task,
                 &plan);
    return status_ok();
}

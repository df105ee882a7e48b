/*
 * matmul_tiles.h - the register tiles of matmul
 *
 * What:      a template; include after a vec_*.h. A tile keeps rows x (panels * 16) sums in registers and walks k once.
 *            Each sum is one chain of fma over ascending k, so its bits know nothing of the tile's shape. Sums of int8
 *            products are integers, exact in any order.
 * Cost:      a chain waits 4 cycles for itself: tiles hold at least 8 vectors of sums where the registers allow it, which
 *            is why few rows take several panels at a time.
 * Layout:    struct cpu_tile; w as struct matrix stores it.
 * Thread:    any
 */
#pragma once

#include "kernels/cpu/isa.h"
#include "kernels/cpu/unroll.h"

enum {
    PANEL_VECS = CPU_PANEL / VEC_LANES,
    MAX_TILE_VECS = 4 * PANEL_VECS,
};

/* rows and panels are constants in every caller. */
ALWAYS_INLINE void tile_begin(const struct cpu_tile *t, int rows, int panels,
                              vf acc[VEC_TILE_ROWS][MAX_TILE_VECS])
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < panels * PANEL_VECS; v++) {
            acc[r][v] =
                t->resume ? vf_load(t->out + r * t->ld_out + (ptrdiff_t)v * VEC_LANES) : vf_zero();
        }
    }
}

ALWAYS_INLINE void tile_end(const struct cpu_tile *t, int rows, int panels,
                            vf acc[VEC_TILE_ROWS][MAX_TILE_VECS])
{
    if (t->scales != NULL) {
        UNROLL
        for (int v = 0; v < panels * PANEL_VECS; v++) {
            const vf scale = vf_load(t->scales + (ptrdiff_t)v * VEC_LANES);
            UNROLL
            for (int r = 0; r < rows; r++) {
                acc[r][v] = vf_mul(acc[r][v], scale);
            }
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < panels * PANEL_VECS; v++) {
            vf_store(t->out + r * t->ld_out + (ptrdiff_t)v * VEC_LANES, acc[r][v]);
        }
    }
}

/* acc += x[:, k] w, for one k. */
ALWAYS_INLINE void tile_step(const float *x_k, int64_t ld_x, int rows, int vecs,
                             const vf w[MAX_TILE_VECS], vf acc[VEC_TILE_ROWS][MAX_TILE_VECS])
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        const vf x = vf_set1(x_k[r * ld_x]);
        UNROLL
        for (int v = 0; v < vecs; v++) {
            acc[r][v] = vf_fma(x, w[v], acc[r][v]);
        }
    }
}

/* A step reads a line of each panel, and asks for one that will be read later. */
ALWAYS_INLINE void prefetch_words(const uint32_t *ahead, size_t panel_words, int panels)
{
    UNROLL
    for (int p = 0; p < panels; p++) {
        __builtin_prefetch(ahead + (size_t)p * panel_words, 0, 2);
    }
}

ALWAYS_INLINE void load_f32(const float *w_k, size_t panel_words, int panels, vf w[MAX_TILE_VECS])
{
    UNROLL
    for (int v = 0; v < panels * PANEL_VECS; v++) {
        const size_t panel = (size_t)(v / PANEL_VECS);
        w[v] = vf_load(w_k + panel * panel_words + (ptrdiff_t)(v % PANEL_VECS) * VEC_LANES);
    }
}

/* Of a word of two k, the lower (even) or the upper (odd). */
ALWAYS_INLINE void load_bf16(const uint32_t *w_k, size_t panel_words, int panels, int odd,
                             vf w[MAX_TILE_VECS])
{
    UNROLL
    for (int v = 0; v < panels * PANEL_VECS; v++) {
        const size_t panel = (size_t)(v / PANEL_VECS);
        const uint16_t *const at =
            (const uint16_t *)(w_k + panel * panel_words + (ptrdiff_t)(v % PANEL_VECS) * VEC_LANES);
        w[v] = odd ? vf_load_bf16_odd(at) : vf_load_bf16_even(at);
    }
}

/* Of words of four k, byte `which`. */
ALWAYS_INLINE void load_words_i8(const uint32_t *w_k, size_t panel_words, int panels, int which,
                                 vf w[MAX_TILE_VECS])
{
    UNROLL
    for (int v = 0; v < panels * PANEL_VECS; v++) {
        const size_t panel = (size_t)(v / PANEL_VECS);
        w[v] = vf_unpack_i8(w_k + panel * panel_words + (ptrdiff_t)(v % PANEL_VECS) * VEC_LANES,
                            which);
    }
}

ALWAYS_INLINE void tile_f32(const struct cpu_tile *t, int rows, int panels)
{
    vf acc[VEC_TILE_ROWS][MAX_TILE_VECS];
    tile_begin(t, rows, panels, acc);
    const int64_t ld_x = t->ld_x;
    const size_t panel_words = t->panel_words;
    const float *w_k = (const float *)t->w;
    const uint32_t *ahead = t->ahead;
    const float *x = t->x;
    for (const float *const end = x + t->n_k; x < end; x++, w_k += CPU_PANEL, ahead += CPU_PANEL) {
        vf w[MAX_TILE_VECS];
        prefetch_words(ahead, panel_words, panels);
        load_f32(w_k, panel_words, panels, w);
        tile_step(x, ld_x, rows, panels * PANEL_VECS, w, acc);
    }
    tile_end(t, rows, panels, acc);
}

ALWAYS_INLINE void tile_bf16(const struct cpu_tile *t, int rows, int panels)
{
    vf acc[VEC_TILE_ROWS][MAX_TILE_VECS];
    tile_begin(t, rows, panels, acc);
    const int64_t ld_x = t->ld_x;
    const size_t panel_words = t->panel_words;
    const uint32_t *w_k = t->w, *ahead = t->ahead;
    const float *x = t->x;
    for (const float *const end = x + (t->n_k & ~1); x < end;
         x += 2, w_k += CPU_PANEL, ahead += CPU_PANEL) {
        vf even[MAX_TILE_VECS], odd[MAX_TILE_VECS];
        prefetch_words(ahead, panel_words, panels);
        load_bf16(w_k, panel_words, panels, 0, even);
        tile_step(x, ld_x, rows, panels * PANEL_VECS, even, acc);
        load_bf16(w_k, panel_words, panels, 1, odd);
        tile_step(x + 1, ld_x, rows, panels * PANEL_VECS, odd, acc);
    }
    if (t->n_k & 1) {
        vf even[MAX_TILE_VECS];
        load_bf16(w_k, panel_words, panels, 0, even);
        tile_step(x, ld_x, rows, panels * PANEL_VECS, even, acc);
    }
    tile_end(t, rows, panels, acc);
}

ALWAYS_INLINE void tile_i8(const struct cpu_tile *t, int rows, int panels)
{
    vf acc[VEC_TILE_ROWS][MAX_TILE_VECS];
    tile_begin(t, rows, panels, acc);
    const int64_t ld_x = t->ld_x;
    const size_t panel_words = t->panel_words;
    const uint32_t *w_k = t->w, *ahead = t->ahead;
    const float *x = t->x;
    for (const float *const end = x + (t->n_k & ~3); x < end;
         x += 4, w_k += CPU_PANEL, ahead += CPU_PANEL) {
        prefetch_words(ahead, panel_words, panels);
        UNROLL
        for (int i = 0; i < 4; i++) {
            vf w[MAX_TILE_VECS];
            load_words_i8(w_k, panel_words, panels, i, w);
            tile_step(x + i, ld_x, rows, panels * PANEL_VECS, w, acc);
        }
    }
    for (int i = 0; i < (t->n_k & 3); i++) {
        vf w[MAX_TILE_VECS];
        load_words_i8(w_k, panel_words, panels, i, w);
        tile_step(x + i, ld_x, rows, panels * PANEL_VECS, w, acc);
    }
    tile_end(t, rows, panels, acc);
}

static inline void unpack_i8(const uint32_t *w, int32_t n_words, float *out)
{
    for (int32_t word = 0; word < n_words; word++, w += CPU_PANEL) {
        for (int i = 0; i < 4; i++, out += CPU_PANEL) {
            UNROLL
            for (int v = 0; v < PANEL_VECS; v++) {
                const ptrdiff_t at = (ptrdiff_t)v * VEC_LANES;
                vf_store(out + at, vf_unpack_i8(w + at, i));
            }
        }
    }
}

// ---- int8 times int8 ----

ALWAYS_INLINE void sums_begin(const struct cpu_tile *t, int rows, int panels,
                              vi acc[VEC_TILE_ROWS][MAX_TILE_VECS])
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < panels * PANEL_VECS; v++) {
            acc[r][v] = t->resume ? vi_load(t->out + r * t->ld_out + (ptrdiff_t)v * VEC_LANES)
                                  : vi_dot_begin(t->rows[r].sum);
        }
    }
}

ALWAYS_INLINE void sums_end(const struct cpu_tile *t, int rows, int panels,
                            vi acc[VEC_TILE_ROWS][MAX_TILE_VECS])
{
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < panels * PANEL_VECS; v++) {
            float *const out = t->out + r * t->ld_out + (ptrdiff_t)v * VEC_LANES;
            if (t->scales == NULL) {
                vi_store(out, acc[r][v]);
                continue;
            }
            const vf scale = vf_load(t->scales + (ptrdiff_t)v * VEC_LANES);
            const vf product = vf_mul(vf_from_vi(acc[r][v]), scale);
            vf_store(out, vf_mul(product, vf_set1(t->rows[r].scale)));
        }
    }
}

ALWAYS_INLINE int32_t four_bytes(const int8_t *x)
{
    int32_t word;
    __builtin_memcpy(&word, x, sizeof word);
    return word;
}

ALWAYS_INLINE void tile_w8a8(const struct cpu_tile *t, int rows, int panels)
{
    vi acc[VEC_TILE_ROWS][MAX_TILE_VECS];
    sums_begin(t, rows, panels, acc);
    const int64_t ld_x = t->ld_x;
    const size_t panel_words = t->panel_words;
    const uint32_t *w_k = t->w, *ahead = t->ahead;
    const int8_t *x = t->x;
    for (const int8_t *const end = x + t->n_k; x < end;
         x += 4, w_k += CPU_PANEL, ahead += CPU_PANEL) {
        vi w[MAX_TILE_VECS];
        prefetch_words(ahead, panel_words, panels);
        UNROLL
        for (int v = 0; v < panels * PANEL_VECS; v++) {
            const size_t panel = (size_t)(v / PANEL_VECS);
            w[v] = vi_load(w_k + panel * panel_words + (ptrdiff_t)(v % PANEL_VECS) * VEC_LANES);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            const vi x_r = vi_set1(four_bytes(x + r * ld_x));
            UNROLL
            for (int v = 0; v < panels * PANEL_VECS; v++) {
                acc[r][v] = vi_dot(acc[r][v], w[v], x_r);
            }
        }
    }
    sums_end(t, rows, panels, acc);
}

/* The function of one tile shape, and the row of the table that offers it. */
#define DEFINE_TILE(kind, rows, panels)                               \
    static void kind##_##rows##x##panels(const struct cpu_tile *tile) \
    {                                                                 \
        kind(tile, rows, panels);                                     \
    }

#define TILE_KERNEL(kind, rows, panels)                                                       \
    {                                                                                         \
        .n_panels = (panels), .wide = kind##_##rows##x##panels, .single = kind##_##rows##x##1 \
    }

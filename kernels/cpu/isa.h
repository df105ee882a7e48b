/*
 * isa.h - the inner loops of the CPU backend, one table for each instruction set
 *
 * What:      each isa_*.c compiles the same templates (matmul_tiles.h, attention_rows.h, row_ops.h, random_rows.h) over its own vectors
 *            (vec_*.h) with its own compiler flags. Everything that branches on shapes stays in the op files,
 *            which are compiled once.
 * Invariant: for a given instruction set the bits of a result do not depend on which entry computed it: a tile of six
 *            rows gives each row what a tile of one row gives it.
 * Thread:    any; the tables are constant.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "kernels/int8_rows.h"

enum {
    CPU_PANEL = 16,          /* outputs of a packed panel */
    CPU_MAX_TILE_ROWS = 8,   /* of any instruction set */
    CPU_UNPACKED_PANELS = 4, /* int8 panels as float32 at a time, */
    CPU_UNPACKED_K = 512,    /* of so many k */
    CPU_TILE_TOKENS = 16,    /* keys an attention row looks at between two updates of its maximum */
    CPU_MAX_TASK_ROWS = 32,  /* query rows of an attention task */
    CPU_MAX_HEAD_DIM = 512,
};

/*
 * out[r, 0 .. 16 * panels) = (resume ? out : 0) + sum over k of x[r, k] w[k, :], k ascending, one chain of fma each; then, where
 * there are scales, times those of the outputs. Tiles of W8A8 sum in int32, which out holds until there are scales.
 */
struct cpu_tile {
    const void *x;               /* first row, first k: float32; W8A8: int8 */
    int64_t ld_x;                /* elements */
    const struct int8_row *rows; /* W8A8: of each row of x */
    const uint32_t *w;           /* first panel, first word */
    size_t panel_words;          /* from one panel to the next: n_words * 16 */
    const uint32_t *ahead; /* what to bring near, a line a step of each panel: a hint, never read */
    int32_t n_k;           /* not a multiple of a word's only at the end of a row */
    int32_t
        resume; /* 1: continue the sums in out; a float32 stored and loaded is the same float32 */
    const float *scales; /* first panel's; NULL: none, or sums that go on */
    float *out;
    int64_t ld_out;
};

typedef void cpu_tile_fn(const struct cpu_tile *tile);

/* How a tile of r rows is computed: wide takes n_panels panels, single one. */
struct cpu_tile_kernel {
    int n_panels;
    cpu_tile_fn *wide;
    cpu_tile_fn *single;
};

/* Rows [row_begin, row_end) of one KV head of one sequence; row = query * group + head of the group. */
struct cpu_attention_task {
    const struct attention_shape *shape;
    const struct attention_args *args;
    const struct attention_seq *seq;
    int32_t head;               /* of the sequence's n_kv_heads */
    int64_t row_begin, row_end; /* at most CPU_MAX_TASK_ROWS */
    float *k_tile, *v_tile;     /* scratch [CPU_TILE_TOKENS, head_dim]: a tile as float32 */
};

/* A row of random numbers, see random_rows.h. */
struct cpu_random_row {
    uint64_t seed, tensor;
    uint32_t row;
    float unit; /* what a sum of bytes is multiplied with */
};

struct cpu_isa {
    const char *name;
    int max_tile_rows;
    struct cpu_tile_kernel tile_f32[CPU_MAX_TILE_ROWS + 1]; /* by rows, 1 .. max_tile_rows */
    struct cpu_tile_kernel tile_bf16[CPU_MAX_TILE_ROWS + 1];
    struct cpu_tile_kernel tile_i8[CPU_MAX_TILE_ROWS + 1];
    struct cpu_tile_kernel tile_w8a8[CPU_MAX_TILE_ROWS + 1];
    /* n_words words of an int8 panel as the panel tile_f32 takes: [4 n_words][16], scales left out. */
    void (*unpack_i8)(const uint32_t *w, int32_t n_words, float *out);

    void (*attention)(const struct cpu_attention_task *task);

    /* out = x / sqrt(mean(x^2) + eps) * weight; out may be x */
    void (*rmsnorm)(const float *x, const float *weight, float eps, int32_t n, float *out);
    /* out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias; out may be x */
    void (*layernorm)(const float *x, const float *weight, const float *bias, float eps, int32_t n,
                      float *out);
    /* (a, b) = (a cos - b sin, b cos + a sin) */
    void (*rotate)(float *a, float *b, const float *cos, const float *sin, int32_t n);
    void (*swiglu)(const float *gate, const float *up, int64_t n, float *out);
    void (*add)(float *x, const float *y, int64_t n);
    /* A row of int8 (kv_format.h); returns its scale, a bfloat16. */
    uint16_t (*quantize)(const float *x, int32_t n, int8_t *out);
    /* Largest of n, NaN left out; -inf of nothing. */
    float (*largest)(const float *x, int32_t n);
    /* out = e^((x - shift) / divisor) */
    void (*exp_scaled)(const float *x, float shift, float divisor, int32_t n, float *out);
    /* Columns [begin, end) of a random row. */
    void (*random_row)(const struct cpu_random_row *row, int32_t begin, int32_t end, float *out);
};

extern const struct cpu_isa cpu_isa_avx512;
/* tile_w8a8 of processors that also have VNNI: the same bits in a quarter of the instructions. */
extern const struct cpu_tile_kernel cpu_isa_avx512_vnni_w8a8[CPU_MAX_TILE_ROWS + 1];
extern const struct cpu_isa cpu_isa_avx2;
extern const struct cpu_isa cpu_isa_portable;

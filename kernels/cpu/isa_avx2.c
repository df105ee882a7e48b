/*
 * isa_avx2.c - the kernel templates over AVX2 + FMA
 *
 * Numerics: tiles of 6 x 16 sums are 12 of the 16 registers; 1 row takes 4 panels, for 8 chains of fma.
 */
#include "kernels/cpu/vec_avx2.h" // the vectors the templates below are written in

#include "kernels/cpu/vec_exp.h"

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/random_rows.h"
#include "kernels/cpu/row_ops.h"

DEFINE_TILE(tile_f32, 1, 1)
DEFINE_TILE(tile_f32, 1, 4)
DEFINE_TILE(tile_f32, 2, 1)
DEFINE_TILE(tile_f32, 2, 2)
DEFINE_TILE(tile_f32, 3, 1)
DEFINE_TILE(tile_f32, 3, 2)
DEFINE_TILE(tile_f32, 4, 1)
DEFINE_TILE(tile_f32, 5, 1)
DEFINE_TILE(tile_f32, 6, 1)

/* Weights that are unpacked take registers: 3 rows have room for one panel only. */
#define DEFINE_TILES(kind)  \
    DEFINE_TILE(kind, 1, 1) \
    DEFINE_TILE(kind, 1, 4) \
    DEFINE_TILE(kind, 2, 1) \
    DEFINE_TILE(kind, 2, 2) \
    DEFINE_TILE(kind, 3, 1) \
    DEFINE_TILE(kind, 4, 1) \
    DEFINE_TILE(kind, 5, 1) \
    DEFINE_TILE(kind, 6, 1)

#define TILE_KERNELS(kind)                                            \
    {                                                                 \
        [1] = TILE_KERNEL(kind, 1, 4), [2] = TILE_KERNEL(kind, 2, 2), \
        [3] = TILE_KERNEL(kind, 3, 1), [4] = TILE_KERNEL(kind, 4, 1), \
        [5] = TILE_KERNEL(kind, 5, 1), [6] = TILE_KERNEL(kind, 6, 1), \
    }

DEFINE_TILES(tile_bf16)
DEFINE_TILES(tile_i8)
DEFINE_TILES(tile_w8a8)

const struct cpu_isa cpu_isa_avx2 = {
    .name = "avx2",
    .max_tile_rows = 6,
    .tile_f32 =
        {
            [1] = TILE_KERNEL(tile_f32, 1, 4),
            [2] = TILE_KERNEL(tile_f32, 2, 2),
            [3] = TILE_KERNEL(tile_f32, 3, 2),
            [4] = TILE_KERNEL(tile_f32, 4, 1),
            [5] = TILE_KERNEL(tile_f32, 5, 1),
            [6] = TILE_KERNEL(tile_f32, 6, 1),
        },
    .tile_bf16 = TILE_KERNELS(tile_bf16),
    .tile_i8 = TILE_KERNELS(tile_i8),
    .tile_w8a8 = TILE_KERNELS(tile_w8a8),
    .unpack_i8 = unpack_i8,
    .attention = attention_rows,
    .rmsnorm = row_rmsnorm,
    .layernorm = row_layernorm,
    .rotate = row_rotate,
    .swiglu = row_swiglu,
    .add = row_add,
    .quantize = row_quantize,
    .largest = row_largest,
    .exp_scaled = row_exp_scaled,
    .random_row = random_row,
};

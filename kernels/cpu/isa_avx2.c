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
DEFINE_TILE(tile_bf16, 1, 1)
DEFINE_TILE(tile_bf16, 1, 4)
DEFINE_TILE(tile_bf16, 2, 1)
DEFINE_TILE(tile_bf16, 2, 2)
DEFINE_TILE(tile_bf16, 3, 1)
DEFINE_TILE(tile_bf16, 4, 1)
DEFINE_TILE(tile_bf16, 5, 1)
DEFINE_TILE(tile_bf16, 6, 1)
DEFINE_TILE(tile_i8, 1, 1)
DEFINE_TILE(tile_i8, 1, 4)
DEFINE_TILE(tile_i8, 2, 1)
DEFINE_TILE(tile_i8, 2, 2)
DEFINE_TILE(tile_i8, 3, 1)
DEFINE_TILE(tile_i8, 4, 1)
DEFINE_TILE(tile_i8, 5, 1)
DEFINE_TILE(tile_i8, 6, 1)
DEFINE_TILE(tile_w8a8, 1, 1)
DEFINE_TILE(tile_w8a8, 1, 4)
DEFINE_TILE(tile_w8a8, 2, 1)
DEFINE_TILE(tile_w8a8, 2, 2)
DEFINE_TILE(tile_w8a8, 3, 1)
DEFINE_TILE(tile_w8a8, 4, 1)
DEFINE_TILE(tile_w8a8, 5, 1)
DEFINE_TILE(tile_w8a8, 6, 1)

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
    .tile_bf16 =
        {
            [1] = TILE_KERNEL(tile_bf16, 1, 4),
            [2] = TILE_KERNEL(tile_bf16, 2, 2),
            [3] = TILE_KERNEL(tile_bf16, 3, 1),
            [4] = TILE_KERNEL(tile_bf16, 4, 1),
            [5] = TILE_KERNEL(tile_bf16, 5, 1),
            [6] = TILE_KERNEL(tile_bf16, 6, 1),
        },
    .tile_i8 =
        {
            [1] = TILE_KERNEL(tile_i8, 1, 4),
            [2] = TILE_KERNEL(tile_i8, 2, 2),
            [3] = TILE_KERNEL(tile_i8, 3, 1),
            [4] = TILE_KERNEL(tile_i8, 4, 1),
            [5] = TILE_KERNEL(tile_i8, 5, 1),
            [6] = TILE_KERNEL(tile_i8, 6, 1),
        },
    .tile_w8a8 =
        {
            [1] = TILE_KERNEL(tile_w8a8, 1, 4),
            [2] = TILE_KERNEL(tile_w8a8, 2, 2),
            [3] = TILE_KERNEL(tile_w8a8, 3, 1),
            [4] = TILE_KERNEL(tile_w8a8, 4, 1),
            [5] = TILE_KERNEL(tile_w8a8, 5, 1),
            [6] = TILE_KERNEL(tile_w8a8, 6, 1),
        },
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

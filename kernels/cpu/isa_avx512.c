/*
 * isa_avx512.c - the kernel templates over AVX-512 (F, BW, VL, DQ)
 *
 * Numerics: tiles of 8 x 32 sums are 16 of the 32 registers, and their 8 rows of x as many pointers as there are; up to 3 rows take 4 panels.
 */
#include "kernels/cpu/vec_avx512_dot.h" // the vectors the templates below are written in

#include "kernels/cpu/vec_exp.h"

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/random_rows.h"
#include "kernels/cpu/row_ops.h"

DEFINE_TILE(tile_f32, 1, 1)
DEFINE_TILE(tile_f32, 1, 4)
DEFINE_TILE(tile_f32, 2, 1)
DEFINE_TILE(tile_f32, 2, 4)
DEFINE_TILE(tile_f32, 3, 1)
DEFINE_TILE(tile_f32, 3, 4)
DEFINE_TILE(tile_f32, 4, 1)
DEFINE_TILE(tile_f32, 4, 2)
DEFINE_TILE(tile_f32, 5, 1)
DEFINE_TILE(tile_f32, 5, 2)
DEFINE_TILE(tile_f32, 6, 1)
DEFINE_TILE(tile_f32, 6, 2)
DEFINE_TILE(tile_f32, 7, 1)
DEFINE_TILE(tile_f32, 7, 2)
DEFINE_TILE(tile_f32, 8, 1)
DEFINE_TILE(tile_f32, 8, 2)
DEFINE_TILE(tile_bf16, 1, 1)
DEFINE_TILE(tile_bf16, 1, 4)
DEFINE_TILE(tile_bf16, 2, 1)
DEFINE_TILE(tile_bf16, 2, 4)
DEFINE_TILE(tile_bf16, 3, 1)
DEFINE_TILE(tile_bf16, 3, 4)
DEFINE_TILE(tile_bf16, 4, 1)
DEFINE_TILE(tile_bf16, 4, 2)
DEFINE_TILE(tile_bf16, 5, 1)
DEFINE_TILE(tile_bf16, 5, 2)
DEFINE_TILE(tile_bf16, 6, 1)
DEFINE_TILE(tile_bf16, 6, 2)
DEFINE_TILE(tile_bf16, 7, 1)
DEFINE_TILE(tile_bf16, 7, 2)
DEFINE_TILE(tile_bf16, 8, 1)
DEFINE_TILE(tile_bf16, 8, 2)
DEFINE_TILE(tile_i8, 1, 1)
DEFINE_TILE(tile_i8, 1, 4)
DEFINE_TILE(tile_i8, 2, 1)
DEFINE_TILE(tile_i8, 2, 4)
DEFINE_TILE(tile_i8, 3, 1)
DEFINE_TILE(tile_i8, 3, 4)
DEFINE_TILE(tile_i8, 4, 1)
DEFINE_TILE(tile_i8, 4, 2)
DEFINE_TILE(tile_i8, 5, 1)
DEFINE_TILE(tile_i8, 5, 2)
DEFINE_TILE(tile_i8, 6, 1)
DEFINE_TILE(tile_i8, 6, 2)
DEFINE_TILE(tile_i8, 7, 1)
DEFINE_TILE(tile_i8, 7, 2)
DEFINE_TILE(tile_i8, 8, 1)
DEFINE_TILE(tile_i8, 8, 2)
DEFINE_TILE(tile_w8a8, 1, 1)
DEFINE_TILE(tile_w8a8, 1, 4)
DEFINE_TILE(tile_w8a8, 2, 1)
DEFINE_TILE(tile_w8a8, 2, 4)
DEFINE_TILE(tile_w8a8, 3, 1)
DEFINE_TILE(tile_w8a8, 3, 4)
DEFINE_TILE(tile_w8a8, 4, 1)
DEFINE_TILE(tile_w8a8, 4, 2)
DEFINE_TILE(tile_w8a8, 5, 1)
DEFINE_TILE(tile_w8a8, 5, 2)
DEFINE_TILE(tile_w8a8, 6, 1)
DEFINE_TILE(tile_w8a8, 6, 2)
DEFINE_TILE(tile_w8a8, 7, 1)
DEFINE_TILE(tile_w8a8, 7, 2)
DEFINE_TILE(tile_w8a8, 8, 1)
DEFINE_TILE(tile_w8a8, 8, 2)

const struct cpu_isa cpu_isa_avx512 = {
    .name = "avx512",
    .max_tile_rows = 8,
    .tile_f32 =
        {
            [1] = TILE_KERNEL(tile_f32, 1, 4),
            [2] = TILE_KERNEL(tile_f32, 2, 4),
            [3] = TILE_KERNEL(tile_f32, 3, 4),
            [4] = TILE_KERNEL(tile_f32, 4, 2),
            [5] = TILE_KERNEL(tile_f32, 5, 2),
            [6] = TILE_KERNEL(tile_f32, 6, 2),
            [7] = TILE_KERNEL(tile_f32, 7, 2),
            [8] = TILE_KERNEL(tile_f32, 8, 2),
        },
    .tile_bf16 =
        {
            [1] = TILE_KERNEL(tile_bf16, 1, 4),
            [2] = TILE_KERNEL(tile_bf16, 2, 4),
            [3] = TILE_KERNEL(tile_bf16, 3, 4),
            [4] = TILE_KERNEL(tile_bf16, 4, 2),
            [5] = TILE_KERNEL(tile_bf16, 5, 2),
            [6] = TILE_KERNEL(tile_bf16, 6, 2),
            [7] = TILE_KERNEL(tile_bf16, 7, 2),
            [8] = TILE_KERNEL(tile_bf16, 8, 2),
        },
    .tile_i8 =
        {
            [1] = TILE_KERNEL(tile_i8, 1, 4),
            [2] = TILE_KERNEL(tile_i8, 2, 4),
            [3] = TILE_KERNEL(tile_i8, 3, 4),
            [4] = TILE_KERNEL(tile_i8, 4, 2),
            [5] = TILE_KERNEL(tile_i8, 5, 2),
            [6] = TILE_KERNEL(tile_i8, 6, 2),
            [7] = TILE_KERNEL(tile_i8, 7, 2),
            [8] = TILE_KERNEL(tile_i8, 8, 2),
        },
    .tile_w8a8 =
        {
            [1] = TILE_KERNEL(tile_w8a8, 1, 4),
            [2] = TILE_KERNEL(tile_w8a8, 2, 4),
            [3] = TILE_KERNEL(tile_w8a8, 3, 4),
            [4] = TILE_KERNEL(tile_w8a8, 4, 2),
            [5] = TILE_KERNEL(tile_w8a8, 5, 2),
            [6] = TILE_KERNEL(tile_w8a8, 6, 2),
            [7] = TILE_KERNEL(tile_w8a8, 7, 2),
            [8] = TILE_KERNEL(tile_w8a8, 8, 2),
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

/*
 * isa_portable.c - the kernel templates over plain C, for processors without AVX2
 *
 * Numerics: fma rounds twice here, so that bits differ from the other instruction sets; between rows and batches they do not.
 */
#include "kernels/cpu/vec_portable.h" // the vectors the templates below are written in

#include "kernels/cpu/vec_exp.h"

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/random_rows.h"
#include "kernels/cpu/row_ops.h"

DEFINE_TILE(tile_f32, 1, 1)
DEFINE_TILE(tile_f32, 1, 2)
DEFINE_TILE(tile_f32, 2, 1)
DEFINE_TILE(tile_bf16, 1, 1)
DEFINE_TILE(tile_bf16, 1, 2)
DEFINE_TILE(tile_bf16, 2, 1)
DEFINE_TILE(tile_i8, 1, 1)
DEFINE_TILE(tile_i8, 1, 2)
DEFINE_TILE(tile_i8, 2, 1)
DEFINE_TILE(tile_w8a8, 1, 1)
DEFINE_TILE(tile_w8a8, 1, 2)
DEFINE_TILE(tile_w8a8, 2, 1)

const struct cpu_isa cpu_isa_portable = {
    .name = "portable",
    .max_tile_rows = 2,
    .tile_f32 =
        {
            [1] = TILE_KERNEL(tile_f32, 1, 2),
            [2] = TILE_KERNEL(tile_f32, 2, 1),
        },
    .tile_bf16 =
        {
            [1] = TILE_KERNEL(tile_bf16, 1, 2),
            [2] = TILE_KERNEL(tile_bf16, 2, 1),
        },
    .tile_i8 =
        {
            [1] = TILE_KERNEL(tile_i8, 1, 2),
            [2] = TILE_KERNEL(tile_i8, 2, 1),
        },
    .tile_w8a8 =
        {
            [1] = TILE_KERNEL(tile_w8a8, 1, 2),
            [2] = TILE_KERNEL(tile_w8a8, 2, 1),
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

/*
 * isa_avx512.c - the kernel templates over AVX-512 (F, BW, VL, DQ)
 */
#include "kernels/cpu/vec_avx512_dot.h" // the vectors the templates below are written in

#include "kernels/cpu/vec_exp.h"

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/random_rows.h"
#include "kernels/cpu/row_ops.h"
#include "kernels/cpu/tiles_avx512.h"

DEFINE_TILES(tile_f32)
DEFINE_TILES(tile_bf16)
DEFINE_TILES(tile_i8)
DEFINE_TILES(tile_w8a8)

const struct cpu_isa cpu_isa_avx512 = {
    .name = "avx512",
    .max_tile_rows = 8,
    .tile_f32 = TILE_KERNELS(tile_f32),
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

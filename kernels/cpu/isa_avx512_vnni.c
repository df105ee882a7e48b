/*
 * isa_avx512_vnni.c - the tiles of W8A8 over AVX-512 VNNI; everything else is isa_avx512.c
 */
#include "kernels/cpu/vec_avx512_vnni.h" // the vectors the templates below are written in

#include "kernels/cpu/matmul_tiles.h"

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

const struct cpu_tile_kernel cpu_isa_avx512_vnni_w8a8[CPU_MAX_TILE_ROWS + 1] = {
    [1] = TILE_KERNEL(tile_w8a8, 1, 4), [2] = TILE_KERNEL(tile_w8a8, 2, 4),
    [3] = TILE_KERNEL(tile_w8a8, 3, 4), [4] = TILE_KERNEL(tile_w8a8, 4, 2),
    [5] = TILE_KERNEL(tile_w8a8, 5, 2), [6] = TILE_KERNEL(tile_w8a8, 6, 2),
    [7] = TILE_KERNEL(tile_w8a8, 7, 2), [8] = TILE_KERNEL(tile_w8a8, 8, 2),
};

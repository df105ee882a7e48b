/*
 * isa_avx512_vnni.c - the tiles of W8A8 over AVX-512 VNNI; everything else is isa_avx512.c
 */
#include "kernels/cpu/vec_avx512_vnni.h" // the vectors the templates below are written in

#include "kernels/cpu/tiles_avx512.h"

DEFINE_TILES(tile_w8a8)

const struct cpu_tile_kernel cpu_isa_avx512_vnni_w8a8[CPU_MAX_TILE_ROWS + 1] =
    TILE_KERNELS(tile_w8a8);

/*
 * tiles_avx512.h - the tile shapes of AVX-512, of every format of weights
 *
 * What:     DEFINE_TILES(kind) are the functions, TILE_KERNELS(kind) the table of them.
 * Numerics: tiles of 8 x 32 sums are 16 of the 32 registers, and their 8 rows of x as many pointers as there are; up to 3 rows take 4 panels.
 */
#pragma once

#include "kernels/cpu/matmul_tiles.h"

#define DEFINE_TILES(kind)  \
    DEFINE_TILE(kind, 1, 1) \
    DEFINE_TILE(kind, 1, 4) \
    DEFINE_TILE(kind, 2, 1) \
    DEFINE_TILE(kind, 2, 4) \
    DEFINE_TILE(kind, 3, 1) \
    DEFINE_TILE(kind, 3, 4) \
    DEFINE_TILE(kind, 4, 1) \
    DEFINE_TILE(kind, 4, 2) \
    DEFINE_TILE(kind, 5, 1) \
    DEFINE_TILE(kind, 5, 2) \
    DEFINE_TILE(kind, 6, 1) \
    DEFINE_TILE(kind, 6, 2) \
    DEFINE_TILE(kind, 7, 1) \
    DEFINE_TILE(kind, 7, 2) \
    DEFINE_TILE(kind, 8, 1) \
    DEFINE_TILE(kind, 8, 2)

#define TILE_KERNELS(kind)                                            \
    {                                                                 \
        [1] = TILE_KERNEL(kind, 1, 4), [2] = TILE_KERNEL(kind, 2, 4), \
        [3] = TILE_KERNEL(kind, 3, 4), [4] = TILE_KERNEL(kind, 4, 2), \
        [5] = TILE_KERNEL(kind, 5, 2), [6] = TILE_KERNEL(kind, 6, 2), \
        [7] = TILE_KERNEL(kind, 7, 2), [8] = TILE_KERNEL(kind, 8, 2), \
    }

/*
 * unroll.h - loops over the lanes of a register tile
 *
 * What:   a tile is an array indexed by loop counters whose bounds are constants in every caller. Only when those loops are
 *         unrolled, early, does the compiler see that the array can live in registers; left to itself gcc often does not.
 *         ALWAYS_INLINE makes the bounds constants, UNROLL stands before each loop over them.
 * Thread: any
 */
#pragma once

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#    define UNROLL _Pragma("clang loop unroll(full)")
#else
#    define UNROLL _Pragma("GCC unroll 16")
#endif

/*
 * device.cuh - the simulator's twin of kernels/cuda/device.cuh
 *
 * What:      the same names with the same meaning, in C++ for the CPU; and the words of CUDA C that kernels use. It is found
 *            before the real one when kernels are compiled for the simulator (see sim.h).
 * Layout:    static shared variables become thread-local ones of the program, which lie together and can be poisoned.
 * Source:    CUDA C++ Programming Guide; CUDA PTX ISA 8.x, sections mma, ldmatrix, cp.async.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "tests/kernels/cuda_sim/sim.h"
#include "tests/kernels/cuda_sim/warp.h"

#define KVASIR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                        \
    sim_launch_kernel({#kernel, nullptr, (grid), (block), (size_t)(shared_bytes), (stream)}, \
                      (kernel), __VA_ARGS__)

#define KVASIR_SHARED(name) unsigned char *const name = static_cast<unsigned char *>(sim_shared())

#define KVASIR_WARP 32
#define KVASIR_ALL  0xffffffffu

// ---- the words of CUDA C ----

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __shared__      static thread_local
#define __constant__    static
#define __forceinline__ inline
#define __noinline__    __attribute__((noinline))
#define __launch_bounds__(...)

#define threadIdx (sim_place->thread)
#define blockIdx  (sim_block)
#define blockDim  (sim_block_size)
#define gridDim   (sim_grid_size)
#define warpSize  KVASIR_WARP

#define __syncthreads()        ((void)sim_barrier(__FILE__, __LINE__, 0))
#define __syncthreads_count(p) sim_barrier(__FILE__, __LINE__, (p) ? 1 : 0)
#define __syncthreads_or(p)    (sim_barrier(__FILE__, __LINE__, (p) ? 1 : 0) > 0)
#define __syncthreads_and(p)   (sim_barrier(__FILE__, __LINE__, (p) ? 0 : 1) == 0)

// ---- bfloat16 ----

typedef __nv_bfloat16 bf16;

static inline uint32_t pack_bf16(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

static inline float low_bf16(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static inline float high_bf16(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

static inline uint32_t low_halves(uint32_t a, uint32_t b)
{
    return (a & 0xffffu) | b << 16;
}

static inline uint32_t high_halves(uint32_t a, uint32_t b)
{
    return a >> 16 | (b & 0xffff0000u);
}

static inline uint32_t sub_bf16_pairs(uint32_t a, uint32_t b)
{
    return pack_bf16(low_bf16(a) - low_bf16(b), high_bf16(a) - high_bf16(b));
}

static inline uint32_t fma_bf16_pair(uint32_t a, uint32_t b, uint32_t c)
{
    return pack_bf16(fmaf(low_bf16(a), low_bf16(b), low_bf16(c)),
                     fmaf(high_bf16(a), high_bf16(b), high_bf16(c)));
}

// ---- warps ----

static inline float warp_sum(float x)
{
    for (int offset = KVASIR_WARP / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(KVASIR_ALL, x, offset);
    }
    return x;
}

static inline float warp_max(float x)
{
    for (int offset = KVASIR_WARP / 2; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(KVASIR_ALL, x, offset));
    }
    return x;
}

static inline float fast_exp2(float x)
{
    return exp2f(x);
}

// ---- memory ----

static inline uint4 load_once(const void *from)
{
    sim_check_aligned(from, 16, "load_once");
    uint4 v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void async_copy_16(void *shared, const void *global, bool wanted)
{
    sim_async_copy(shared, global, 16, wanted ? 16 : 0);
}

static inline void async_copy_part(void *shared, const void *global, int n_bytes)
{
    sim_async_copy(shared, global, 16, (uint32_t)n_bytes);
}

static inline void async_commit(void)
{
    sim_async_commit();
}

template <int pending> static inline void async_wait(void)
{
    sim_async_wait(pending);
}

static inline uint32_t atomic_add_acq_rel(uint32_t *counter, uint32_t n)
{
    return atomicAdd(counter, n);
}

// ---- other devices and the host: processes of this machine, and threads that are no fibers ----

static inline uint32_t load_acquire_system(const uint32_t *from)
{
    sim_check_aligned(from, sizeof *from, "load_acquire_system");
    return __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

static inline void store_release_system(uint32_t *to, uint32_t v)
{
    sim_check_aligned(to, sizeof *to, "store_release_system");
    __atomic_store_n(to, v, __ATOMIC_RELEASE);
}

static inline void store_release_system(uint64_t *to, uint64_t v)
{
    sim_check_aligned(to, sizeof *to, "store_release_system");
    __atomic_store_n(to, v, __ATOMIC_RELEASE);
}

/* The other processor is a process that may wait for this core: it gets it. */
static inline void spin_pause(void)
{
    const struct timespec pause = {0, 1000};
    (void)nanosleep(&pause, nullptr);
}

// ---- tensor cores ----

static inline void load_matrix_4(uint32_t r[4], const void *shared_row)
{
    sim_load_matrix_4(r, shared_row);
}

static inline void load_matrix_4_transposed(uint32_t r[4], const void *shared_row)
{
    sim_load_matrix_4_transposed(r, shared_row);
}

static inline void mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    sim_mma_bf16(c, a, b);
}

static inline void mma_i8(int32_t c[4], const uint32_t a[4], const uint32_t b[2])
{
    sim_mma_i8(c, a, b);
}

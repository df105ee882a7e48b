/*
 * device.cuh - what kernels are written with: launches, warp sums, tensor core and asynchronous copy instructions
 *
 * What:      the only place with inline PTX. Kernels include this header and no other of CUDA's, so that the simulator of
 *            tests/kernels/cuda_sim, which runs the same sources on the CPU, replaces this one file.
 * Layout:    fragments of mma.m16n8k16 (PTX ISA 9.7.14.5), lane = 4*g + t, g in 0..7, t in 0..3:
 *              A [16, 16] row major   a0: (g, 2t) a1: (g+8, 2t) a2: (g, 2t+8) a3: (g+8, 2t+8)   pairs (k, k+1)
 *              B [16, 8]              b0: (k = 2t, n = g)       b1: (k = 2t+8, n = g)           pairs (k, k+1)
 *              C [16, 8]              c0, c1: (g, 2t), (g, 2t+1)    c2, c3: (g+8, 2t), (g+8, 2t+1)
 *            of mma.m16n8k32 with int8 (9.7.14.5.10), four neighbouring k a register, the first in the lowest byte:
 *              A [16, 32] row major   a0: (g, 4t) a1: (g+8, 4t) a2: (g, 4t+16) a3: (g+8, 4t+16)
 *              B [32, 8]              b0: (k = 4t, n = g)       b1: (k = 4t+16, n = g)          C as above, int32
 * Source:    CUDA PTX ISA 8.x, sections mma, ldmatrix, cp.async, ld, st.
 */
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

/* Launches, and records nothing: cuda_launched (cuda.h) turns the error into a status. */
#define KVASIR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

/* Dynamic shared memory of the kernel: `name` is a pointer to its first byte, 16-byte aligned. */
#define KVASIR_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#define KVASIR_WARP 32
#define KVASIR_ALL  0xffffffffu

// ---- bfloat16 ----

typedef __nv_bfloat16 bf16;

/* Two bfloat16 in a register: low is the first of a pair. */
static __device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

static __device__ __forceinline__ float low_bf16(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static __device__ __forceinline__ float high_bf16(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* Of two pairs the firsts, and the seconds, as pairs. */
static __device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x5410);
}

static __device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b)
{
    return __byte_perm(a, b, 0x7632);
}

/* a - b of two pairs. */
static __device__ __forceinline__ uint32_t sub_bf16_pairs(uint32_t a, uint32_t b)
{
    __nv_bfloat162 x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    const __nv_bfloat162 difference = __hsub2(x, y);
    uint32_t bits;
    memcpy(&bits, &difference, sizeof bits);
    return bits;
}

/* a * b + c of both halves, rounded once. */
static __device__ __forceinline__ uint32_t fma_bf16_pair(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// ---- warps ----

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int offset = KVASIR_WARP / 2; offset > 0; offset /= 2) {
        x += __shfl_xor_sync(KVASIR_ALL, x, offset);
    }
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int offset = KVASIR_WARP / 2; offset > 0; offset /= 2) {
        x = fmaxf(x, __shfl_xor_sync(KVASIR_ALL, x, offset));
    }
    return x;
}

/* 2^x in one instruction; 2^-inf is 0. */
static __device__ __forceinline__ float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- memory ----

/* 16 bytes that are read once: past the first-level cache. Aligned. */
static __device__ __forceinline__ uint4 load_once(const void *from)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

static __device__ __forceinline__ uint32_t shared_address(const void *shared)
{
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* The first n_bytes of 16 from global to shared memory, zeros behind them (which are not read). Both aligned to 16. */
static __device__ __forceinline__ void async_copy_part(void *shared, const void *global,
                                                       int n_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(n_bytes)
                 : "memory");
}

/* 16 bytes, zeros when not wanted. */
static __device__ __forceinline__ void async_copy_16(void *shared, const void *global, bool wanted)
{
    async_copy_part(shared, global, wanted ? 16 : 0);
}

/* Closes a group of copies. */
static __device__ __forceinline__ void async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most `pending` of the thread's groups are under way. A barrier makes the data seen by other threads. */
template <int pending> static __device__ __forceinline__ void async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Loads and stores other blocks see in order: for counters of work done in global memory. */
static __device__ __forceinline__ uint32_t atomic_add_acq_rel(uint32_t *counter, uint32_t n)
{
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(old)
                 : "l"(counter), "r"(n)
                 : "memory");
    return old;
}

// ---- other devices and the host ----

/* What other processors wrote before they stored the value is seen after this. */
static __device__ __forceinline__ uint32_t load_acquire_system(const uint32_t *from)
{
    uint32_t v;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

/* Other processors that load the value see all that was written before it, by earlier kernels too. */
static __device__ __forceinline__ void store_release_system(uint32_t *to, uint32_t v)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

static __device__ __forceinline__ void store_release_system(uint64_t *to, uint64_t v)
{
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
}

/* Between two looks at what another processor is to write. */
static __device__ __forceinline__ void spin_pause(void)
{
    __nanosleep(20);
}

// ---- tensor cores ----

/* Four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8 (16 bytes, aligned). r[j] is
 * matrix j: lane 4g + t holds row g, columns 2t and 2t + 1. */
static __device__ __forceinline__ void load_matrix_4(uint32_t r[4], const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/* The same transposed: lane 4g + t holds rows 2t and 2t + 1 of column g. */
static __device__ __forceinline__ void load_matrix_4_transposed(uint32_t r[4],
                                                                const void *shared_row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

/* c += a b, bfloat16 products, float32 sums. */
static __device__ __forceinline__ void mma_bf16(float c[4], const uint32_t a[4],
                                                const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* c += a b, int8 products, int32 sums: exact. */
static __device__ __forceinline__ void mma_i8(int32_t c[4], const uint32_t a[4],
                                              const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

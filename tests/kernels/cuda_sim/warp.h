/*
 * warp.h - CUDA's functions of a warp, its atomics and its small arithmetic, for the simulator
 *
 * What:      the templates that kernels see under CUDA's names. What a warp does together is a struct that each lane fills
 *            and the last one carries out for all.
 * Thread:    fibers of a block.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "tests/kernels/cuda_sim/sim.h"

// ---- shuffles ----

struct sim_shuffle {
    struct sim_collective base;
    int source; /* lane; outside the warp's section: the lane itself */
    unsigned char value[8], result[8];
};

void sim_shuffle(struct sim_shuffle *shuffle);

template <typename T> T sim_shuffle_from(const char *name, unsigned mask, T value, int source)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves 4 or 8 bytes");
    struct sim_shuffle shuffle = {};
    shuffle.base.name = name;
    shuffle.base.mask = mask;
    shuffle.source = source;
    memcpy(shuffle.value, &value, sizeof value);
    sim_shuffle(&shuffle);
    memcpy(&value, shuffle.result, sizeof value);
    return value;
}

template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32)
{
    const int lane = (int)sim_place->lane;
    return sim_shuffle_from("__shfl_sync", mask, value,
                            (lane & ~(width - 1)) + (source & (width - 1)));
}

template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32)
{
    const int lane = (int)sim_place->lane, source = lane ^ lane_mask;
    // A source in a later section is out of range, one in an earlier section is not.
    return sim_shuffle_from("__shfl_xor_sync", mask, value,
                            source >= (lane & ~(width - 1)) + width ? lane : source);
}

template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    const int lane = (int)sim_place->lane, source = lane - (int)delta;
    return sim_shuffle_from("__shfl_up_sync", mask, value,
                            source < (lane & ~(width - 1)) ? lane : source);
}

template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    const int lane = (int)sim_place->lane, source = lane + (int)delta;
    return sim_shuffle_from("__shfl_down_sync", mask, value,
                            source >= (lane & ~(width - 1)) + width ? lane : source);
}

// ---- votes ----

unsigned sim_ballot(const char *name, unsigned mask, int predicate);

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    return sim_ballot("__ballot_sync", mask, predicate);
}

static inline int __any_sync(unsigned mask, int predicate)
{
    return sim_ballot("__any_sync", mask, predicate) != 0;
}

static inline int __all_sync(unsigned mask, int predicate)
{
    return sim_ballot("__all_sync", mask, predicate) == mask;
}

static inline void __syncwarp(unsigned mask = 0xffffffffu)
{
    (void)sim_ballot("__syncwarp", mask, 0);
}

/* Each lane learns which lanes of the mask hold its value. */
unsigned sim_match(unsigned mask, uint64_t value);

template <typename T> unsigned __match_any_sync(unsigned mask, T value)
{
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return sim_match(mask, bits);
}

/* Sums and limits over the mask, of 32-bit integers. */
template <typename T, typename F> T sim_reduce(const char *name, unsigned mask, T value, F combine)
{
    for (int offset = 16; offset > 0; offset /= 2) {
        const T other = sim_shuffle_from(name, mask, value, (int)sim_place->lane ^ offset);
        value = combine(value, other);
    }
    if (mask != 0xffffffffu) {
        sim_fail("%s: the simulator has it for whole warps", name);
    }
    return value;
}

static inline unsigned __reduce_add_sync(unsigned mask, unsigned value)
{
    return sim_reduce("__reduce_add_sync", mask, value,
                      [](unsigned a, unsigned b) { return a + b; });
}

static inline unsigned __reduce_max_sync(unsigned mask, unsigned value)
{
    return sim_reduce("__reduce_max_sync", mask, value,
                      [](unsigned a, unsigned b) { return a > b ? a : b; });
}

static inline unsigned __reduce_min_sync(unsigned mask, unsigned value)
{
    return sim_reduce("__reduce_min_sync", mask, value,
                      [](unsigned a, unsigned b) { return a < b ? a : b; });
}

// ---- tensor cores ----

void sim_load_matrix_4(uint32_t r[4], const void *shared_row);
void sim_load_matrix_4_transposed(uint32_t r[4], const void *shared_row);
void sim_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]);
void sim_mma_i8(int32_t c[4], const uint32_t a[4], const uint32_t b[2]);

// ---- atomics: fibers change only at rendezvous, so that plain code is atomic ----

template <typename T> T sim_exchange(T *at, T value)
{
    const T old = *at;
    *at = value;
    return old;
}

#define SIM_ATOMICS(T)                                          \
    static inline T atomicAdd(T *at, T value)                   \
    {                                                           \
        return sim_exchange(at, (T)(*at + value));              \
    }                                                           \
    static inline T atomicMax(T *at, T value)                   \
    {                                                           \
        return sim_exchange(at, *at > value ? *at : value);     \
    }                                                           \
    static inline T atomicMin(T *at, T value)                   \
    {                                                           \
        return sim_exchange(at, *at < value ? *at : value);     \
    }                                                           \
    static inline T atomicExch(T *at, T value)                  \
    {                                                           \
        return sim_exchange(at, value);                         \
    }                                                           \
    static inline T atomicCAS(T *at, T expected, T value)       \
    {                                                           \
        return sim_exchange(at, *at == expected ? value : *at); \
    }                                                           \
    static inline T atomicOr(T *at, T value)                    \
    {                                                           \
        return sim_exchange(at, (T)(*at | value));              \
    }                                                           \
    static inline T atomicAnd(T *at, T value)                   \
    {                                                           \
        return sim_exchange(at, (T)(*at & value));              \
    }

SIM_ATOMICS(int)
SIM_ATOMICS(unsigned)
SIM_ATOMICS(unsigned long long)
#undef SIM_ATOMICS

static inline float atomicAdd(float *at, float value)
{
    return sim_exchange(at, *at + value);
}

static inline void __threadfence(void)
{
}

static inline void __threadfence_block(void)
{
}

template <typename T> T __ldg(const T *from)
{
    sim_check_aligned(from, alignof(T), "__ldg");
    return *from;
}

// ---- small arithmetic ----

template <typename To, typename From> To sim_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline float __uint_as_float(unsigned x)
{
    return sim_bits<float>(x);
}

static inline unsigned __float_as_uint(float x)
{
    return sim_bits<unsigned>(x);
}

static inline float __int_as_float(int x)
{
    return sim_bits<float>(x);
}

static inline int __float_as_int(float x)
{
    return sim_bits<int>(x);
}

/* Byte i of the result is the one that digit i of the selector names: 0 to 3 of x, 4 to 7 of y. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector)
{
    const uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned digit = selector >> 4 * i & 0xf;
        if (digit > 7) {
            sim_fail("__byte_perm: the simulator has no signs to repeat (selector %04x)", selector);
        }
        result |= (unsigned)(bytes >> 8 * digit & 0xff) << 8 * i;
    }
    return result;
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)(((uint64_t)a * b) >> 32);
}

/* Macros: the C library has these names for itself. */
#define __expf(x)  expf(x)
#define __logf(x)  logf(x)
#define __log2f(x) log2f(x)

static inline float rsqrtf(float x)
{
    return (float)(1.0 / sqrt((double)x));
}

static inline float __fdividef(float a, float b)
{
    return a / b;
}

static inline float __frcp_rn(float x)
{
    return 1.0f / x;
}

static inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}

static inline float __fadd_rn(float a, float b)
{
    return a + b;
}

static inline float __fsub_rn(float a, float b)
{
    return a - b;
}

static inline float __fmul_rn(float a, float b)
{
    return a * b;
}

static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline float __int2float_rn(int x)
{
    return (float)x;
}

static inline int __float2int_rd(float x)
{
    return (int)floorf(x);
}

static inline float __double2float_rn(double x)
{
    return (float)x;
}

#define SIM_LIMITS(T)             \
    static inline T min(T a, T b) \
    {                             \
        return b < a ? b : a;     \
    }                             \
    static inline T max(T a, T b) \
    {                             \
        return a < b ? b : a;     \
    }

SIM_LIMITS(int)
SIM_LIMITS(unsigned)
SIM_LIMITS(long)
SIM_LIMITS(long long)
SIM_LIMITS(unsigned long)
SIM_LIMITS(unsigned long long)
#undef SIM_LIMITS

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

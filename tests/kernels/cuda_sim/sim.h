/*
 * sim.h - a machine that runs kernels on the CPU, as kernels see it
 *
 * What:      include/kernels/cuda/device.cuh is written with this. The threads of a block are fibers; blocks run one after
 *            another, in random order. Between rendezvous (barriers, warp operations) fibers run in random order, so that
 *            a missing barrier shows as a wrong or poisoned result.
 *            What CUDA leaves undefined ends the process with a line on stderr that names kernel, block and seed:
 *            a warp operation that a lane of its mask does not take part in, a barrier some threads never reach or reach
 *            at another line, asynchronous copies to anywhere but aligned shared memory, writes past allocations.
 * Limits:    no two blocks are under way at once: a block that waits for another never ends. Blocks are whole warps.
 * Units:     KVASIR_SIM_SEED chooses the order (default 1); KVASIR_SIM_DEVICE the device, a100 (default), a10 or h100.
 * Thread:    any; kernels of different streams exclude each other.
 */
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include <functional>
#include <tuple>
#include <type_traits>

// ---- where a thread stands ----

struct sim_place {
    uint3 thread;
    uint32_t lane, warp;
};

extern const struct sim_place *sim_place; /* of the fiber that runs */
extern uint3 sim_block;
extern dim3 sim_block_size, sim_grid_size;

/* Ends the process: text, and where the machine stands. */
[[noreturn]] void sim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// ---- rendezvous ----

/* What a lane brings to an operation of its warp. The last lane of the mask to arrive calls run. */
struct sim_collective {
    const char *name; /* compared as an address: the same literal means the same operation */
    uint32_t mask;
    /* lanes[i] is NULL where lane i is not in the mask. */
    void (*run)(struct sim_collective *lanes[32]);
};

void sim_warp(struct sim_collective *call);

/* Returns the number of threads that came with a predicate other than 0. */
int sim_barrier(const char *file, int line, int predicate);

// ---- shared memory and asynchronous copies ----

void *sim_shared(void); /* the block's dynamic shared memory */
/* The first n_wanted of n_bytes, zeros behind them. */
void sim_async_copy(void *shared, const void *global, uint32_t n_bytes, uint32_t n_wanted);
void sim_async_commit(void);
void sim_async_wait(int pending);

/* Fails unless [p, p + n_bytes) is aligned to n_bytes. */
void sim_check_aligned(const void *p, uint32_t n_bytes, const char *what);
/* Fails unless [p, p + n_bytes) is shared memory, aligned to n_bytes. */
void sim_check_shared(const void *p, uint32_t n_bytes, const char *what);

// ---- launches ----

struct sim_launch {
    const char *name;
    const void *kernel;
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
};

/* Puts the launch into the stream's queue. */
void sim_launch(const struct sim_launch *launch, const std::function<void()> &run);

/* Fails unless a kernel may be handed the pointer: NULL or memory of cudaMalloc and its kin. */
void sim_check_argument(const struct sim_launch *launch, const void *pointer);

template <typename T> void sim_check_any_argument(const struct sim_launch *launch, const T &value)
{
    if constexpr (std::is_pointer_v<T>) {
        sim_check_argument(launch, reinterpret_cast<const void *>(value));
    }
}

/* The implicit conversions of a call, and no others. */
template <typename T> T sim_pass(T value)
{
    return value;
}

/* Arguments are converted and copied at the launch, as CUDA does it. */
template <typename... P, typename... A>
void sim_launch_kernel(struct sim_launch launch, void (*kernel)(P...), A &&...arguments)
{
    static_assert(sizeof...(P) == sizeof...(A), "number of kernel arguments");
    launch.kernel = reinterpret_cast<const void *>(kernel);
    std::tuple<std::decay_t<P>...> copy{sim_pass<std::decay_t<P>>(arguments)...};
    std::apply([&](const auto &...value) { (sim_check_any_argument(&launch, value), ...); }, copy);
    sim_launch(&launch, [kernel, copy] { std::apply(kernel, copy); });
}

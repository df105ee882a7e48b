/*
 * copy_strips.cu - rows of bytes from one stride to another, many strips in a launch
 *
 * Shapes:   a strip is n_rows rows of row_bytes, 2 GiB at most.
 * Mapping:  up to 64 strips travel in the kernel's parameters (3 KB of the 4 that every driver takes), so that nothing has to
 *           be uploaded or kept. Grid (parts, strips); threads take 16 bytes each where all of a strip is a
 *           multiple of 16, else 4, else one.
 *           Either side may be pinned host memory, which kernels reach over the bus: a block that is swapped is many strips, and each
 *           would be a copy of its own to the copy engine.
 * Numerics: bytes.
 * Cost:     memory bound: 2 * n_rows * row_bytes bytes a strip. (computed)
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

enum { THREADS = 256, STRIPS = 64, UNITS_PER_THREAD = 4 };

struct strips {
    strip items[STRIPS];
};

// ---- kernels ----

template <typename T> static __device__ __forceinline__ void copy_units(const strip &s)
{
    const uint32_t per_row = (uint32_t)s.row_bytes / (uint32_t)sizeof(T);
    const uint32_t n = per_row * (uint32_t)s.n_rows;
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < n; i += gridDim.x * THREADS) {
        const uint32_t row = i / per_row, at = i % per_row;
        const T *const from = reinterpret_cast<const T *>(static_cast<const char *>(s.from) +
                                                          row * s.from_stride_bytes);
        T *const to = reinterpret_cast<T *>(static_cast<char *>(s.to) + row * s.to_stride_bytes);
        to[at] = from[at];
    }
}

static __global__ void __launch_bounds__(THREADS) copy_strips(const __grid_constant__ strips all)
{
    const strip &s = all.items[blockIdx.y];
    const int64_t bits = (int64_t)(uintptr_t)s.from | (int64_t)(uintptr_t)s.to |
                         s.from_stride_bytes | s.to_stride_bytes | s.row_bytes;
    if (bits % 16 == 0) {
        copy_units<uint4>(s);
    } else if (bits % 4 == 0) {
        copy_units<uint32_t>(s);
    } else {
        copy_units<unsigned char>(s);
    }
}

// ---- launchers ----

/* Blocks that give each thread of the largest strip a few units. */
static unsigned n_parts(const struct backend_stream *stream, const strips *all, int n)
{
    int64_t most = 0;
    for (int i = 0; i < n; i++) {
        const int64_t size = all->items[i].row_bytes * all->items[i].n_rows;
        most = size > most ? size : most;
    }
    const int64_t wanted = most / (16 * THREADS * UNITS_PER_THREAD) + 1;
    const int64_t limit = 8 * (int64_t)stream->n_processors;
    return (unsigned)(wanted < limit ? wanted : limit);
}

extern "C" status_t cuda_copy_strips(struct backend_stream *stream, const struct strip *strips_in,
                                     int32_t n)
{
    strips all;
    int filled = 0;
    for (int32_t i = 0; i < n; i++) {
        const struct strip *const s = &strips_in[i];
        if (s->n_rows < 0 || s->row_bytes < 0 ||
            (s->n_rows > 0 && s->row_bytes > INT32_MAX / s->n_rows)) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "copy_strips: strip %d has %d rows of %lld bytes", i, s->n_rows,
                                 (long long)s->row_bytes);
        }
        if (s->n_rows > 0 && s->row_bytes > 0) {
            all.items[filled++] = *s;
        }
        if (filled == STRIPS || (i == n - 1 && filled > 0)) {
            const dim3 grid(n_parts(stream, &all, filled), (unsigned)filled);
            KVASIR_LAUNCH(copy_strips, grid, THREADS, 0, stream->stream, all);
            TRY(cuda_launched(stream, "copy_strips"));
            filled = 0;
        }
    }
    return status_ok();
}

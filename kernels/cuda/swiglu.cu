/*
 * swiglu.cu - out[i, j] = silu(gate_up[i, j]) * gate_up[i, F + j]
 *
 * Shapes:   gate_up [M, 2 F] (ld_in), out [M, F] (ld_out), bfloat16; out may be gate_up with the same ld.
 * Mapping:  blocks of 256 threads; a thread takes eight columns, grid (columns, rows).
 * Numerics: float32; exp through 2^x, error some 2^-22, far below the rounding to bfloat16.
 * Cost:     memory bound: 6 F bytes a row; 86 KB at F = 14336. 32 bytes under way a thread, 64 KB a multiprocessor. Expected:
 *           85-90 % of copy bandwidth from 1024 rows on. (computed)
 * Source:   Shazeer 2020, arXiv:2002.05202.
 */
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"

enum { THREADS = 256, MAX_GRID_ROWS = 65535 };

// ---- device helpers ----

static __device__ __forceinline__ float silu(float x)
{
    const float log2_e = 1.44269504f;
    return __fdividef(x, 1.0f + fast_exp2(-log2_e * x));
}

// ---- kernels ----

template <bool whole> static __global__ void __launch_bounds__(THREADS) swiglu(swiglu_args a)
{
    const int column = (int)(blockIdx.x * THREADS + threadIdx.x) * COLUMNS;
    if (column >= a.n_columns) {
        return;
    }
    const int n = a.n_columns - column;
    for (int row = (int)blockIdx.y; row < a.n_rows; row += (int)gridDim.y) {
        const bf16 *const gate = static_cast<const bf16 *>(a.gate_up) + row * a.ld_in + column;
        columns c = columns_get<whole>(gate, n);
        const columns up = columns_get<whole>(gate + a.n_columns, n);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            c.x[i] = silu(c.x[i]) * up.x[i];
        }
        columns_put<whole>(static_cast<bf16 *>(a.out) + row * a.ld_out + column, c, n);
    }
}

// ---- launchers ----

extern "C" status_t cuda_swiglu(struct backend_stream *stream, const struct swiglu_args *a)
{
    if (a->n_rows < 0 || a->n_columns < 0 || a->ld_in < 2 * (int64_t)a->n_columns ||
        a->ld_out < a->n_columns) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "swiglu: %d rows of %d columns, strides %lld and %lld", a->n_rows,
                             a->n_columns, (long long)a->ld_in, (long long)a->ld_out);
    }
    if (a->n_rows == 0 || a->n_columns == 0) {
        return status_ok(); // an empty grid is a launch error
    }
    const int n_chunks = (a->n_columns + COLUMNS - 1) / COLUMNS;
    const dim3 grid((unsigned)((n_chunks + THREADS - 1) / THREADS),
                    (unsigned)(a->n_rows < MAX_GRID_ROWS ? a->n_rows : MAX_GRID_ROWS));
    if (columns_aligned(a->gate_up, a->ld_in) && columns_aligned(a->out, a->ld_out) &&
        a->n_columns % COLUMNS == 0) {
        KVASIR_LAUNCH((swiglu<true>), grid, THREADS, 0, stream->stream, *a);
    } else {
        KVASIR_LAUNCH((swiglu<false>), grid, THREADS, 0, stream->stream, *a);
    }
    return cuda_launched(stream, "swiglu");
}

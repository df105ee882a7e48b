/*
 * embedding.cu - out[i, :] = table[ids[i] - row_begin, :], or zeros
 *
 * Shapes:   table [row_end - row_begin, D] in float32, float16 or bfloat16; ids [M]; out [M, D] float32.
 * Mapping:  blocks of 128 threads; a thread takes eight columns, grid (columns, rows).
 * Numerics: exact.
 * Cost:     memory bound: M * D * (sizeof element + 4) bytes; 24 KB a row at D = 4096. (computed)
 */
#include <cuda_fp16.h>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"

enum { THREADS = 128, MAX_GRID_ROWS = 65535 };

// ---- kernels ----

static __device__ __forceinline__ columns columns_load(const __half *from)
{
    const uint4 v = *reinterpret_cast<const uint4 *>(from);
    __half halves[COLUMNS];
    memcpy(halves, &v, sizeof halves);
    columns c;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        c.x[i] = __half2float(halves[i]);
    }
    return c;
}

template <bool whole, typename T>
static __global__ void __launch_bounds__(THREADS) embed(embedding_args a)
{
    const int column = (int)(blockIdx.x * THREADS + threadIdx.x) * COLUMNS;
    if (column >= a.n_columns) {
        return;
    }
    const int n = a.n_columns - column;
    for (int row = (int)blockIdx.y; row < a.n_rows; row += (int)gridDim.y) {
        int id = a.ids[row];
        if (id < 0 && id >= -a.n_drawn) {
            id = a.drawn[-1 - id];
        }
        columns c = {};
        if (id >= a.row_begin && id < a.row_end) {
            const T *const from = static_cast<const T *>(a.table) +
                                  (int64_t)(id - a.row_begin) * a.n_columns + column;
            if constexpr (whole) {
                c = columns_load(from);
            } else {
                c = columns_load_some(from, n);
            }
        }
        columns_put<whole>(a.out + (int64_t)row * a.n_columns + column, c, n);
    }
}

// ---- launchers ----

template <typename T> static void launch(struct backend_stream *stream, const embedding_args *a)
{
    const int n_chunks = (a->n_columns + COLUMNS - 1) / COLUMNS;
    const dim3 grid((unsigned)((n_chunks + THREADS - 1) / THREADS),
                    (unsigned)(a->n_rows < MAX_GRID_ROWS ? a->n_rows : MAX_GRID_ROWS));
    if (columns_aligned(a->table, a->n_columns) && columns_aligned(a->out, a->n_columns)) {
        KVASIR_LAUNCH((embed<true, T>), grid, THREADS, 0, stream->stream, *a);
    } else {
        KVASIR_LAUNCH((embed<false, T>), grid, THREADS, 0, stream->stream, *a);
    }
}

extern "C" status_t cuda_embedding(struct backend_stream *stream, const struct embedding_args *a)
{
    if (a->n_rows < 0 || a->n_columns < 1 || a->n_drawn < 0 || a->row_end < a->row_begin) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "embedding: %d rows of %d columns, table rows [%d, %d)", a->n_rows,
                             a->n_columns, a->row_begin, a->row_end);
    }
    if (a->n_rows == 0) {
        return status_ok(); // an empty grid is a launch error
    }
    switch (a->dtype) {
    case DTYPE_F32:
        launch<float>(stream, a);
        break;
    case DTYPE_F16:
        launch<__half>(stream, a);
        break;
    case DTYPE_BF16:
        launch<bf16>(stream, a);
        break;
    default:
        return status_errorf(STATUS_INVALID_ARGUMENT, "embedding: dtype %d", a->dtype);
    }
    return cuda_launched(stream, "embedding");
}

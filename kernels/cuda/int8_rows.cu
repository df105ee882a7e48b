/*
 * int8_rows.cu - rows of bfloat16 as int8 values with a scale, for products of int8 with int8
 *
 * Shapes:   x [M, n_in] bfloat16 (ld_x) -> room as int8_rows.h lays it out: a struct int8_row each, then the values.
 * Mapping:  a block of 256 threads a row. A thread takes eight columns at a time: once for the largest magnitude, once, out of the
 *           first-level cache, to round.
 * Numerics: as kernels/int8_rows.c, to the bit: magnitudes as integers, one division a row, one product and one rounding a value.
 * Cost:     memory bound: 3 n_in bytes a row, 12 KB at 4096. Two passes over one row and a barrier between: at few rows a launch and
 *           some 2 us; 4096 rows are 50 MB, 12 us at the H200's 4.3 TB/s. (computed)
 */
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matmul.h"
#include "kernels/int8_rows.h"

enum { THREADS = 256, WARPS = THREADS / KVASIR_WARP, MAX_GRID_ROWS = 65535 };

struct round_args {
    const bf16 *x; // [n_rows, n_in], ld_x
    int64_t ld_x;
    int32_t n_rows, n_in, n_padded; // values from n_in to n_padded become zeros
    struct int8_row *rows;
    int8_t *values;
};

// ---- device helpers ----

/* What all threads of the block get: the largest of theirs. */
static __device__ __forceinline__ unsigned block_max(unsigned mine, unsigned *of_warps)
{
    const unsigned of_warp = __reduce_max_sync(KVASIR_ALL, mine);
    __syncthreads(); // of_warps may still be read
    if (threadIdx.x % KVASIR_WARP == 0) {
        of_warps[threadIdx.x / KVASIR_WARP] = of_warp;
    }
    __syncthreads();
    unsigned most = of_warps[0];
    for (int i = 1; i < WARPS; i++) {
        most = max(most, of_warps[i]);
    }
    return most;
}

/* Four values, the first in the lowest byte; *sum grows by theirs. */
static __device__ __forceinline__ uint32_t round_4(const float *x, float factor, int *sum)
{
    const float one_and_a_half = 12582912.0f; // 1.5 * 2^23: its last bit is worth 1
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float rounded = __fadd_rn(__fmul_rn(x[i], factor), one_and_a_half);
        const int value = __float_as_int(rounded) - __float_as_int(one_and_a_half);
        *sum += value;
        word |= ((unsigned)value & 0xffu) << 8 * i;
    }
    return word;
}

// ---- kernels ----

template <bool whole> static __global__ void __launch_bounds__(THREADS) round_rows(round_args a)
{
    __shared__ unsigned of_warps[WARPS];
    for (int row = (int)blockIdx.x; row < a.n_rows; row += (int)gridDim.x) {
        const bf16 *const x = a.x + row * a.ld_x;
        const int first = (int)threadIdx.x * COLUMNS;
        unsigned mine = 0;
        for (int k = first; k < a.n_in; k += THREADS * COLUMNS) {
            const columns c = columns_get<whole>(x + k, a.n_in - k);
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                mine = max(mine, __float_as_uint(c.x[i]) & 0x7fffffffu);
            }
        }
        const unsigned bits = block_max(mine, of_warps);
        const float largest = __uint_as_float(bits);
        const bool finite = bits < 0x7f800000u, rounds = finite && largest >= INT8_SMALLEST;
        const float factor = rounds ? __fdiv_rn(INT8_LARGEST, largest) : 0.0f;
        int sum = 0;
        for (int k = first; k < a.n_padded; k += THREADS * COLUMNS) {
            columns c = {};
            if (rounds && k < a.n_in) {
                c = columns_get<whole>(x + k, a.n_in - k);
            }
            const uint2 words =
                make_uint2(round_4(c.x, factor, &sum), round_4(c.x + 4, factor, &sum));
            *reinterpret_cast<uint2 *>(a.values + (int64_t)row * a.n_padded + k) = words;
        }
        // Sums of warps as unsigned: modulo 2^32 they are those of signed numbers.
        const unsigned of_warp = __reduce_add_sync(KVASIR_ALL, (unsigned)sum);
        __syncthreads(); // all have read the largest
        if (threadIdx.x % KVASIR_WARP == 0) {
            of_warps[threadIdx.x / KVASIR_WARP] = of_warp;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            unsigned all = 0;
            for (int i = 0; i < WARPS; i++) {
                all += of_warps[i];
            }
            const float scale = rounds ? __fdiv_rn(largest, INT8_LARGEST)
                                       : (finite ? 0.0f : __uint_as_float(0x7fc00000u));
            a.rows[row] = {scale, (int32_t)all};
        }
    }
}

// ---- launchers ----

extern "C" status_t cuda_int8_rows(struct backend_stream *stream, const struct matmul_args *call)
{
    round_args a = {};
    a.x = (const bf16 *)call->x;
    a.ld_x = call->ld_x;
    a.n_rows = call->n_rows;
    a.n_in = call->weight->n_in;
    a.n_padded = (int32_t)int8_rows_stride(a.n_in);
    a.rows = (struct int8_row *)call->scratch;
    a.values = (int8_t *)call->scratch + int8_rows_offset(a.n_rows);
    const unsigned grid = (unsigned)(a.n_rows < MAX_GRID_ROWS ? a.n_rows : MAX_GRID_ROWS);
    if (columns_aligned(a.x, a.ld_x) && a.n_in % COLUMNS == 0) {
        KVASIR_LAUNCH((round_rows<true>), grid, THREADS, 0, stream->stream, a);
    } else {
        KVASIR_LAUNCH((round_rows<false>), grid, THREADS, 0, stream->stream, a);
    }
    return cuda_launched(stream, "int8 rows");
}

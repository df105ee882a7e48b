/*
 * matmul_i8_small.cu - y = x W^T over int8 weights for up to 32 rows of x: the weights stream past once
 *
 * Shapes:   x [M, n_in] bfloat16 (ld_x), or int8 with scales; M in 1..32; W [n_out, n_in] int8, rows of ld elements that end in zeros,
 *           scales [n_out]; y [M, n_out] float32 or bfloat16 (ld_y). Any n_out, n_in.
 * Mapping:  a block computes 16 outputs of every row with 8 warps, a slice of the columns each; what the warps have is added up in shared
 *           memory. A warp's work on a chunk of 64 columns is matmul_i8.cuh's, for one, two or four groups of 8 rows.
 * Numerics: see matmul_i8.cuh: one order whatever M.
 * Cost:     computed, not measured: n_out n_in bytes once, past the first-level cache, half of bfloat16's; x once a block out of the
 *           second level: at 32 rows of bfloat16 4 times the weights' bytes, at 8 rows as many. A warp has 8 loads of 16 bytes a lane under
 *           way, 4 KB, and blocks of 8 warps leave 16 warps or more a processor: 64 KB, where 4.3 TB/s x 750 ns over 132 processors
 *           (H200) needs 24 KB. 4096 x 4096 is 16.8 MB, 3.9 us at the H200's 4.3 TB/s; aim 85 % of that rate up to 8 rows. Widening:
 *           8 instructions for 4 weights, 2 a weight; at 4.3 G weights a ms 132 processors issue 0.9 G warp instructions a ms, and need
 *           0.27 G for it.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_i8.cuh"

enum {
    TILE = 16,  /* outputs of a block */
    GROUP = 8,  /* rows of x of an mma */
    CHUNKS = 4, /* loaded before the first is used */
    THREADS = SLICES * KVASIR_WARP,
};

// ---- kernel ----

template <typename kind, int groups, typename out_t>
static __global__ void __launch_bounds__(THREADS) matmul_i8_small(const i8_args a)
{
    typedef typename kind::sum_t sum_t;
    __shared__ sum_t
        partial[SLICES][groups * GROUP][TILE + 1]; // + 1: lanes of a warp write to different banks
    const int32_t lane = (int32_t)(threadIdx.x % KVASIR_WARP);
    const int32_t slice = (int32_t)(threadIdx.x / KVASIR_WARP);
    const int32_t g = lane / 4, t = lane % 4;
    const int32_t first = (int32_t)blockIdx.x * TILE;
    // Outputs past the last one repeat it, and are not stored; rows of x past the last one are zeros.
    const int8_t *const low = a.weight + (int64_t)min(first + g, a.n_out - 1) * a.ld;
    const int8_t *const high = a.weight + (int64_t)min(first + g + 8, a.n_out - 1) * a.ld;
    const uint4 zeros = make_uint4(0, 0, 0, 0);
    const int32_t n_chunks = i8_slice_chunks(a.n_in);
    const int32_t end = min((slice + 1) * n_chunks * CHUNK, a.n_in);

    sum_t sums[groups][4] = {};
    for (int32_t piece = slice * n_chunks * CHUNK; piece < end; piece += CHUNKS * CHUNK) {
        uint4 w_low[CHUNKS], w_high[CHUNKS];
#pragma unroll
        for (int32_t i = 0; i < CHUNKS; i++) {
            const int32_t k = piece + i * CHUNK + 16 * t;
            w_low[i] = k < end ? load_once(low + k) : zeros;
            w_high[i] = k < end ? load_once(high + k) : zeros;
        }
#pragma unroll
        for (int32_t i = 0; i < CHUNKS; i++) {
            const int32_t k = piece + i * CHUNK + 16 * t;
            const typename kind::weights w = kind::prepare(w_low[i], w_high[i]);
#pragma unroll
            for (int32_t r = 0; r < groups; r++) {
                const int32_t row = r * GROUP + g;
                typename kind::columns_of_x x = {};
                if (row < a.n_rows && k < end) {
                    x = kind::load(a, row, k);
                }
                kind::multiply(sums[r], w, x);
            }
        }
    }
#pragma unroll
    for (int32_t r = 0; r < groups; r++) {
#pragma unroll
        for (int32_t i = 0; i < 4; i++) {
            partial[slice][r * GROUP + 2 * t + i % 2][g + i / 2 * 8] = sums[r][i];
        }
    }
    __syncthreads();

    for (int32_t i = (int32_t)threadIdx.x; i < groups * GROUP * TILE; i += THREADS) {
        const int32_t row = i / TILE, output = first + i % TILE;
        if (row < a.n_rows && output < a.n_out) {
            sum_t sum = partial[0][row][i % TILE];
            for (int32_t s = 1; s < SLICES; s++) {
                sum += partial[s][row][i % TILE];
            }
            row_store(static_cast<out_t *>(a.y) + row * a.ld_y + output,
                      kind::finish(a, sum, output, row));
        }
    }
}

// ---- launchers ----

template <typename kind, int groups>
static void launch(const struct backend_stream *stream, const i8_args *a, int out_dtype)
{
    const unsigned n_blocks = ((unsigned)a->n_out + TILE - 1) / TILE;
    if (out_dtype == DTYPE_F32) {
        KVASIR_LAUNCH((matmul_i8_small<kind, groups, float>), n_blocks, THREADS, 0, stream->stream,
                      *a);
    } else {
        KVASIR_LAUNCH((matmul_i8_small<kind, groups, bf16>), n_blocks, THREADS, 0, stream->stream,
                      *a);
    }
}

template <typename kind>
static void launch_rows(const struct backend_stream *stream, const i8_args *a, int out_dtype)
{
    if (a->n_rows <= GROUP) {
        launch<kind, 1>(stream, a, out_dtype);
    } else if (a->n_rows <= 2 * GROUP) {
        launch<kind, 2>(stream, a, out_dtype);
    } else {
        launch<kind, 4>(stream, a, out_dtype);
    }
}

extern "C" status_t cuda_matmul_i8_small(struct backend_stream *stream,
                                         const struct matmul_args *call)
{
    const i8_args a = i8_args_of(call);
    if (a.n_rows < 1 || a.n_rows > CUDA_MATMUL_I8_SMALL_ROWS) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matmul: %d rows, the small kernel takes %d",
                             a.n_rows, CUDA_MATMUL_I8_SMALL_ROWS);
    }
    if (a.rows != NULL) {
        launch_rows<i8_rows>(stream, &a, call->out_dtype);
    } else {
        launch_rows<bf16_rows>(stream, &a, call->out_dtype);
    }
    return cuda_launched(stream, "matmul");
}

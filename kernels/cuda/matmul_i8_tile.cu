/*
 * matmul_i8_tile.cu - y = x W^T over int8 weights for many rows of x
 *
 * Shapes:   as matmul_i8_small.cu, any M.
 * Mapping:  a block of 8 warps computes 128 outputs of 64 rows (bfloat16 x) or 128 rows (int8 x); four warps side by side over the outputs, two
 *           over the rows, 32 outputs each. Chunks of 64 columns go through three stages of shared memory, two of them under way while
 *           one is multiplied: 8 KB of W and 8 KB of x each, 48 KB, so that two blocks fit a processor. A lane's 16 bytes of a row are what
 *           matmul_i8.cuh wants, so that fragments are plain vector loads: 8 lanes read two rows of 64 bytes, all banks once. Rows of 128
 *           bytes of x are stored with their 16-byte columns exchanged in pairs in odd rows, for the same reason.
 * Numerics: see matmul_i8.cuh: sums of bfloat16 rows are put aside at the end of each slice.
 * Cost:     computed, not measured. int8 x: 2 M N K operations; a warp's chunk is 32 mma.m16n8k32, 256 cycles of its tensor core on sm_80,
 *           beside 12 vector loads, 384 of 512 cycles of the block's shared memory: some 60-65 % of 624 TOPS, 1.5 times cuBLAS's bfloat16. bfloat16
 *           x: as many operations as bfloat16 weights, and 8 instructions for 4 weights to widen them, twice over as two warps share them: 128
 *           beside 32 mma of 8 cycles each; expected 50-60 % of 312 TF. Its use is the memory saved, and prompts of a few hundred rows.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_i8.cuh"

enum {
    THREADS = 256,
    STAGES = 3,
    OUTPUTS = 128,        /* of a block */
    WARPS_OF_OUTPUTS = 4, /* beside each other */
    MS = 2,               /* 16 outputs each, of a warp */
    STAGE_BYTES = 16384,
    W_BYTES = OUTPUTS * CHUNK, /* of a stage; x is behind it */
};

/* 8 rows of x each, of a warp. */
template <typename kind> struct tile_of;

template <> struct tile_of<bf16_rows> {
    enum { NS = 4, ROWS = 2 * 8 * NS };
};

template <> struct tile_of<i8_rows> {
    enum { NS = 8, ROWS = 2 * 8 * NS };
};

// ---- device helpers ----

static __device__ __forceinline__ void load_weights(const i8_args &a, unsigned char *stage,
                                                    int32_t first, int32_t k)
{
#pragma unroll
    for (int32_t i = (int32_t)threadIdx.x; i < OUTPUTS * 4; i += THREADS) {
        const int32_t output = first + i / 4, column = k + i % 4 * 16;
        const bool wanted = output < a.n_out && column < a.n_in;
        async_copy_16(stage + i * 16, wanted ? a.weight + output * a.ld + column : a.weight,
                      wanted);
    }
}

static __device__ __forceinline__ void load_rows(const i8_args &a, const i8_rows *,
                                                 unsigned char *stage, int32_t first, int32_t k)
{
    const int8_t *const x = static_cast<const int8_t *>(a.x);
#pragma unroll
    for (int32_t i = (int32_t)threadIdx.x; i < tile_of<i8_rows>::ROWS * 4; i += THREADS) {
        const int32_t row = first + i / 4, column = k + i % 4 * 16;
        const bool wanted = row < a.n_rows && column < a.n_in;
        async_copy_16(stage + i * 16, wanted ? x + row * a.ld_x + column : x, wanted);
    }
}

/* Where 16 bytes of a row of 128 lie. */
static __device__ __forceinline__ int32_t exchanged(int32_t row, int32_t column)
{
    return row * 128 + ((column ^ (row & 1)) * 16);
}

static __device__ __forceinline__ void load_rows(const i8_args &a, const bf16_rows *,
                                                 unsigned char *stage, int32_t first, int32_t k)
{
    const bf16 *const x = static_cast<const bf16 *>(a.x);
#pragma unroll
    for (int32_t i = (int32_t)threadIdx.x; i < tile_of<bf16_rows>::ROWS * 8; i += THREADS) {
        const int32_t row = first + i / 8, column = k + i % 8 * 8;
        unsigned char *const to = stage + exchanged(i / 8, i % 8);
        const bool wanted = row < a.n_rows && column < a.n_in;
        const bf16 *const from = wanted ? x + row * a.ld_x : x;
        if (!wanted || (a.x_is_aligned && column + 8 <= a.n_in)) {
            async_copy_16(to, wanted ? (const void *)(from + column) : (const void *)a.weight,
                          wanted);
        } else {
            *reinterpret_cast<uint4 *>(to) = row_load_8(from, column, a.n_in, a.x_is_aligned);
        }
    }
}

static __device__ __forceinline__ i8_rows::columns_of_x
take_x(const i8_rows *, const unsigned char *stage, int32_t row, int32_t t)
{
    return {*reinterpret_cast<const uint4 *>(stage + row * CHUNK + 16 * t)};
}

static __device__ __forceinline__ bf16_rows::columns_of_x
take_x(const bf16_rows *, const unsigned char *stage, int32_t row, int32_t t)
{
    return {{*reinterpret_cast<const uint4 *>(stage + exchanged(row, 2 * t)),
             *reinterpret_cast<const uint4 *>(stage + exchanged(row, 2 * t + 1))}};
}

template <int NS>
static __device__ __forceinline__ void put_aside(float sums[MS][NS][4], float totals[MS][NS][4])
{
#pragma unroll
    for (int32_t i = 0; i < MS * NS * 4; i++) {
        const int32_t m = i / (NS * 4), n = i / 4 % NS;
        totals[m][n][i % 4] += sums[m][n][i % 4];
        sums[m][n][i % 4] = 0.0f;
    }
}

template <int NS>
static __device__ __forceinline__ void put_aside(int32_t sums[MS][NS][4], int32_t totals[MS][NS][4])
{
    (void)sums;
    (void)totals;
}

static __device__ __forceinline__ float result(float sum, float total)
{
    (void)sum;
    return total;
}

static __device__ __forceinline__ int32_t result(int32_t sum, int32_t total)
{
    (void)total;
    return sum;
}

/* A chunk: the warp's 32 outputs of its rows. */
template <typename kind, int NS>
static __device__ __forceinline__ void multiply_chunk(const unsigned char *stage,
                                                      int32_t warp_output, int32_t warp_row,
                                                      typename kind::sum_t sums[MS][NS][4])
{
    const int32_t lane = (int32_t)(threadIdx.x % KVASIR_WARP), g = lane / 4, t = lane % 4;
    typename kind::weights w[MS];
#pragma unroll
    for (int32_t m = 0; m < MS; m++) {
        const unsigned char *const low = stage + (warp_output + m * 16 + g) * CHUNK + 16 * t;
        w[m] = kind::prepare(*reinterpret_cast<const uint4 *>(low),
                             *reinterpret_cast<const uint4 *>(low + 8 * CHUNK));
    }
#pragma unroll
    for (int32_t n = 0; n < NS; n++) {
        const typename kind::columns_of_x x =
            take_x(static_cast<const kind *>(nullptr), stage + W_BYTES, warp_row + n * 8 + g, t);
#pragma unroll
        for (int32_t m = 0; m < MS; m++) {
            kind::multiply(sums[m][n], w[m], x);
        }
    }
}

// ---- kernel ----

template <typename kind, typename out_t>
static __global__ void __launch_bounds__(THREADS, 2) matmul_i8_tile(const i8_args a)
{
    enum { NS = tile_of<kind>::NS, ROWS = tile_of<kind>::ROWS };

    KVASIR_SHARED(stages);
    const kind *const rows = nullptr;
    const int32_t lane = (int32_t)(threadIdx.x % KVASIR_WARP), g = lane / 4, t = lane % 4;
    const int32_t warp = (int32_t)(threadIdx.x / KVASIR_WARP);
    const int32_t first_row = (int32_t)blockIdx.x * ROWS;
    const int32_t first_output = (int32_t)blockIdx.y * OUTPUTS;
    const int32_t warp_output = warp % WARPS_OF_OUTPUTS * 16 * MS;
    const int32_t warp_row = warp / WARPS_OF_OUTPUTS * 8 * NS;
    const int32_t n_chunks = i8_chunks(a.n_in), n_slice = i8_slice_chunks(a.n_in);

    typename kind::sum_t sums[MS][NS][4] = {}, totals[MS][NS][4] = {};
    for (int32_t c = 0; c < STAGES - 1; c++) {
        if (c < n_chunks) {
            load_weights(a, stages + c * STAGE_BYTES, first_output, c * CHUNK);
            load_rows(a, rows, stages + c * STAGE_BYTES + W_BYTES, first_row, c * CHUNK);
        }
        async_commit();
    }
    int32_t left = n_slice;
    for (int32_t c = 0; c < n_chunks; c++) {
        async_wait<STAGES - 2>();
        __syncthreads(); // chunk c is there, and all have done with the stage that is filled next
        const int32_t next = c + STAGES - 1;
        if (next < n_chunks) {
            unsigned char *const stage = stages + next % STAGES * STAGE_BYTES;
            load_weights(a, stage, first_output, next * CHUNK);
            load_rows(a, rows, stage + W_BYTES, first_row, next * CHUNK);
        }
        async_commit();
        multiply_chunk<kind, NS>(stages + c % STAGES * STAGE_BYTES, warp_output, warp_row, sums);
        if (--left == 0 || c == n_chunks - 1) {
            put_aside<NS>(sums, totals);
            left = n_slice;
        }
    }
#pragma unroll
    for (int32_t i = 0; i < MS * NS * 4; i++) {
        const int32_t m = i / (NS * 4), n = i / 4 % NS, c = i % 4;
        const int32_t output = first_output + warp_output + m * 16 + g + c / 2 * 8;
        const int32_t row = first_row + warp_row + n * 8 + 2 * t + c % 2;
        if (row < a.n_rows && output < a.n_out) {
            row_store(static_cast<out_t *>(a.y) + row * a.ld_y + output,
                      kind::finish(a, result(sums[m][n][c], totals[m][n][c]), output, row));
        }
    }
}

// ---- launchers ----

template <typename kind>
static void launch(const struct backend_stream *stream, const i8_args *a, int out_dtype)
{
    const dim3 grid(((unsigned)a->n_rows + tile_of<kind>::ROWS - 1) / tile_of<kind>::ROWS,
                    ((unsigned)a->n_out + OUTPUTS - 1) / OUTPUTS);
    if (out_dtype == DTYPE_F32) {
        KVASIR_LAUNCH((matmul_i8_tile<kind, float>), grid, THREADS, STAGES * STAGE_BYTES,
                      stream->stream, *a);
    } else {
        KVASIR_LAUNCH((matmul_i8_tile<kind, bf16>), grid, THREADS, STAGES * STAGE_BYTES,
                      stream->stream, *a);
    }
}

extern "C" status_t cuda_matmul_i8_tile(struct backend_stream *stream,
                                        const struct matmul_args *call)
{
    const i8_args a = i8_args_of(call);
    if (a.rows != NULL) {
        launch<i8_rows>(stream, &a, call->out_dtype);
    } else {
        launch<bf16_rows>(stream, &a, call->out_dtype);
    }
    return cuda_launched(stream, "matmul");
}

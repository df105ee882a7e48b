/*
 * matmul_small.cu - y = x W^T for up to eight rows of x: the weights stream past once
 *
 * Shapes:   x [M, n_in] bfloat16 (ld_x), M in 1..8; W [n_out, n_in] bfloat16, rows of ld elements that end in zeros;
 *           y [M, n_out] float32 or bfloat16 (ld_y). Any n_out, n_in.
 * Mapping:  a block computes 16 outputs of every row with 4, 8 or 16 warps. A warp takes every so many-th piece of 128 columns;
 *           what the warps have is added up in shared memory. In mma.m16n8k16 the 16 weight rows are A and the eight rows
 *           of x are B, so that a ninth of the tensor cores does for any M what took M multiply-adds a weight, and no
 *           thread keeps M sums. Which k a lane brings is free as long as A and B agree: lane 4g + t loads 16 bytes, columns
 *           8t .. 8t+7 of each 32, of rows g and g + 8 of W and of row g of x. They are the fragments of two mma:
 *
 *               columns of the 32        8t, 8t+1    8t+2, 8t+3    8t+4, 8t+5    8t+6, 8t+7
 *               first mma, k =           2t, 2t+1    2t+8, 2t+9
 *               second mma, k =                                    2t, 2t+1      2t+8, 2t+9
 *
 * Numerics: float32 sums, in an order fixed by n_out, n_in and the device: rows of x do not meet, and M does not matter, so a
 *           row's bits are the same with any others beside it.
 * Cost:     computed, not measured: 2 n_out n_in bytes once, past the first-level cache, and x once a block, out of it. A warp has 8
 *           loads of 16 bytes a lane under way, 4 KB; 12 to 24 warps a processor are 48 to 96 KB, where 4.3 TB/s x 750 ns over 132
 *           processors (H200) needs 24 KB and 1.8 TB/s over 108 (A100) 12 KB. 4096 x 4096 is 33.5 MB, 7.8 us at the H200's
 *           4.3 TB/s; aim 88-92 % of that rate. Tensor cores: 2 mma per KB of weights, under 5 % of theirs.
 * Layout:   int8 weights are matmul_i8_small.cu's.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_rows.cuh"

enum {
    TILE = 16,    /* outputs of a block */
    MAX_ROWS = 8, /* columns of an mma's B */
    CHUNK = 32,   /* columns of two mma: four lanes of 16 bytes */
    CHUNKS = 4,   /* of a piece: loaded before the first is used */
    PIECE = CHUNK * CHUNKS,
};

struct small_args {
    const bf16 *weight; // [n_out, ld]
    const bf16 *x;      // [n_rows, n_in], ld_x
    void *y;            // [n_rows, n_out], ld_y
    int64_t ld, ld_x, ld_y;
    int32_t n_out, n_in, n_rows;
    int32_t x_is_aligned; // rows of x begin at multiples of 16 bytes
};

// ---- device helpers ----

/* sums += the 16 x 8 products of 32 columns. low, high: rows g and g + 8 of W. */
static __device__ __forceinline__ void multiply(float sums[4], uint4 low, uint4 high, uint4 x)
{
    const uint32_t a0[4] = {low.x, high.x, low.y, high.y};
    const uint32_t a1[4] = {low.z, high.z, low.w, high.w};
    const uint32_t b0[2] = {x.x, x.y};
    const uint32_t b1[2] = {x.z, x.w};
    mma_bf16(sums, a0, b0);
    mma_bf16(sums, a1, b1);
}

// ---- kernel ----

template <int warps, typename out_t>
__global__ void __launch_bounds__(warps *KVASIR_WARP) matmul_small(const struct small_args a)
{
    __shared__ float partial[warps][MAX_ROWS]
                            [TILE + 1]; // + 1: lanes of a warp write to different banks
    const int32_t lane = (int32_t)(threadIdx.x % KVASIR_WARP);
    const int32_t warp = (int32_t)(threadIdx.x / KVASIR_WARP);
    const int32_t g = lane / 4, t = lane % 4;
    const int32_t first = (int32_t)blockIdx.x * TILE;
    // Outputs past the last one repeat it, and are not stored; rows of x past the last one are zeros.
    const bf16 *const low = a.weight + (int64_t)min(first + g, a.n_out - 1) * a.ld;
    const bf16 *const high = a.weight + (int64_t)min(first + g + 8, a.n_out - 1) * a.ld;
    const bf16 *const x = a.x + (int64_t)min(g, a.n_rows - 1) * a.ld_x;
    const bool has_x = g < a.n_rows;
    const uint4 zeros = make_uint4(0, 0, 0, 0);

    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int32_t piece = warp * PIECE; piece < a.n_in; piece += warps * PIECE) {
        uint4 w_low[CHUNKS], w_high[CHUNKS];
#pragma unroll
        for (int32_t i = 0; i < CHUNKS; i++) {
            const int32_t k = piece + i * CHUNK + 8 * t;
            w_low[i] = k < a.n_in ? load_once(low + k) : zeros;
            w_high[i] = k < a.n_in ? load_once(high + k) : zeros;
        }
#pragma unroll
        for (int32_t i = 0; i < CHUNKS; i++) {
            const int32_t k = piece + i * CHUNK + 8 * t;
            multiply(sums, w_low[i], w_high[i],
                     has_x && k < a.n_in ? row_load_8(x, k, a.n_in, a.x_is_aligned) : zeros);
        }
    }
    partial[warp][2 * t][g] = sums[0];
    partial[warp][2 * t + 1][g] = sums[1];
    partial[warp][2 * t][g + 8] = sums[2];
    partial[warp][2 * t + 1][g + 8] = sums[3];
    __syncthreads();

    const int32_t i = (int32_t)threadIdx.x, row = i / TILE, output = first + i % TILE;
    if (row < a.n_rows && output < a.n_out) {
        float sum = partial[0][row][i % TILE];
        for (int32_t w = 1; w < warps; w++) {
            sum += partial[w][row][i % TILE];
        }
        row_store((out_t *)a.y + row * a.ld_y + output, sum);
    }
}

// ---- launchers ----

template <int warps>
static void launch(const struct backend_stream *stream, const struct small_args *args,
                   int out_dtype)
{
    const unsigned n_blocks = ((unsigned)args->n_out + TILE - 1) / TILE;
    if (out_dtype == DTYPE_F32) {
        KVASIR_LAUNCH((matmul_small<warps, float>), n_blocks, warps * KVASIR_WARP, 0,
                      stream->stream, *args);
    } else {
        KVASIR_LAUNCH((matmul_small<warps, bf16>), n_blocks, warps * KVASIR_WARP, 0, stream->stream,
                      *args);
    }
}

/*
 * The fewest that make 12 warps a processor (48 KB under way), so that each has a long way to go; not more than have a piece
 * each. Does not look at the rows of x.
 */
static int warps_of_block(const struct backend_stream *stream, const struct matrix *w)
{
    const int64_t n_blocks = (w->n_out + TILE - 1) / TILE;
    const int64_t wanted = (int64_t)stream->n_processors * 12;
    if (n_blocks * 4 >= wanted || w->n_in <= 4 * PIECE) {
        return 4;
    }
    return n_blocks * 8 >= wanted || w->n_in <= 8 * PIECE ? 8 : 16;
}

extern "C" status_t cuda_matmul_small(struct backend_stream *stream, const struct matmul_args *a)
{
    const struct matrix *const w = a->weight;
    struct small_args args = {};
    args.weight = (const bf16 *)w->data;
    args.x = (const bf16 *)a->x;
    args.y = a->out;
    args.ld = w->ld;
    args.ld_x = a->ld_x;
    args.ld_y = a->ld_out;
    args.n_out = w->n_out;
    args.n_in = w->n_in;
    args.n_rows = a->n_rows;
    args.x_is_aligned = (uintptr_t)a->x % 16 == 0 && a->ld_x % 8 == 0;
    if (a->n_rows < 1 || a->n_rows > CUDA_MATMUL_SMALL_ROWS) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "matmul: %d rows, the small kernel takes %d",
                             a->n_rows, CUDA_MATMUL_SMALL_ROWS);
    }
    switch (warps_of_block(stream, w)) {
    case 4:
        launch<4>(stream, &args, a->out_dtype);
        break;
    case 8:
        launch<8>(stream, &args, a->out_dtype);
        break;
    default:
        launch<16>(stream, &args, a->out_dtype);
    }
    return cuda_launched(stream, "matmul");
}

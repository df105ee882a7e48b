/*
 * probes.cu - see probes.h
 */
#include "tests/kernels/cuda_sim/probes.h"

#include "kernels/cuda/device.cuh"

enum { MAX_N = 256 };

template <bool with_barrier>
static __global__ void reverse(const float *__restrict__ in, float *__restrict__ out, int n)
{
    __shared__ float values[MAX_N];
    KVASIR_SHARED(raw);
    float *const sums = reinterpret_cast<float *>(raw);
    const int i = (int)threadIdx.x;
    values[i] = in[i];
    const float sum = warp_sum(in[i]);
    if (i % KVASIR_WARP == 0) {
        sums[i / KVASIR_WARP] = sum;
    }
    if (with_barrier) {
        __syncthreads();
    }
    out[i] = values[n - 1 - i] + sums[i / KVASIR_WARP];
}

extern "C" void probe_reverse(cudaStream_t stream, const float *in, float *out, int n)
{
    KVASIR_LAUNCH((reverse<true>), 1, n, MAX_N, stream, in, out, n);
}

extern "C" void probe_race(cudaStream_t stream, const float *in, float *out, int n)
{
    KVASIR_LAUNCH((reverse<false>), 1, n, MAX_N, stream, in, out, n);
}

static __global__ void multiply(const uint16_t *__restrict__ a, const uint16_t *__restrict__ b,
                                float *__restrict__ c)
{
    __shared__ __align__(16) uint16_t tile_a[16][16], tile_b[8][16];
    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    for (int i = lane; i < 16 * 16; i += KVASIR_WARP) {
        tile_a[i / 16][i % 16] = a[i];
    }
    for (int i = lane; i < 8 * 16; i += KVASIR_WARP) {
        tile_b[i / 16][i % 16] = b[i];
    }
    __syncwarp();
    uint32_t fa[4], fb[4];
    // Matrices of A: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15. Of B: columns 0-7, 8-15, twice.
    load_matrix_4(fa, &tile_a[lane % 16][lane / 16 * 8]);
    load_matrix_4(fb, &tile_b[lane % 8][lane / 8 % 2 * 8]);
    float acc[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t],
                    c[(g + 8) * 8 + 2 * t + 1]};
    mma_bf16(acc, fa, fb);
    for (int i = 0; i < 4; i++) {
        c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = acc[i];
    }
}

extern "C" void probe_mma(cudaStream_t stream, const uint16_t *a, const uint16_t *b, float *c)
{
    KVASIR_LAUNCH(multiply, 1, KVASIR_WARP, 0, stream, a, b, c);
}

static __device__ uint32_t four_of(const int8_t *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static __global__ void multiply_i8(const int8_t *a, const int8_t *b, int32_t *c)
{
    enum { K = 32 };

    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    const int8_t *const low = a + g * K + 4 * t, *const high = a + (g + 8) * K + 4 * t;
    const uint32_t fa[4] = {four_of(low), four_of(high), four_of(low + 16), four_of(high + 16)};
    const uint32_t fb[2] = {four_of(b + g * K + 4 * t), four_of(b + g * K + 4 * t + 16)};
    int32_t acc[4];
    for (int i = 0; i < 4; i++) {
        acc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    }
    mma_i8(acc, fa, fb);
    for (int i = 0; i < 4; i++) {
        c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = acc[i];
    }
}

extern "C" void probe_mma_i8(cudaStream_t stream, const int8_t *a, const int8_t *b, int32_t *c)
{
    KVASIR_LAUNCH(multiply_i8, 1, KVASIR_WARP, 0, stream, a, b, c);
}

static __global__ void bytes(const uint32_t *in, uint32_t *out)
{
    out[0] = __byte_perm(in[0], in[1], 0x6250);
    out[1] = fma_bf16_pair(in[1], in[2], in[3]);
}

extern "C" void probe_bytes(cudaStream_t stream, const uint32_t in[4], uint32_t out[2])
{
    KVASIR_LAUNCH(bytes, 1, KVASIR_WARP, 0, stream, in, out);
}

static __global__ void load_matrices(const uint16_t *in, uint32_t *out, int transposed)
{
    KVASIR_SHARED(raw);
    uint16_t *const rows = reinterpret_cast<uint16_t *>(raw);
    const int lane = (int)threadIdx.x;
    for (int i = 0; i < 8; i++) {
        rows[lane * 8 + i] = in[lane * 8 + i];
    }
    __syncwarp();
    uint32_t r[4];
    if (transposed) {
        load_matrix_4_transposed(r, rows + lane * 8);
    } else {
        load_matrix_4(r, rows + lane * 8);
    }
    for (int i = 0; i < 4; i++) {
        out[lane * 4 + i] = r[i];
    }
}

extern "C" void probe_ldmatrix(cudaStream_t stream, const uint16_t *in, uint32_t *out,
                               int transposed)
{
    KVASIR_LAUNCH(load_matrices, 1, KVASIR_WARP, 32 * 16, stream, in, out, transposed);
}

/* Two groups in flight; each thread reads what its neighbour has copied. */
template <bool with_wait>
static __global__ void copy_async(const float *__restrict__ in, float *__restrict__ out, int n,
                                  int n_wanted)
{
    __shared__ __align__(16) float tiles[2][4 * KVASIR_WARP];
    const int lane = (int)threadIdx.x, step = 4 * KVASIR_WARP;
    for (int i = 0; i <= n / step; i++) {
        if (i < n / step) {
            const int at = i * step + 4 * lane;
            async_copy_16(&tiles[i % 2][4 * lane], in + at, at < n_wanted);
        }
        async_commit();
        if (i == 0) {
            continue;
        }
        if (with_wait) {
            async_wait<1>();
        }
        __syncwarp();
        const int other = (lane + 1) % KVASIR_WARP;
        for (int j = 0; j < 4; j++) {
            out[(i - 1) * step + 4 * other + j] = tiles[(i - 1) % 2][4 * other + j];
        }
        __syncwarp();
    }
}

extern "C" void probe_async(cudaStream_t stream, const float *in, float *out, int n, int n_wanted)
{
    KVASIR_LAUNCH((copy_async<true>), 1, KVASIR_WARP, 0, stream, in, out, n, n_wanted);
}

extern "C" void probe_no_wait(cudaStream_t stream, const float *in, float *out, int n)
{
    KVASIR_LAUNCH((copy_async<false>), 1, KVASIR_WARP, 0, stream, in, out, n, n);
}

static __global__ void warp_functions(int *out)
{
    const int lane = (int)(threadIdx.x % KVASIR_WARP);
    int *const to = out + threadIdx.x * PROBE_WARP_RESULTS;
    to[0] = __shfl_sync(KVASIR_ALL, lane, 5);
    to[1] = __shfl_sync(KVASIR_ALL, lane, 3, 8);
    to[2] = __shfl_xor_sync(KVASIR_ALL, lane, 6);
    to[3] = __shfl_up_sync(KVASIR_ALL, lane, 3, 16);
    to[4] = __shfl_down_sync(KVASIR_ALL, lane, 3, 16);
    to[5] = (int)__ballot_sync(KVASIR_ALL, lane % 3 == 0);
    to[6] = __any_sync(KVASIR_ALL, lane == 7) * 2 + __all_sync(KVASIR_ALL, lane < 32);
    to[7] = (int)__match_any_sync(KVASIR_ALL, lane / 4);
    to[8] = __syncthreads_count(threadIdx.x < 40);
    // The halves of a warp work apart, each with a mask of its own.
    to[9] = lane < 16 ? __shfl_sync(0x0000ffffu, lane, 2) : __shfl_sync(0xffff0000u, lane, 18);
}

extern "C" void probe_warp(cudaStream_t stream, int *out)
{
    KVASIR_LAUNCH(warp_functions, 1, 2 * KVASIR_WARP, 0, stream, out);
}

static __global__ void count_blocks(uint32_t *counter, uint32_t *last)
{
    if (threadIdx.x == 0 && atomic_add_acq_rel(counter, 1) == gridDim.x * gridDim.y - 1) {
        *last = blockIdx.x + gridDim.x * blockIdx.y;
    }
}

extern "C" void probe_last_block(cudaStream_t stream, uint32_t *counter, uint32_t *last,
                                 int n_blocks)
{
    KVASIR_LAUNCH(count_blocks, dim3((unsigned)n_blocks / 2, 2), KVASIR_WARP, 0, stream, counter,
                  last);
}

// ---- crimes ----

static __device__ void commit_in_warp(int crime, int lane, float *data)
{
    if (crime == PROBE_SHUFFLE_HALF) {
        if (lane < 16) {
            data[lane] = __shfl_sync(KVASIR_ALL, data[lane], 0);
        }
        __syncthreads();
    } else if (lane < 16) {
        data[lane] = __shfl_sync(KVASIR_ALL, data[lane], 0);
    }
}

static __global__ void crimes(int crime, float *data)
{
    KVASIR_SHARED(raw);
    float *const shared = reinterpret_cast<float *>(raw);
    const int lane = (int)(threadIdx.x % KVASIR_WARP), warp = (int)(threadIdx.x / KVASIR_WARP);
    switch (crime) {
    case PROBE_SHUFFLE_HALF:
    case PROBE_SHUFFLE_ENDED:
        commit_in_warp(crime, lane, data);
        return;
    case PROBE_BARRIER_BRANCH:
        if (warp == 0) {
            __syncthreads();
        } else {
            __syncthreads();
        }
        return;
    case PROBE_BARRIER_ENDED:
        if (warp == 0) {
            __syncthreads();
        }
        return;
    case PROBE_SHARED_OVERRUN:
        shared[2 * KVASIR_WARP] = 0.0f;
        return;
    case PROBE_ASYNC_MISALIGNED:
        async_copy_16(shared + 2, data, true);
        return;
    default:
        data[0] = reinterpret_cast<const float4 *>(data + 2)->x;
    }
}

extern "C" void probe_commit(cudaStream_t stream, enum probe_crime crime, float *data)
{
    KVASIR_LAUNCH(crimes, 1, 2 * KVASIR_WARP, 2 * KVASIR_WARP * sizeof(float), stream, (int)crime,
                  data);
}

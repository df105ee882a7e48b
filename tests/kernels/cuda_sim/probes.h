/*
 * probes.h - kernels that try the simulator, right and wrong ones
 *
 * Thread: a stream's. Nothing has run before the stream is synchronised.
 */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- right ---------------------------------------------------------------------------------------- */

/* out[i] = in[n - 1 - i] + the sum of in's warp, by way of static and dynamic shared memory; n threads, a block. */
void probe_reverse(cudaStream_t stream, const float *in, float *out, int n);
/* c [16, 8] += a [16, 16] b [8, 16]^T, bfloat16, through ldmatrix. */
void probe_mma(cudaStream_t stream, const uint16_t *a, const uint16_t *b, float *c);
/* c [16, 8] += a [16, 32] b [8, 32]^T, int8. */
void probe_mma_i8(cudaStream_t stream, const int8_t *a, const int8_t *b, int32_t *c);
/* out[0, 1]: __byte_perm and fma_bf16_pair of these. */
void probe_bytes(cudaStream_t stream, const uint32_t in[4], uint32_t out[2]);
/* out [32, 4]: the registers of ldmatrix, plain and transposed, of in [32, 8]. */
void probe_ldmatrix(cudaStream_t stream, const uint16_t *in, uint32_t *out, int transposed);
/* out = in, n floats, by asynchronous copies; zeros from n_wanted on. */
void probe_async(cudaStream_t stream, const float *in, float *out, int n, int n_wanted);

/* What the functions of a warp give, lane by lane: see test_cuda_sim.c. */
enum { PROBE_WARP_RESULTS = 10 };

void probe_warp(cudaStream_t stream, int *out);
/* *counter += blocks, and the last block to come sets *last. */
void probe_last_block(cudaStream_t stream, uint32_t *counter, uint32_t *last, int n_blocks);

/* ---- wrong ---------------------------------------------------------------------------------------- */

/* As probe_reverse with the barrier left out. */
void probe_race(cudaStream_t stream, const float *in, float *out, int n);
/* As probe_async, without the wait. */
void probe_no_wait(cudaStream_t stream, const float *in, float *out, int n);

enum probe_crime {
    PROBE_SHUFFLE_HALF,      /* half of the warp takes part */
    PROBE_SHUFFLE_ENDED,     /* the other half has ended */
    PROBE_BARRIER_BRANCH,    /* each warp at a barrier of its own */
    PROBE_BARRIER_ENDED,     /* a warp ended */
    PROBE_SHARED_OVERRUN,    /* behind the dynamic shared memory */
    PROBE_ASYNC_MISALIGNED,  /* to an address 8 bytes off */
    PROBE_VECTOR_MISALIGNED, /* a float4 8 bytes off */
};

void probe_commit(cudaStream_t stream, enum probe_crime crime, float *data);

#ifdef __cplusplus
}
#endif

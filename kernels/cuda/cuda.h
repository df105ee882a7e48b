/*
 * cuda.h - what the files of the CUDA backend share
 *
 * What:      the stream, the packed matrix, and the ops of the backend table. Plain C and C++ alike: backend_cuda.c and the
 *            .cu files include it.
 * Ownership: a stream owns its handles and staging memory.
 * Thread:    a stream is used by one thread at a time; calls make its device the thread's current one.
 * Errors:    INTERNAL "cuda: OP: TEXT (device N)" for faults; a fault is sticky, and the process must end.
 */
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_MAX_HEAD_DIM = 256 };

/* cublasLt's handle and algorithm table: matmul.c. */
struct cuda_matmul;

/* Room for sampling, made when the stream's first sample op comes: sample.cu. */
struct cuda_sampler;

struct backend_stream {
    int device;
    int n_processors;
    int capability; /* * 10 */
    size_t shared_bytes; /* a block may ask for */
    cudaStream_t stream;
    struct cuda_matmul *matmul;
    struct cuda_sampler *sampler;
};

/* Row-major bfloat16 [n_out, n_in]; rows begin at multiples of 16 bytes (ld). */
struct matrix {
    struct backend_stream *stream;
    int dtype;
    int32_t n_out, n_in;
    int64_t ld; /* elements: n_in rounded up to 8 */
    void *data;
};

/* The status of a CUDA call; op names it in the message. */
status_t cuda_status(cudaError_t error, const char *op, int device);

/* After a launch: its error, if it had one. */
status_t cuda_launched(const struct backend_stream *stream, const char *op);

/* ---- ops: see kernels/backend.h ------------------------------------------------------------------ */

status_t cuda_embedding(struct backend_stream *stream, const struct embedding_args *a);
status_t cuda_matmul(struct backend_stream *stream, const struct matmul_args *a);
status_t cuda_add_norm(struct backend_stream *stream, const struct add_norm_args *a);
status_t cuda_rope_append(struct backend_stream *stream, const struct rope_append_args *a);
status_t cuda_attention_plan_new(struct backend_stream *stream, const struct attention_shape *shape,
                                 struct attention_plan **plan_out);
void cuda_attention_plan_free(struct attention_plan *plan);
status_t cuda_attention_plan_set(struct backend_stream *stream, struct attention_plan *plan,
                                 const struct attention_seq *seqs, int32_t n_seqs);
status_t cuda_attention(struct backend_stream *stream, struct attention_plan *plan,
                        const struct attention_args *a);
status_t cuda_swiglu(struct backend_stream *stream, const struct swiglu_args *a);
status_t cuda_copy_strips(struct backend_stream *stream, const struct strip *strips, int32_t n);
status_t cuda_sample(struct backend_stream *stream, const struct sample_args *a);

#ifdef __cplusplus
}
#endif

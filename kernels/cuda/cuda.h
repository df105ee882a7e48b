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

enum { CUDA_STAGING_BYTES = 4 << 20, CUDA_STAGING_BUFFERS = 2 };

/* Pinned host memory weights go through, made by the first matrix_write: matrix.c. */
struct cuda_staging {
    void *buffers[CUDA_STAGING_BUFFERS];
    cudaEvent_t copied[CUDA_STAGING_BUFFERS]; /* after the copy out of the buffer */
    int next;
};

struct backend_stream {
    int device;
    int n_processors;
    int capability;      /* * 10 */
    size_t shared_bytes; /* a block may ask for */
    cudaStream_t stream;
    int batch_invariant; /* of stream_options */
    struct cuda_matmul *matmul;
    struct cuda_sampler *sampler;
    struct cuda_staging *staging;
};

/* Row-major bfloat16 or int8 [n_out, n_in]; rows begin at multiples of 16 bytes (ld) and end in zeros. */
struct matrix {
    struct backend_stream *stream;
    int dtype;
    int format; /* enum matrix_format */
    int32_t n_out, n_in;
    int64_t ld; /* elements: n_in rounded up to 8, int8: to 16 */
    void *data;
    float *scales; /* int8: [n_out], behind the data; else NULL */
};

/* ---- status.c ------------------------------------------------------------------------------------- */

/* The status of a CUDA call; op names it in the message. */
status_t cuda_status(cudaError_t error, const char *op, int device);

/* After a launch: its error, if it had one. */
status_t cuda_launched(const struct backend_stream *stream, const char *op);

/* ---- streams, graphs, memory, weights: see kernels/backend.h -------------------------------------- */

status_t cuda_stream_new(const struct stream_options *options, struct backend_stream **stream_out);
void cuda_stream_free(struct backend_stream *stream);
status_t cuda_stream_sync(struct backend_stream *stream);

status_t cuda_graph_begin(struct backend_stream *stream);
status_t cuda_graph_end(struct backend_stream *stream, struct backend_graph **graph_out);
status_t cuda_graph_run(struct backend_stream *stream, struct backend_graph *graph);
void cuda_graph_free(struct backend_graph *graph);

status_t cuda_mark_new(struct backend_stream *stream, struct backend_mark **mark_out);
void cuda_mark_free(struct backend_mark *mark);
status_t cuda_mark_set(struct backend_stream *stream, struct backend_mark *mark);
bool cuda_mark_passed(const struct backend_mark *mark);
status_t cuda_mark_wait(struct backend_mark *mark);

status_t cuda_mem_alloc(struct backend_stream *stream, size_t size, void **ptr_out);
void cuda_mem_free(struct backend_stream *stream, void *ptr);
status_t cuda_mem_host_alloc(struct backend_stream *stream, size_t size, void **ptr_out);
void cuda_mem_host_free(struct backend_stream *stream, void *ptr);
status_t cuda_mem_upload(struct backend_stream *stream, void *to, const void *from_host,
                         size_t size);
status_t cuda_mem_download(struct backend_stream *stream, void *to_host, const void *from,
                           size_t size);
status_t cuda_mem_zero(struct backend_stream *stream, void *to, size_t size);

size_t cuda_matrix_bytes(int format, int32_t n_out, int32_t n_in);
status_t cuda_matrix_new(struct backend_stream *stream, int format, int32_t n_out, int32_t n_in,
                         struct matrix **matrix_out);
void cuda_matrix_free(struct matrix *matrix);
void cuda_matrix_staging_free(struct cuda_staging *staging); /* accepts NULL */
status_t cuda_matrix_write(struct backend_stream *stream, const struct matrix_write_args *args);

/* ---- ops: see kernels/backend.h ------------------------------------------------------------------ */

status_t cuda_embedding(struct backend_stream *stream, const struct embedding_args *a);
status_t cuda_matmul(struct backend_stream *stream, const struct matmul_args *a);
status_t cuda_matmul_tune(struct backend_stream *stream, const struct matmul_tune_args *args,
                          status_t *cache_out);
void cuda_matmul_free(struct cuda_matmul *matmul);   /* accepts NULL */
void cuda_sample_free(struct cuda_sampler *sampler); /* accepts NULL */
status_t cuda_add_norm(struct backend_stream *stream, const struct add_norm_args *a);
status_t cuda_rope_append(struct backend_stream *stream, const struct rope_append_args *a);
status_t cuda_attention_plan_new(struct backend_stream *stream, const struct attention_shape *shape,
                                 struct attention_plan **plan_out);
void cuda_attention_plan_free(struct attention_plan *plan);
status_t cuda_attention_plan_set(struct backend_stream *stream, struct attention_plan *plan,
                                 const struct attention_seq *seqs, int32_t n_seqs);
status_t cuda_attention(struct backend_stream *stream, struct attention_plan *plan,
                        const struct attention_args *a);
status_t cuda_attention_merge(struct backend_stream *stream, const struct attention_merge_args *a);
status_t cuda_swiglu(struct backend_stream *stream, const struct swiglu_args *a);
status_t cuda_ordered_sum(struct backend_stream *stream, const struct ordered_sum_args *a);
status_t cuda_copy_strips(struct backend_stream *stream, const struct strip *strips, int32_t n);
status_t cuda_sample(struct backend_stream *stream, const struct sample_args *a);

#ifdef __cplusplus
}
#endif

/*
 * matmul_lt_sim.cu - the simulator's twin of kernels/cuda/matmul_lt.c: a thread an output
 *
 * What:     knows one algorithm, words[0] == 1, and refuses others; knows none for rows at odd addresses of 2 bytes.
 * Numerics: float32 sums in ascending k.
 */
#include <stdlib.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matmul.h"

enum { BLOCK = 128 };

struct cuda_matmul_lt {
    struct backend_stream *stream;
};

struct lt_args {
    const bf16 *weight, *x;
    void *out;
    int64_t ld_weight, ld_x, ld_out;
    int32_t n_out, n_in, n_rows, out_dtype;
};

__global__ void matmul_lt(const struct lt_args a)
{
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    const int64_t row = i / a.n_out, output = i % a.n_out;
    if (row >= a.n_rows) {
        return;
    }
    float sum = 0.0f;
    for (int64_t k = 0; k < a.n_in; k++) {
        sum += __bfloat162float(a.x[row * a.ld_x + k]) *
               __bfloat162float(a.weight[output * a.ld_weight + k]);
    }
    if (a.out_dtype == DTYPE_F32) {
        ((float *)a.out)[row * a.ld_out + output] = sum;
    } else {
        ((bf16 *)a.out)[row * a.ld_out + output] = __float2bfloat16(sum);
    }
}

extern "C" uint64_t cuda_matmul_lt_version(void)
{
    return 1;
}

extern "C" status_t cuda_matmul_lt_new(struct backend_stream *stream,
                                       struct cuda_matmul_lt **lt_out)
{
    struct cuda_matmul_lt *lt = (struct cuda_matmul_lt *)malloc(sizeof *lt);
    if (lt == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "matmul: out of memory");
    }
    lt->stream = stream;
    *lt_out = lt;
    return status_ok();
}

extern "C" void cuda_matmul_lt_free(struct cuda_matmul_lt *lt)
{
    free(lt);
}

extern "C" status_t cuda_matmul_lt_guess(struct cuda_matmul_lt *lt,
                                         const struct cuda_matmul_shape *shape, int max,
                                         struct cuda_matmul_algorithm *algorithms_out, int *n_out)
{
    if (max < 1 || shape->alignment < 4) {
        return status_errorf(STATUS_NOT_FOUND, "matmul: %d algorithms, alignment %d (device %d)",
                             max, shape->alignment, lt->stream->device);
    }
    algorithms_out[0] = {{1}};
    *n_out = 1;
    return status_ok();
}

extern "C" status_t cuda_matmul_lt_run(struct cuda_matmul_lt *lt, struct backend_stream *stream,
                                       const struct matmul_args *a,
                                       const struct cuda_matmul_algorithm *algorithm)
{
    if (lt->stream != stream || algorithm->words[0] != 1) {
        return status_errorf(STATUS_INTERNAL, "matmul: not an algorithm of this library");
    }
    struct lt_args args = {};
    args.weight = (const bf16 *)a->weight->data;
    args.x = (const bf16 *)a->x;
    args.out = a->out;
    args.ld_weight = a->weight->ld;
    args.ld_x = a->ld_x;
    args.ld_out = a->ld_out;
    args.n_out = a->weight->n_out;
    args.n_in = a->weight->n_in;
    args.n_rows = a->n_rows;
    args.out_dtype = a->out_dtype;
    const int64_t n = (int64_t)a->n_rows * a->weight->n_out;
    KVASIR_LAUNCH(matmul_lt, (unsigned)((n + BLOCK - 1) / BLOCK), BLOCK, 0, stream->stream, args);
    return cuda_launched(stream, "matmul");
}

/*
 * status.c - CUDA's errors as statuses
 */
#include "kernels/cuda/cuda.h"

static int code_of(cudaError_t error)
{
    switch (error) {
    case cudaErrorMemoryAllocation:
        return STATUS_RESOURCE_EXHAUSTED;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorDevicesUnavailable:
        return STATUS_UNAVAILABLE;
    default:
        return STATUS_INTERNAL;
    }
}

status_t cuda_status(cudaError_t error, const char *op, int device)
{
    if (error == cudaSuccess) {
        return status_ok();
    }
    (void)cudaGetLastError(); // the runtime keeps it; the next launch must not report it once more
    return status_errorf(code_of(error), "cuda: %s: %s (device %d)", op, cudaGetErrorString(error),
                         device);
}

status_t cuda_launched(const struct backend_stream *stream, const char *op)
{
    return cuda_status(cudaGetLastError(), op, stream->device);
}

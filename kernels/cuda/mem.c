/*
 * mem.c - device memory, pinned host memory, and copies between them
 *
 * Mapping: copies of pageable host memory are staged by the runtime and then block the caller; those of pinned memory do
 *          not. Both are in stream order.
 */
#include "kernels/cuda/cuda.h"

static status_t allocated(cudaError_t error, const char *what, size_t size,
                          const struct backend_stream *stream)
{
    if (error != cudaErrorMemoryAllocation) {
        return cuda_status(error, what, stream->device);
    }
    (void)cudaGetLastError(); // being out of memory is no fault: the next launch must not report it
    size_t free_bytes = 0, all_bytes = 0;
    (void)cudaMemGetInfo(&free_bytes, &all_bytes);
    return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                         "cuda: %s: need %zu bytes, %zu of the device's %zu are free (device %d)",
                         what, size, free_bytes, all_bytes, stream->device);
}

status_t cuda_mem_alloc(struct backend_stream *stream, size_t size, void **ptr_out)
{
    void *ptr = NULL;
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    TRY(allocated(cudaMalloc(&ptr, size > 0 ? size : 1), "memory", size, stream));
    *ptr_out = ptr;
    return status_ok();
}

void cuda_mem_free(struct backend_stream *stream, void *ptr)
{
    if (ptr != NULL) {
        (void)cudaSetDevice(stream->device);
        (void)cudaStreamSynchronize(stream->stream); // what is under way may use it
        (void)cudaFree(ptr);
    }
}

status_t cuda_mem_host_alloc(struct backend_stream *stream, size_t size, void **ptr_out)
{
    void *ptr = NULL;
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    TRY(allocated(cudaMallocHost(&ptr, size > 0 ? size : 1), "pinned host memory", size, stream));
    *ptr_out = ptr;
    return status_ok();
}

void cuda_mem_host_free(struct backend_stream *stream, void *ptr)
{
    if (ptr != NULL) {
        (void)cudaSetDevice(stream->device);
        (void)cudaStreamSynchronize(stream->stream);
        (void)cudaFreeHost(ptr);
    }
}

static status_t copy(struct backend_stream *stream, void *to, const void *from, size_t size,
                     enum cudaMemcpyKind kind)
{
    if (size == 0 || to == from) {
        return status_ok();
    }
    return cuda_status(cudaMemcpyAsync(to, from, size, kind, stream->stream),
                       kind == cudaMemcpyHostToDevice ? "upload" : "download", stream->device);
}

status_t cuda_mem_upload(struct backend_stream *stream, void *to, const void *from_host,
                         size_t size)
{
    return copy(stream, to, from_host, size, cudaMemcpyHostToDevice);
}

status_t cuda_mem_download(struct backend_stream *stream, void *to_host, const void *from,
                           size_t size)
{
    return copy(stream, to_host, from, size, cudaMemcpyDeviceToHost);
}

status_t cuda_mem_zero(struct backend_stream *stream, void *to, size_t size)
{
    if (size == 0) {
        return status_ok();
    }
    return cuda_status(cudaMemsetAsync(to, 0, size, stream->stream), "zero", stream->device);
}

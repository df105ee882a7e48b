/*
 * stream.c - a CUDA stream and what it knows of its device
 *
 * Mapping: the runtime keeps the current device of each thread; every entry that may be a thread's first sets it.
 */
#include <stdlib.h>

#include "kernels/cuda/cuda.h"

static status_t read_attribute(int *value_out, enum cudaDeviceAttr attribute, int device)
{
    return cuda_status(cudaDeviceGetAttribute(value_out, attribute, device), "device attribute",
                       device);
}

static status_t init(struct backend_stream *stream, int device)
{
    int major = 0, minor = 0, shared_bytes = 0;
    TRY(read_attribute(&stream->n_processors, cudaDevAttrMultiProcessorCount, device));
    TRY(read_attribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    TRY(read_attribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    TRY(read_attribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    stream->device = device;
    stream->capability = 10 * major + minor;
    stream->shared_bytes = (size_t)shared_bytes;
    // Kernels use bfloat16 tensor cores and asynchronous copies.
    if (stream->capability < 80) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "cuda: device %d has compute capability %d.%d, 8.0 is needed", device,
                             major, minor);
    }
    return cuda_status(cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking), "stream",
                       device);
}

status_t cuda_stream_new(const struct stream_options *options, struct backend_stream **stream_out)
{
    const int device = options->device;
    int n_devices = 0;
    TRY(cuda_status(cudaGetDeviceCount(&n_devices), "device count", device));
    if (device < 0 || device >= n_devices) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "cuda: device %d, there are %d", device,
                             n_devices);
    }
    TRY(cuda_status(cudaSetDevice(device), "set device", device));
    struct backend_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for a stream");
    }
    stream->batch_invariant = options->batch_invariant;
    const status_t s = init(stream, device);
    if (!status_is_ok(&s)) {
        free(stream);
        return s;
    }
    *stream_out = stream;
    return status_ok();
}

void cuda_stream_free(struct backend_stream *stream)
{
    if (stream == NULL) {
        return;
    }
    (void)cudaSetDevice(stream->device);
    (void)cudaStreamSynchronize(stream->stream); // a fault was reported to who synchronised last
    cuda_matmul_free(stream->matmul);
    cuda_sample_free(stream->sampler);
    cuda_matrix_staging_free(stream->staging);
    (void)cudaStreamDestroy(stream->stream);
    free(stream);
}

status_t cuda_stream_sync(struct backend_stream *stream)
{
    TRY(cuda_status(cudaSetDevice(stream->device), "set device", stream->device));
    return cuda_status(cudaStreamSynchronize(stream->stream), "stream", stream->device);
}

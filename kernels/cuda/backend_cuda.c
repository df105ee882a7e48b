/*
 * backend_cuda.c - the table of the CUDA backend, and the one name its plugin exports
 */
#include <string.h>

#include "kernels/backend_plugin.h"
#include "kernels/cuda/all_reduce.h"
#include "kernels/cuda/cuda.h"

/*
 * Asking for free memory makes a context, some hundred MB, on a device that has none of this process; a rank that only
 * looks around must not do that on every device of the machine.
 */
static bool has_context(int device)
{
    unsigned int flags = 0;
    int active = 0;
    int (*get_state)(int device, unsigned int *flags, int *active) = NULL;
    void *address = NULL;
    enum cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &address, 7000,
                                         cudaEnableDefault, &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        return false;
    }
    memcpy(&get_state, &address, sizeof get_state);
    return get_state(device, &flags, &active) == 0 && active != 0;
}

static status_t describe(int device, struct device_info *info)
{
    struct cudaDeviceProp properties;
    size_t free_bytes = 0, all_bytes = 0;
    TRY(cuda_status(cudaGetDeviceProperties(&properties, device), "device properties", device));
    if (has_context(device)) {
        TRY(cuda_status(cudaSetDevice(device), "set device", device));
        TRY(cuda_status(cudaMemGetInfo(&free_bytes, &all_bytes), "device memory", device));
    }
    *info = (struct device_info){
        .memory_bytes = properties.totalGlobalMem,
        .free_bytes = free_bytes,
        .n_processors = properties.multiProcessorCount,
        .capability = 10 * properties.major + properties.minor,
    };
    (void)snprintf(info->name, sizeof info->name, "%s", properties.name);
    for (int i = 0; i < (int)sizeof properties.uuid.bytes; i++) {
        (void)snprintf(info->id + (ptrdiff_t)2 * i, 3, "%02x",
                       (unsigned char)properties.uuid.bytes[i]);
    }
    return status_ok();
}

/* The runtime leaves the count as it was when it fails. */
static status_t devices(struct device_info *devices_out, int max_devices, int *n_out)
{
    int n_devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&n_devices);
    if (error == cudaErrorInsufficientDriver || error == cudaErrorSystemDriverMismatch) {
        return status_errorf(STATUS_UNAVAILABLE, "no CUDA driver that this build can use: %s",
                             cudaGetErrorString(error));
    }
    if (error == cudaErrorNoDevice) {
        return status_errorf(STATUS_UNAVAILABLE, "no CUDA device: %s", cudaGetErrorString(error));
    }
    TRY(cuda_status(error, "device count", 0));
    const int n = n_devices < max_devices ? n_devices : max_devices;
    for (int i = 0; i < n; i++) {
        TRY(describe(i, &devices_out[i]));
    }
    *n_out = n;
    return status_ok();
}

/* Values are made up on the host, by the CPU's backend, so that they are the same for every device. */
static status_t random_on_host(struct backend_stream *stream, const struct random_args *args)
{
    (void)args;
    return status_errorf(STATUS_UNIMPLEMENTED,
                         "cuda: random: the CPU's backend makes these values (device %d)",
                         stream->device);
}

static struct CUstream_st *cuda_stream(struct backend_stream *stream)
{
    return stream->stream;
}

static const struct backend_peers peers = {
    .make = cuda_peers_make,
    .join = cuda_peers_join,
    .leave = cuda_peers_leave,
    .free = cuda_peers_free,
    .buffer = cuda_peers_buffer,
    .sum = cuda_all_reduce,
    .sum_add_norm = cuda_all_reduce_add_norm,
};

static const struct backend table = {
    .name = "cuda",
    .activation = DTYPE_BF16,
    .host_memory = false,
    .devices = devices,
    .stream_new = cuda_stream_new,
    .stream_free = cuda_stream_free,
    .stream_sync = cuda_stream_sync,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_run = cuda_graph_run,
    .graph_free = cuda_graph_free,
    .mark_new = cuda_mark_new,
    .mark_free = cuda_mark_free,
    .mark_set = cuda_mark_set,
    .mark_passed = cuda_mark_passed,
    .mark_wait = cuda_mark_wait,
    .mem_alloc = cuda_mem_alloc,
    .mem_free = cuda_mem_free,
    .host_alloc = cuda_mem_host_alloc,
    .host_free = cuda_mem_host_free,
    .upload = cuda_mem_upload,
    .download = cuda_mem_download,
    .zero = cuda_mem_zero,
    .copy_strips = cuda_copy_strips,
    .matrix_bytes = cuda_matrix_bytes,
    .matrix_new = cuda_matrix_new,
    .matrix_free = cuda_matrix_free,
    .matrix_write = cuda_matrix_write,
    .random = random_on_host,
    .attention_plan_new = cuda_attention_plan_new,
    .attention_plan_free = cuda_attention_plan_free,
    .attention_plan_set = cuda_attention_plan_set,
    .embedding = cuda_embedding,
    .matmul_tune = cuda_matmul_tune,
    .matmul = cuda_matmul,
    .add_norm = cuda_add_norm,
    .rope_append = cuda_rope_append,
    .attention = cuda_attention,
    .attention_merge = cuda_attention_merge,
    .swiglu = cuda_swiglu,
    .ordered_sum = cuda_ordered_sum,
    .sample = cuda_sample,
    .cuda_stream = cuda_stream,
    .peers = &peers,
};

__attribute__((visibility("default"))) const struct backend *kvasir_cuda_backend(uint64_t abi)
{
    return abi == BACKEND_ABI ? &table : NULL;
}

/*
 * runtime.cc - the functions of the CUDA runtime that the backend calls, on the simulator
 *
 * What:      a stream is a queue: what is put into it runs when it is synchronised, or up to an event when that is waited for,
 *            as late as CUDA may run it, so that a host that reads results or changes its buffers too early is found out. A
 *            graph is such a queue, kept.
 * Layout:    device and pinned memory lies between guards of 256 bytes, poisoned at first; guards are checked when it is
 *            freed. Kernels and copies accept pointers into such memory alone where CUDA wants device memory.
 * Thread:    any; one lock for the memory, none for a stream, which one thread uses.
 * Errors:    those CUDA documents for configurations; misuse ends the process (sim_fail).
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <mutex>
#include <vector>

#include "tests/kernels/cuda_sim/machine.h"

enum { GUARD_BYTES = 256, GUARD = 0xa5, POISON = 0xff, DEFAULT_SHARED_BYTES = 48 << 10 };

static const size_t device_bytes = (size_t)4 << 30;

typedef std::vector<std::function<void()>> work;

struct CUstream_st {
    work queue;
    size_t n_run;  /* since the stream was made; the queue holds what comes after */
    work *capture; /* NULL: not capturing */
};

struct CUgraph_st {
    work queue;
};

struct CUgraphExec_st {
    work queue;
};

static struct {
    std::mutex lock;
    std::map<uintptr_t, size_t> blocks; /* where memory begins, and its bytes */
    size_t used_bytes;
    std::map<const void *, int>
        shared_limits; /* kernels with more dynamic shared memory than the default */
} runtime;

/* Of all threads: a thread-local one would lie among the shared variables of kernels and be poisoned. */
static cudaError_t last_error;

static cudaError_t failed(cudaError_t error)
{
    last_error = error != cudaSuccess ? error : last_error;
    return error;
}

// ---- errors and devices ----

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    default:
        return "invalid argument";
    }
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    if (device != 0) {
        return failed(cudaErrorInvalidDevice);
    }
    const struct sim_device *const is = sim_device();
    memset(properties, 0, sizeof *properties);
    (void)snprintf(properties->name, sizeof properties->name, "%s", is->name);
    properties->major = is->capability / 10;
    properties->minor = is->capability % 10;
    properties->multiProcessorCount = is->n_processors;
    properties->sharedMemPerBlockOptin = is->shared_bytes_per_block;
    properties->sharedMemPerMultiprocessor = is->shared_bytes_per_processor;
    properties->totalGlobalMem = device_bytes;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp is;
    if (cudaGetDeviceProperties(&is, device) != cudaSuccess) {
        return failed(cudaErrorInvalidDevice);
    }
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
        *value = is.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = is.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = is.minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)is.sharedMemPerBlockOptin;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)is.sharedMemPerMultiprocessor;
        return cudaSuccess;
    default:
        sim_fail("cudaDeviceGetAttribute: the simulator has no attribute %d", (int)attribute);
    }
}

/* What cuDevicePrimaryCtxGetState says: the device is in use. */
static int is_in_use(int device, unsigned int *flags, int *active)
{
    *flags = 0;
    *active = device == 0;
    return 0;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function,
                                             unsigned int version, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result)
{
    (void)version;
    (void)flags;
    if (strcmp(symbol, "cuDevicePrimaryCtxGetState") != 0) {
        sim_fail("cudaGetDriverEntryPointByVersion: the simulator has no %s", symbol);
    }
    *function = reinterpret_cast<void *>(is_in_use);
    *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// ---- memory ----

static cudaError_t guarded_new(void **pointer, size_t size)
{
    const size_t padded = (size + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
    const std::lock_guard<std::mutex> guard(runtime.lock);
    if (size > device_bytes || padded > device_bytes - runtime.used_bytes) {
        return failed(cudaErrorMemoryAllocation);
    }
    unsigned char *const block =
        static_cast<unsigned char *>(aligned_alloc(GUARD_BYTES, padded + 2 * GUARD_BYTES));
    if (block == nullptr) {
        return failed(cudaErrorMemoryAllocation);
    }
    unsigned char *const data = block + GUARD_BYTES;
    memset(block, GUARD, padded + 2 * GUARD_BYTES);
    memset(data, POISON, size);
    runtime.blocks[(uintptr_t)data] = size;
    runtime.used_bytes += padded;
    *pointer = data;
    return cudaSuccess;
}

static cudaError_t guarded_free(void *pointer)
{
    if (pointer == nullptr) {
        return cudaSuccess;
    }
    const std::lock_guard<std::mutex> guard(runtime.lock);
    const auto found = runtime.blocks.find((uintptr_t)pointer);
    if (found == runtime.blocks.end()) {
        sim_fail("free of %p, which was not allocated", pointer);
    }
    const unsigned char *const data = static_cast<unsigned char *>(pointer);
    const size_t size = found->second;
    const size_t padded = (size + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (data[-1 - (ptrdiff_t)i] != GUARD) {
            sim_fail("memory of %zu bytes written %zu bytes before its first", size, i + 1);
        }
    }
    for (size_t i = size; i < padded + GUARD_BYTES; i++) {
        if (data[i] != GUARD) {
            sim_fail("memory of %zu bytes written %zu bytes after its last", size, i - size + 1);
        }
    }
    runtime.blocks.erase(found);
    runtime.used_bytes -= padded;
    free(static_cast<unsigned char *>(pointer) - GUARD_BYTES);
    return cudaSuccess;
}

/* A pointer just behind a block is none into it, except behind an empty one. */
static bool is_allocated(const void *pointer, size_t size)
{
    const std::lock_guard<std::mutex> guard(runtime.lock);
    auto next = runtime.blocks.upper_bound((uintptr_t)pointer);
    if (next == runtime.blocks.begin()) {
        return false;
    }
    --next;
    return (uintptr_t)pointer - next->first + size <= next->second;
}

void sim_check_argument(const struct sim_launch *launch, const void *pointer)
{
    if (pointer != nullptr && !is_allocated(pointer, 0)) {
        sim_fail("kernel %s is handed %p, which is not device memory", launch->name, pointer);
    }
}

cudaError_t cudaMalloc(void **pointer, size_t size)
{
    return guarded_new(pointer, size);
}

cudaError_t cudaFree(void *pointer)
{
    return guarded_free(pointer);
}

cudaError_t cudaMallocHost(void **pointer, size_t size)
{
    return guarded_new(pointer, size);
}

cudaError_t cudaFreeHost(void *pointer)
{
    return guarded_free(pointer);
}

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total)
{
    const std::lock_guard<std::mutex> guard(runtime.lock);
    *free_out = device_bytes - runtime.used_bytes;
    *total = device_bytes;
    return cudaSuccess;
}

// ---- streams ----

/* Puts work into the stream's queue, or into the graph that is being captured. */
static void enqueue(cudaStream_t stream, std::function<void()> run)
{
    if (stream == nullptr) {
        sim_fail("work for the default stream: every op goes into a stream of its own");
    }
    work *const queue = stream->capture != nullptr ? stream->capture : &stream->queue;
    queue->push_back(std::move(run));
}

void sim_launch(const struct sim_launch *launch, const std::function<void()> &run)
{
    const dim3 grid = launch->grid, block = launch->block;
    const size_t n_threads = (size_t)block.x * block.y * block.z;
    size_t limit = DEFAULT_SHARED_BYTES;
    {
        const std::lock_guard<std::mutex> guard(runtime.lock);
        const auto found = runtime.shared_limits.find(launch->kernel);
        limit = found != runtime.shared_limits.end() ? (size_t)found->second : limit;
    }
    if (n_threads == 0 || n_threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 ||
        grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        (void)failed(cudaErrorInvalidConfiguration);
        return;
    }
    if (launch->shared_bytes > limit) {
        (void)failed(cudaErrorInvalidValue);
        return;
    }
    const struct sim_launch copy = *launch;
    enqueue(launch->stream, [copy, run] { sim_run_kernel(&copy, run); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    (void)flags;
    *stream = new CUstream_st();
    return cudaSuccess;
}

/* The first n of the queue. */
static cudaError_t run_first(cudaStream_t stream, size_t n)
{
    if (stream->capture != nullptr) {
        return failed(cudaErrorStreamCaptureUnsupported);
    }
    work queue(stream->queue.begin(), stream->queue.begin() + (ptrdiff_t)n);
    stream->queue.erase(stream->queue.begin(), stream->queue.begin() + (ptrdiff_t)n);
    stream->n_run += n;
    for (const std::function<void()> &run : queue) {
        run();
    }
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return run_first(stream, stream->queue.size());
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    const cudaError_t error = cudaStreamSynchronize(stream);
    delete stream;
    return error;
}

static void check_device(const char *what, const void *pointer, size_t size)
{
    if (!is_allocated(pointer, size)) {
        sim_fail("%s: %zu bytes at %p are not within device memory", what, size, pointer);
    }
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    if (width > to_pitch || width > from_pitch) {
        return failed(cudaErrorInvalidPitchValue);
    }
    if (width == 0 || height == 0) {
        return cudaSuccess;
    }
    if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) {
        check_device("copy to", to, (height - 1) * to_pitch + width);
    }
    if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) {
        check_device("copy from", from, (height - 1) * from_pitch + width);
    }
    enqueue(stream, [=] {
        for (size_t row = 0; row < height; row++) {
            memcpy(static_cast<char *>(to) + row * to_pitch,
                   static_cast<const char *>(from) + row * from_pitch, width);
        }
    });
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, size, from, size, size, 1, kind, stream);
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream)
{
    if (width == 0 || height == 0) {
        return cudaSuccess;
    }
    check_device("set", to, (height - 1) * pitch + width);
    enqueue(stream, [=] {
        for (size_t row = 0; row < height; row++) {
            memset(static_cast<char *>(to) + row * pitch, value, width);
        }
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream)
{
    return cudaMemset2DAsync(to, size, value, size, 1, stream);
}

// ---- events: waiting for one runs what its stream held when it was recorded ----

struct CUevent_st {
    cudaStream_t stream; /* of the last record; NULL: none, or done */
    size_t n_before;     /* all that was put into the stream before it */
};

static bool is_passed(cudaEvent_t event)
{
    return event->stream == nullptr || event->stream->n_run >= event->n_before;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    (void)flags;
    *event = new CUevent_st();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    event->stream = stream;
    event->n_before = stream->n_run + stream->queue.size();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    const cudaStream_t stream = event->stream;
    const cudaError_t error =
        is_passed(event) ? cudaSuccess : run_first(stream, event->n_before - stream->n_run);
    event->stream = nullptr;
    return error;
}

/* A look makes progress: it finds what the event waits for not done, and runs it. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (is_passed(event)) {
        return cudaSuccess;
    }
    const cudaError_t error = cudaEventSynchronize(event);
    return error == cudaSuccess ? failed(cudaErrorNotReady) : error;
}

/* Nothing here takes the time it takes on a device: everything takes as long. */
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    (void)begin;
    (void)end;
    *ms = 1.0f;
    return cudaSuccess;
}

// ---- graphs ----

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    (void)mode;
    if (stream->capture != nullptr) {
        return failed(cudaErrorIllegalState);
    }
    stream->capture = new work();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    if (stream->capture == nullptr) {
        return failed(cudaErrorIllegalState);
    }
    *graph = new CUgraph_st{std::move(*stream->capture)};
    delete stream->capture;
    stream->capture = nullptr;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    (void)flags;
    *exec = new CUgraphExec_st{graph->queue};
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    const work queue = exec->queue;
    for (const std::function<void()> &run : queue) {
        enqueue(stream, run);
    }
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

// ---- kernels ----

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) {
        return cudaSuccess;
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        (size_t)value > sim_device()->shared_bytes_per_block) {
        return failed(cudaErrorInvalidValue);
    }
    const std::lock_guard<std::mutex> guard(runtime.lock);
    runtime.shared_limits[kernel] = value;
    return cudaSuccess;
}

/* Registers are not known here: as many blocks as threads and shared memory allow. */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n_blocks, const void *kernel,
                                                          int block_size, size_t shared_bytes)
{
    (void)kernel;

    enum { MAX_BLOCKS = 16, RESERVED_BYTES = 1024 };
    const struct sim_device *const is = sim_device();
    const int by_threads = (is->capability == 86 ? 1536 : 2048) / block_size;
    const size_t by_shared = is->shared_bytes_per_processor / (shared_bytes + RESERVED_BYTES);
    int n = by_threads < MAX_BLOCKS ? by_threads : MAX_BLOCKS;
    n = by_shared < (size_t)n ? (int)by_shared : n;
    *n_blocks = n;
    return cudaSuccess;
}

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
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <vector>

#include "tests/kernels/cuda_sim/machine.h"

enum {
    GUARD_BYTES = 256,
    GUARD = 0xa5,
    POISON = 0xff,
    PAGE_BYTES = 4096,
    DEFAULT_SHARED_BYTES = 48 << 10,
    SHAREABLE_BYTES = 2 << 20, /* see cudaIpcGetMemHandle */
};

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

/* What lies behind a block: the heap, or for a whole number of the driver's allocations a file that other processes can map. */
struct sim_memory {
    size_t size;
    int file; /* -1: the heap */
    bool imported;
};

static struct {
    std::mutex lock;
    std::map<uintptr_t, sim_memory> blocks; /* by where their memory begins */
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
    case cudaErrorNotSupported:
        return "operation not supported";
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

/* One device for all processes, or with KVASIR_SIM_OWN_DEVICE=1 one for each. */
static void set_uuid(cudaUUID_t *uuid)
{
    const char *const own = getenv("KVASIR_SIM_OWN_DEVICE");
    const pid_t pid = own != nullptr && strcmp(own, "1") == 0 ? getpid() : 0;
    memset(uuid->bytes, 0x51, sizeof uuid->bytes);
    memcpy(uuid->bytes, &pid, sizeof pid);
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
    set_uuid(&properties->uuid);
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

static size_t padded_size(size_t size)
{
    return (size + GUARD_BYTES - 1) / GUARD_BYTES * GUARD_BYTES;
}

/* The bytes in front of a file's data: a page, so that the data begins at one. */
static size_t front_bytes(int file)
{
    return file >= 0 ? PAGE_BYTES : GUARD_BYTES;
}

static size_t file_bytes(size_t size)
{
    return PAGE_BYTES + size + PAGE_BYTES;
}

static unsigned char *map_file(int file, size_t size)
{
    void *const block =
        mmap(nullptr, file_bytes(size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return block != MAP_FAILED ? static_cast<unsigned char *>(block) : nullptr;
}

static unsigned char *new_block(size_t size, int *file_out)
{
    *file_out = -1;
    if (size == 0 || size % SHAREABLE_BYTES != 0) {
        return static_cast<unsigned char *>(
            aligned_alloc(GUARD_BYTES, padded_size(size) + 2 * GUARD_BYTES));
    }
    const int file = memfd_create("cuda_sim", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)file_bytes(size)) != 0) {
        sim_fail("no memory for %zu bytes that processes can share", size);
    }
    *file_out = file;
    return map_file(file, size);
}

static cudaError_t guarded_new(void **pointer, size_t size)
{
    const std::lock_guard<std::mutex> guard(runtime.lock);
    if (size > device_bytes || padded_size(size) > device_bytes - runtime.used_bytes) {
        return failed(cudaErrorMemoryAllocation);
    }
    int file = -1;
    unsigned char *const block = new_block(size, &file);
    if (block == nullptr) {
        return failed(cudaErrorMemoryAllocation);
    }
    unsigned char *const data = block + front_bytes(file);
    memset(data - GUARD_BYTES, GUARD, GUARD_BYTES);
    memset(data, POISON, size);
    memset(data + size, GUARD, padded_size(size) - size + GUARD_BYTES);
    runtime.blocks[(uintptr_t)data] = {size, file, false};
    runtime.used_bytes += padded_size(size);
    *pointer = data;
    return cudaSuccess;
}

static void check_guards(const unsigned char *data, size_t size)
{
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (data[-1 - (ptrdiff_t)i] != GUARD) {
            sim_fail("memory of %zu bytes written %zu bytes before its first", size, i + 1);
        }
    }
    for (size_t i = size; i < padded_size(size) + GUARD_BYTES; i++) {
        if (data[i] != GUARD) {
            sim_fail("memory of %zu bytes written %zu bytes after its last", size, i - size + 1);
        }
    }
}

static cudaError_t guarded_free(void *pointer)
{
    if (pointer == nullptr) {
        return cudaSuccess;
    }
    const std::lock_guard<std::mutex> guard(runtime.lock);
    const auto found = runtime.blocks.find((uintptr_t)pointer);
    if (found == runtime.blocks.end() || found->second.imported) {
        sim_fail("free of %p, which was not allocated", pointer);
    }
    unsigned char *const data = static_cast<unsigned char *>(pointer);
    const sim_memory block = found->second;
    check_guards(data, block.size);
    runtime.blocks.erase(found);
    runtime.used_bytes -= padded_size(block.size);
    if (block.file >= 0) {
        (void)munmap(data - PAGE_BYTES, file_bytes(block.size));
        (void)close(block.file);
    } else {
        free(data - GUARD_BYTES);
    }
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
    return (uintptr_t)pointer - next->first + size <= next->second.size;
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

// ---- memory between processes ----

/* What a handle says: the file, by way of the process that has it open. */
struct sim_handle {
    int pid, file;
    size_t size;
};

static_assert(sizeof(sim_handle) <= sizeof(cudaIpcMemHandle_t), "handles");

/* CUDA shares the whole of what the driver allocated for the pointer; here only memory that is a whole number of such
 * allocations can be shared, as its manual advises. */
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *pointer)
{
    const std::lock_guard<std::mutex> guard(runtime.lock);
    const auto found = runtime.blocks.find((uintptr_t)pointer);
    if (found == runtime.blocks.end() || found->second.file < 0) {
        sim_fail("cudaIpcGetMemHandle of %p: not the begin of memory of a multiple of 2 MiB",
                 pointer);
    }
    const char *const refused = getenv("KVASIR_SIM_NO_IPC");
    if (refused != nullptr && strcmp(refused, "1") == 0) {
        return failed(cudaErrorNotSupported);
    }
    const sim_handle mine = {(int)getpid(), found->second.file, found->second.size};
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &mine, sizeof mine);
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **pointer, cudaIpcMemHandle_t handle, unsigned int flags)
{
    (void)flags;
    sim_handle theirs;
    char path[64];
    memcpy(&theirs, &handle, sizeof theirs);
    if (theirs.pid == (int)getpid()) {
        return failed(cudaErrorDeviceUninitialized); // CUDA's own memory is not to be opened
    }
    (void)snprintf(path, sizeof path, "/proc/%d/fd/%d", theirs.pid, theirs.file);
    const int file = open(path, O_RDWR | O_CLOEXEC);
    unsigned char *const block = file >= 0 ? map_file(file, theirs.size) : nullptr;
    if (block == nullptr) {
        return failed(cudaErrorInvalidValue);
    }
    const std::lock_guard<std::mutex> guard(runtime.lock);
    runtime.blocks[(uintptr_t)(block + PAGE_BYTES)] = {theirs.size, file, true};
    *pointer = block + PAGE_BYTES;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *pointer)
{
    const std::lock_guard<std::mutex> guard(runtime.lock);
    const auto found = runtime.blocks.find((uintptr_t)pointer);
    if (found == runtime.blocks.end() || !found->second.imported) {
        sim_fail("cudaIpcCloseMemHandle of %p, which was not opened", pointer);
    }
    (void)munmap(static_cast<unsigned char *>(pointer) - PAGE_BYTES,
                 file_bytes(found->second.size));
    (void)close(found->second.file);
    runtime.blocks.erase(found);
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

/* For libraries that work on a stream: nccl_sim.c. */
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *user)
{
    enqueue(stream, [fn, user] { fn(user); });
    return cudaSuccess;
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

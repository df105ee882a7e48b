/*
 * nccl_sim.c - a libnccl.so.2 for tests: the functions that comm_nccl.c calls, between processes of one machine
 *
 * What:      bytes go through shared memory, one channel from each rank to each. Work is put into the stream of the simulator
 *            (tests/kernels/cuda_sim) as host functions, so that it runs when the stream is synchronised, in a recording too.
 *            As NCCL does for communicators with blocking = 0, starting one and every group say "in progress" first.
 * Faults:    NCCL_SIM_FAIL_AFTER=n    the n+1st group of a communicator never ends, and an asynchronous error is reported
 *            NCCL_SIM_NO_START=1      a communicator stays in progress for ever
 * Numbers:   all_reduce adds like a ring: each piece begins with another rank, and bfloat16 is rounded at every hop.
 * Limits:    8 ranks; one communicator and one group at a time for a thread.
 */
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <nccl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cpu/convert.h"

enum { MAX_RANKS = 8, CHUNK_BYTES = 64 << 10, MAX_OPS = 4 * MAX_RANKS };

struct channel {
    atomic_uint full;
    uint32_t n_bytes;
    char data[CHUNK_BYTES];
};

struct shared {
    atomic_int n_joined;
    struct channel channels[MAX_RANKS][MAX_RANKS]; /* [from][to] */
};

struct name {
    int pid, file;
};

struct op {
    bool sends;
    char *data;
    size_t n_bytes, done;
    int peer;
};

/* What is left to do when all ranks' numbers are there. */
struct reduction {
    void *out; /* NULL: none */
    char *gathered;
    size_t n;
    ncclDataType_t type;
};

/* One group of calls. */
struct job {
    struct job *next;
    struct ncclComm *comm;
    cudaStream_t stream;
    struct op ops[MAX_OPS];
    int n_ops;
    struct reduction reduction;
    bool hangs;
};

struct ncclComm {
    struct shared *shared;
    int rank, n_ranks;
    bool started;
    int n_in_progress; /* times that a question is answered so */
    int n_groups, fail_after;
    atomic_int aborted, broken;
    struct job *jobs; /* all that were ever made: recordings run them again */
    struct ncclComm *next;
};

/* Ended ones stay: streams may still hold their work. */
static struct ncclComm *all;
static _Thread_local struct job *group;
static _Thread_local int depth;

static int setting(const char *name, int otherwise)
{
    const char *const text = getenv(name);
    return text != NULL ? atoi(text) : otherwise;
}

// ---- running ----

static bool advance(struct ncclComm *comm, struct op *op)
{
    struct channel *channel = op->sends ? &comm->shared->channels[comm->rank][op->peer]
                                        : &comm->shared->channels[op->peer][comm->rank];
    if ((atomic_load_explicit(&channel->full, memory_order_acquire) != 0) == op->sends) {
        return false;
    }
    const size_t left = op->n_bytes - op->done;
    if (op->sends) {
        channel->n_bytes = left < CHUNK_BYTES ? (uint32_t)left : CHUNK_BYTES;
        memcpy(channel->data, op->data + op->done, channel->n_bytes);
    } else if (channel->n_bytes > left) {
        fprintf(stderr, "nccl_sim: rank %d: %u bytes of rank %d, room for %zu\n", comm->rank,
                channel->n_bytes, op->peer, left);
        abort();
    } else {
        memcpy(op->data + op->done, channel->data, channel->n_bytes);
    }
    op->done += channel->n_bytes;
    atomic_store_explicit(&channel->full, op->sends ? 1 : 0, memory_order_release);
    return true;
}

/* One look at every op; those to or from one rank go in order. Returns whether all are done. */
static bool look_at_all(struct job *job)
{
    bool waits[2][MAX_RANKS] = {{false}};
    bool all_done = true;
    for (int i = 0; i < job->n_ops; i++) {
        struct op *op = &job->ops[i];
        bool *const waiting = &waits[op->sends ? 1 : 0][op->peer];
        if (op->done < op->n_bytes && !*waiting) {
            (void)advance(job->comm, op);
        }
        if (op->done < op->n_bytes) {
            *waiting = true;
            all_done = false;
        }
    }
    return all_done;
}

static float number(const struct reduction *r, int rank, size_t i)
{
    const char *const from = r->gathered + (size_t)rank * r->n * (r->type == ncclFloat32 ? 4 : 2);
    if (r->type == ncclFloat32) {
        return ((const float *)from)[i];
    }
    return f32_from_bf16(((const uint16_t *)from)[i]);
}

static float rounded(const struct reduction *r, float x)
{
    return r->type == ncclFloat32 ? x : f32_from_bf16(bf16_from_f32(x));
}

static void reduce(const struct job *job)
{
    const struct reduction *r = &job->reduction;
    const int n_ranks = job->comm->n_ranks;
    for (size_t i = 0; i < r->n; i++) {
        const int first = (int)(i * (size_t)n_ranks / r->n + 1) % n_ranks;
        float sum = number(r, first, i);
        for (int k = 1; k < n_ranks; k++) {
            sum = rounded(r, sum + number(r, (first + k) % n_ranks, i));
        }
        if (r->type == ncclFloat32) {
            ((float *)r->out)[i] = sum;
        } else {
            ((uint16_t *)r->out)[i] = bf16_from_f32(sum);
        }
    }
}

static void run(void *user)
{
    struct job *job = user;
    if (job->hangs) {
        atomic_store(&job->comm->broken, 1);
    }
    for (int i = 0; i < job->n_ops; i++) {
        job->ops[i].done = 0;
    }
    while (job->hangs || !look_at_all(job)) {
        if (atomic_load(&job->comm->aborted) != 0) {
            return;
        }
        const struct timespec pause = {.tv_nsec = 1000}; // the other rank may wait for this core
        (void)nanosleep(&pause, NULL);
    }
    if (job->reduction.out != NULL) {
        reduce(job);
    }
}

// ---- groups ----

// The header has them without a prototype.
// NOLINTBEGIN(readability-redundant-declaration)
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

// NOLINTEND(readability-redundant-declaration)

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

static struct job *job_of(ncclComm_t comm, cudaStream_t stream)
{
    if (group == NULL) {
        group = calloc(1, sizeof *group);
        group->comm = comm;
        group->stream = stream;
    }
    if (depth == 0 || group->comm != comm || group->stream != stream) {
        fprintf(stderr, "nccl_sim: a call outside of a group, or of another communicator\n");
        abort();
    }
    return group;
}

ncclResult_t ncclGroupEnd(void)
{
    struct job *job = group;
    depth--;
    group = NULL;
    if (job == NULL) {
        return ncclSuccess; // nothing was called
    }
    struct ncclComm *comm = job->comm;
    comm->n_groups++;
    comm->n_in_progress = 2;
    job->hangs = comm->fail_after >= 0 && comm->n_groups > comm->fail_after;
    job->next = comm->jobs;
    comm->jobs = job;
    return cudaLaunchHostFunc(job->stream, run, job) == cudaSuccess ? ncclInProgress
                                                                    : ncclUnhandledCudaError;
}

static void add(struct job *job, bool sends, const void *data, size_t n_bytes, int peer)
{
    if (job->n_ops == MAX_OPS || peer < 0 || peer >= job->comm->n_ranks) {
        fprintf(stderr, "nccl_sim: %d calls in a group, rank %d\n", job->n_ops, peer);
        abort();
    }
    job->ops[job->n_ops++] =
        (struct op){.sends = sends, .data = (char *)data, .n_bytes = n_bytes, .peer = peer};
}

static size_t bytes_of(ncclDataType_t type)
{
    return type == ncclFloat32 ? 4 : type == ncclBfloat16 ? 2 : 1;
}

ncclResult_t ncclSend(const void *sendbuff, size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    add(job_of(comm, stream), true, sendbuff, count * bytes_of(datatype), peer);
    return ncclSuccess;
}

ncclResult_t ncclRecv(void *recvbuff, size_t count, ncclDataType_t datatype, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    add(job_of(comm, stream), false, recvbuff, count * bytes_of(datatype), peer);
    return ncclSuccess;
}

static void gather(struct job *job, const void *send, char *recv, size_t n_bytes)
{
    for (int r = 0; r < job->comm->n_ranks; r++) {
        add(job, true, send, n_bytes, r);
        add(job, false, recv + (size_t)r * n_bytes, n_bytes, r);
    }
}

ncclResult_t ncclAllGather(const void *sendbuff, void *recvbuff, size_t sendcount,
                           ncclDataType_t datatype, ncclComm_t comm, cudaStream_t stream)
{
    gather(job_of(comm, stream), sendbuff, recvbuff, sendcount * bytes_of(datatype));
    return ncclSuccess;
}

// NOLINTBEGIN(readability-function-size): the parameters are NCCL's.

ncclResult_t ncclAllReduce(const void *sendbuff, void *recvbuff, size_t count,
                           ncclDataType_t datatype, ncclRedOp_t op, ncclComm_t comm,
                           cudaStream_t stream)
{
    struct job *job = job_of(comm, stream);
    if (op != ncclSum || (datatype != ncclFloat32 && datatype != ncclBfloat16)) {
        return ncclInvalidArgument;
    }
    job->reduction = (struct reduction){
        .out = recvbuff,
        .gathered = malloc(count * bytes_of(datatype) * (size_t)comm->n_ranks + 1),
        .n = count,
        .type = datatype,
    };
    gather(job, sendbuff, job->reduction.gathered, count * bytes_of(datatype));
    return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void *sendbuff, void *recvbuff, size_t count,
                           ncclDataType_t datatype, int root, ncclComm_t comm, cudaStream_t stream)
{
    struct job *job = job_of(comm, stream);
    for (int r = 0; comm->rank == root && r < comm->n_ranks; r++) {
        add(job, true, sendbuff, count * bytes_of(datatype), r);
    }
    add(job, false, recvbuff, count * bytes_of(datatype), root);
    return ncclSuccess;
}

// NOLINTEND(readability-function-size)

// ---- communicators ----

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    const struct name mine = {.pid = getpid(), .file = memfd_create("nccl_sim", MFD_CLOEXEC)};
    if (mine.file < 0 || ftruncate(mine.file, sizeof(struct shared)) != 0) {
        return ncclSystemError;
    }
    memset(id, 0, sizeof *id);
    memcpy(id, &mine, sizeof mine);
    return ncclSuccess;
}

static struct shared *map_shared(const ncclUniqueId *id)
{
    struct name name;
    char path[64];
    memcpy(&name, id, sizeof name);
    (void)snprintf(path, sizeof path, "/proc/%d/fd/%d", name.pid, name.file);
    const int file = open(path, O_RDWR | O_CLOEXEC);
    void *const shared =
        file < 0 ? MAP_FAILED
                 : mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) {
        (void)close(file);
    }
    return shared != MAP_FAILED ? shared : NULL;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int nranks, ncclUniqueId commId, int rank,
                                    ncclConfig_t *config)
{
    if (nranks > MAX_RANKS || rank < 0 || rank >= nranks || config->blocking != 0) {
        return ncclInvalidArgument;
    }
    struct ncclComm *made = calloc(1, sizeof *made);
    made->shared = map_shared(&commId);
    if (made->shared == NULL) {
        free(made);
        return ncclSystemError;
    }
    made->rank = rank;
    made->n_ranks = nranks;
    made->fail_after = setting("NCCL_SIM_FAIL_AFTER", -1);
    made->next = all;
    all = made;
    if (setting("NCCL_SIM_NO_START", 0) == 0) {
        atomic_fetch_add(&made->shared->n_joined, 1);
    }
    *comm = made;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    comm->started = comm->started || atomic_load(&comm->shared->n_joined) == comm->n_ranks;
    if (!comm->started || comm->n_in_progress > 0) {
        comm->n_in_progress -= comm->n_in_progress > 0;
        *error = ncclInProgress;
        return ncclSuccess;
    }
    *error = atomic_load(&comm->broken) != 0 ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    comm->n_in_progress = 2;
    return ncclInProgress;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    atomic_store(&comm->aborted, 1);
    return ncclSuccess;
}

static void unlink_comm(struct ncclComm *comm)
{
    struct ncclComm **at = &all;
    while (*at != comm) {
        at = &(*at)->next;
    }
    *at = comm->next;
}

/* Streams hold nothing of it any more: that is the caller's to see to. */
ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    unlink_comm(comm);
    while (comm->jobs != NULL) {
        struct job *job = comm->jobs;
        comm->jobs = job->next;
        free(job->reduction.gathered);
        free(job);
    }
    (void)munmap(comm->shared, sizeof *comm->shared);
    free(comm);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclRemoteError   ? "remote process exited or there was a network error"
           : result == ncclSystemError ? "unhandled system error"
                                       : "invalid argument";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

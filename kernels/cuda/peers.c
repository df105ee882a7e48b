/*
 * peers.c - device memory that the processes of all ranks of a host see
 *
 * Mapping: CUDA's handles of memory between processes. They name whole allocations, which the driver makes of 2 MiB: a set
 *          asks for multiples of that, so that nothing else of this rank is shared with the others.
 */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/all_reduce.h"

#define ALLOCATION ((size_t)2 << 20)

static int64_t up_to(int64_t n, int64_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static status_t checked(const struct peers *p, cudaError_t error, const char *op)
{
    return cuda_status(error, op, p->stream->device);
}

/* Own memory; flags and counters begin at 0. */
static status_t alloc(struct peers *p)
{
    const int64_t size = up_to(p->view.copies_at + 2 * p->view.room, (int64_t)ALLOCATION);
    void *memory = NULL, *counters = NULL;
    TRY(cuda_mem_alloc(p->stream, (size_t)size, &memory));
    p->view.memory[p->view.rank] = memory;
    TRY(cuda_mem_alloc(p->stream, 2 * sizeof(uint32_t), &counters));
    p->counters = counters;
    p->view.n_sums = &p->counters[0];
    p->view.n_ended = &p->counters[1];
    TRY(cuda_mem_zero(p->stream, memory, PEERS_FLAGS_BYTES));
    TRY(cuda_mem_zero(p->stream, counters, 2 * sizeof(uint32_t)));
    return cuda_stream_sync(p->stream);
}

static status_t make(struct peers *p, struct peers_handle *handle_out)
{
    _Static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(struct peers_handle), "handles");
    cudaIpcMemHandle_t handle;
    TRY(alloc(p));
    const status_t s =
        checked(p, cudaIpcGetMemHandle(&handle, p->view.memory[p->view.rank]), "peer memory");
    if (!status_is_ok(&s)) {
        return status_errorf(STATUS_UNAVAILABLE, "%s", s.msg);
    }
    memcpy(handle_out, &handle, sizeof handle);
    return status_ok();
}

status_t cuda_peers_make(struct backend_stream *stream, const struct peers_options *options,
                         struct peers **peers_out, struct peers_handle *handle_out)
{
    if (options->n_ranks < 1 || options->n_ranks > PEERS_MAX_RANKS || options->rank < 0 ||
        options->rank >= options->n_ranks || options->max_bytes < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "peers: rank %d of %d, %lld bytes",
                             options->rank, options->n_ranks, (long long)options->max_bytes);
    }
    struct peers *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "peers: out of memory");
    }
    const int64_t room = up_to(options->max_bytes, 256);
    p->stream = stream;
    p->max_bytes = options->max_bytes;
    p->view = (struct peers_view){
        .rank = options->rank,
        .n_ranks = options->n_ranks,
        .sums_at = PEERS_FLAGS_BYTES,
        .copies_at = PEERS_FLAGS_BYTES + 2 * room,
        .room = room,
        .words = options->words,
    };
    const status_t s = make(p, handle_out);
    if (!status_is_ok(&s)) {
        cuda_peers_free(p);
        return s;
    }
    *peers_out = p;
    return s;
}

status_t cuda_peers_join(struct peers *p, const struct peers_handle *handles)
{
    TRY(checked(p, cudaSetDevice(p->stream->device), "set device"));
    for (int32_t r = 0; r < p->view.n_ranks; r++) {
        if (r != p->view.rank) {
            cudaIpcMemHandle_t handle;
            void *memory = NULL;
            memcpy(&handle, &handles[r], sizeof handle);
            const status_t s =
                checked(p, cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess),
                        "peer memory");
            if (!status_is_ok(&s)) {
                return status_errorf(STATUS_UNAVAILABLE, "memory of rank %d: %s", r, s.msg);
            }
            p->view.memory[r] = memory;
        }
        p->n_mapped = r + 1;
    }
    return status_ok();
}

void cuda_peers_leave(struct peers *p)
{
    (void)cudaSetDevice(p->stream->device);
    (void)cudaStreamSynchronize(p->stream->stream); // what is under way may use it
    for (int32_t r = 0; r < p->n_mapped; r++) {
        if (r != p->view.rank) {
            (void)cudaIpcCloseMemHandle(p->view.memory[r]);
        }
    }
    p->n_mapped = 0;
}

void cuda_peers_free(struct peers *p)
{
    if (p != NULL) {
        cuda_peers_leave(p);
        cuda_mem_free(p->stream, p->view.memory[p->view.rank]);
        cuda_mem_free(p->stream, p->counters);
        free(p);
    }
}

void *cuda_peers_buffer(const struct peers *p, int32_t which)
{
    return p->view.memory[p->view.rank] + p->view.sums_at + which * p->view.room;
}

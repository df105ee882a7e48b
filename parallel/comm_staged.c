#include "parallel/comm_staged.h"

#include <stdlib.h>

#include "kernels/cpu/convert.h"

/* Elements of a sum that are on their way at a time. */
#define PIECE ((int64_t)1 << 20)

struct comm_staged {
    struct comm base;
    struct comm_staged_parts parts;
    void *sent, *got; /* [max_bytes], and at least what a piece of a sum needs */
    int64_t room;     /* bytes of each */
};

static struct comm_staged *self_of(struct comm *comm)
{
    return (struct comm_staged *)comm;
}

// ---- to the host and back ----

static status_t fetch(struct comm_staged *c, const void *from, int64_t n_bytes)
{
    const struct backend *backend = c->parts.backend;
    TRY(backend->download(c->parts.stream, c->sent, from, (size_t)n_bytes));
    return backend->stream_sync(c->parts.stream);
}

/* Host memory is free for the next message only when this one has arrived. */
static status_t deliver(struct comm_staged *c, void *to, const void *from, int64_t n_bytes)
{
    const struct backend *backend = c->parts.backend;
    TRY(backend->upload(c->parts.stream, to, from, (size_t)n_bytes));
    return backend->stream_sync(c->parts.stream);
}

/* Where the last of the parts ends. */
static int64_t extent(const int64_t *counts, const int64_t *displs, int32_t n)
{
    int64_t end = 0;
    for (int32_t r = 0; r < n; r++) {
        end = counts[r] > 0 && displs[r] + counts[r] > end ? displs[r] + counts[r] : end;
    }
    return end;
}

static status_t check_room(const struct comm_staged *c, const char *what, int64_t n_bytes)
{
    if (n_bytes < 0 || n_bytes > c->room) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s of %lld bytes, staging holds %lld", what,
                             (long long)n_bytes, (long long)c->room);
    }
    return status_ok();
}

/* The parts alone: what lies between them on the device stays. */
static status_t deliver_parts(struct comm_staged *c, void *to, const int64_t *counts,
                              const int64_t *displs)
{
    const struct backend *backend = c->parts.backend;
    for (int32_t r = 0; r < c->base.size; r++) {
        if (counts[r] > 0) {
            TRY(backend->upload(c->parts.stream, (char *)to + displs[r],
                                (const char *)c->got + displs[r], (size_t)counts[r]));
        }
    }
    return backend->stream_sync(c->parts.stream);
}

// ---- all_reduce ----

static status_t reduce_piece(struct comm_staged *c, void *buf, int64_t n, int dtype)
{
    struct comm *host = c->parts.host;
    const int64_t n_bytes = n * (int64_t)dtype_bytes(dtype);
    TRY(fetch(c, buf, n_bytes));
    if (dtype == DTYPE_F32) {
        TRY(host->ops->all_reduce(host, c->sent, n, DTYPE_F32));
    } else {
        cpu_convert(c->sent, DTYPE_BF16, n, c->got, DTYPE_F32);
        TRY(host->ops->all_reduce(host, c->got, n, DTYPE_F32));
        cpu_convert(c->got, DTYPE_F32, n, c->sent, DTYPE_BF16);
    }
    return deliver(c, buf, c->sent, n_bytes);
}

static status_t staged_all_reduce(struct comm *comm, void *buf, int64_t n, int dtype)
{
    struct comm_staged *c = self_of(comm);
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "all_reduce of %s: float32 or bfloat16",
                             dtype_name(dtype));
    }
    if (comm->size == 1) {
        return status_ok();
    }
    for (int64_t at = 0; at < n; at += PIECE) {
        const int64_t now = n - at < PIECE ? n - at : PIECE;
        TRY(reduce_piece(c, (char *)buf + at * (int64_t)dtype_bytes(dtype), now, dtype));
    }
    return status_ok();
}

// ---- the others ----
// NOLINTBEGIN(readability-function-size): the parameters are those of comm.h.

static status_t staged_gather_v(struct comm *comm, const void *send, int64_t n_send, void *recv,
                                const int64_t *counts, const int64_t *displs, int32_t root)
{
    struct comm_staged *c = self_of(comm);
    struct comm *host = c->parts.host;
    const bool is_root = comm->rank == root;
    TRY(check_room(c, "gather_v", n_send));
    TRY(check_room(c, "gather_v", is_root ? extent(counts, displs, comm->size) : 0));
    TRY(fetch(c, send, n_send));
    TRY(host->ops->gather_v(host, c->sent, n_send, c->got, counts, displs, root));
    return is_root ? deliver_parts(c, recv, counts, displs) : status_ok();
}

static status_t staged_all_to_all_v(struct comm *comm, const void *send, const int64_t *send_counts,
                                    const int64_t *send_displs, void *recv,
                                    const int64_t *recv_counts, const int64_t *recv_displs)
{
    struct comm_staged *c = self_of(comm);
    struct comm *host = c->parts.host;
    const int64_t n_send = extent(send_counts, send_displs, comm->size);
    TRY(check_room(c, "all_to_all_v", n_send));
    TRY(check_room(c, "all_to_all_v", extent(recv_counts, recv_displs, comm->size)));
    TRY(fetch(c, send, n_send));
    TRY(host->ops->all_to_all_v(host, c->sent, send_counts, send_displs, c->got, recv_counts,
                                recv_displs));
    return deliver_parts(c, recv, recv_counts, recv_displs);
}

// NOLINTEND(readability-function-size)

static status_t staged_broadcast_device(struct comm *comm, void *buf, int64_t n_bytes, int32_t root)
{
    struct comm_staged *c = self_of(comm);
    struct comm *host = c->parts.host;
    TRY(check_room(c, "broadcast_device", n_bytes));
    if (comm->rank == root) {
        TRY(fetch(c, buf, n_bytes));
        return host->ops->broadcast(host, c->sent, (size_t)n_bytes, root);
    }
    TRY(host->ops->broadcast(host, c->got, (size_t)n_bytes, root));
    return deliver(c, buf, c->got, n_bytes);
}

// ---- life ----

static void staged_free(struct comm *comm)
{
    struct comm_staged *c = self_of(comm);
    c->parts.backend->host_free(c->parts.stream, c->sent);
    c->parts.backend->host_free(c->parts.stream, c->got);
    free(c);
}

/* All entries block. */
static const struct comm_ops table = {
    .name = "staged",
    .all_reduce = staged_all_reduce,
    .gather_v = staged_gather_v,
    .all_to_all_v = staged_all_to_all_v,
    .broadcast_device = staged_broadcast_device,
    .all_reduce_add_norm = comm_no_all_reduce_add_norm,
    .buffer = comm_no_buffer,
    .check = comm_always_fine,
    .broadcast = comm_host_broadcast,
    .barrier = comm_host_barrier,
    .send = comm_host_send,
    .recv = comm_host_recv,
    .free = staged_free,
};

status_t comm_staged_new(const struct comm_staged_parts *parts, struct comm **comm_out)
{
    struct comm_staged *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "collectives: no memory");
    }
    const int64_t piece_bytes = PIECE * (int64_t)sizeof(float);
    comm_init(&c->base, &table, parts->host);
    c->parts = *parts;
    c->room = parts->max_bytes > piece_bytes ? parts->max_bytes : piece_bytes;
    status_t s = parts->backend->host_alloc(parts->stream, (size_t)c->room, &c->sent);
    if (status_is_ok(&s)) {
        s = parts->backend->host_alloc(parts->stream, (size_t)c->room, &c->got);
    }
    if (!status_is_ok(&s)) {
        staged_free(&c->base);
        return status_wrapf(s, "staging memory for collectives");
    }
    *comm_out = &c->base;
    return status_ok();
}

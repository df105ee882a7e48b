#include "parallel/comm_peer.h"

#include <stdlib.h>

/* How long free waits for the other ranks. */
#define CLOSE_S 2.0

struct comm_peer {
    struct comm base;
    struct comm_peer_parts parts;
    struct peers *peers;
};

static struct comm_peer *self_of(struct comm *comm)
{
    return (struct comm_peer *)comm;
}

/* Every rank reads every other's part: bytes grow with the square of the ranks, time of a hop does not. (fitted to NVLink) */
int64_t comm_peer_max_bytes(int32_t n_ranks)
{
    if (n_ranks < 2 || n_ranks > PEERS_MAX_RANKS) {
        return 0;
    }
    return n_ranks <= 4 ? (int64_t)512 << 10 : (int64_t)128 << 10;
}

/* The comm that does the rest, which names what it does as this one was told. */
static struct comm *rest_of(struct comm *comm)
{
    struct comm *const rest = self_of(comm)->parts.rest;
    comm_label_pass(comm, rest);
    return rest;
}

// ---- sums ----

static status_t peer_all_reduce(struct comm *comm, void *buf, int64_t n, int dtype)
{
    struct comm_peer *c = self_of(comm);
    const bool known = dtype == DTYPE_F32 || dtype == DTYPE_BF16;
    if (known && n * (int64_t)dtype_bytes(dtype) <= c->parts.max_bytes) {
        const struct peers_sum_args args = {
            .buf = buf, .n = n, .dtype = dtype, .label = comm_label_now(comm)};
        return c->parts.backend->peers->sum(c->peers, &args);
    }
    struct comm *rest = rest_of(comm);
    return rest->ops->all_reduce(rest, buf, n, dtype);
}

static void *peer_buffer(struct comm *comm, int32_t which)
{
    const struct comm_peer *c = self_of(comm);
    return c->parts.backend->peers->buffer(c->peers, which);
}

static status_t peer_all_reduce_add_norm(struct comm *comm, const void *partial,
                                         const struct add_norm_args *args)
{
    struct comm_peer *c = self_of(comm);
    const struct peers_norm_args sum = {
        .norm = *args,
        .which = partial == peer_buffer(comm, 1) ? 1 : 0,
        .label = comm_label_now(comm),
    };
    if (partial != peer_buffer(comm, sum.which)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "all_reduce_add_norm of %p, which is not a buffer of the ranks",
                             partial);
    }
    return c->parts.backend->peers->sum_add_norm(c->peers, &sum);
}

// ---- the rest ----
// NOLINTBEGIN(readability-function-size): the parameters are those of comm.h.

static status_t peer_gather_v(struct comm *comm, const void *send, int64_t n_send, void *recv,
                              const int64_t *counts, const int64_t *displs, int32_t root)
{
    struct comm *rest = rest_of(comm);
    return rest->ops->gather_v(rest, send, n_send, recv, counts, displs, root);
}

static status_t peer_all_to_all_v(struct comm *comm, const void *send, const int64_t *send_counts,
                                  const int64_t *send_displs, void *recv,
                                  const int64_t *recv_counts, const int64_t *recv_displs)
{
    struct comm *rest = rest_of(comm);
    return rest->ops->all_to_all_v(rest, send, send_counts, send_displs, recv, recv_counts,
                                   recv_displs);
}

// NOLINTEND(readability-function-size)

static status_t peer_broadcast_device(struct comm *comm, void *buf, int64_t n_bytes, int32_t root)
{
    struct comm *rest = rest_of(comm);
    return rest->ops->broadcast_device(rest, buf, n_bytes, root);
}

static status_t peer_check(struct comm *comm)
{
    struct comm *rest = self_of(comm)->parts.rest;
    return rest->ops->check(rest);
}

// ---- life ----

/*
 * A rank may still read what another is about to free: first all end their work and their views of the others' memory, then
 * each frees its own. A rank that does not come has failed, or is about to be ended with the whole job.
 */
static void free_set(struct comm_peer *c)
{
    const struct backend_peers *ops = c->parts.backend->peers;
    struct comm *host = c->parts.host;
    if (c->parts.words->abort != 0) {
        return;
    }
    status_t s = host->ops->barrier(host, CLOSE_S);
    if (status_is_ok(&s)) {
        ops->leave(c->peers);
        s = host->ops->barrier(host, CLOSE_S);
    }
    if (status_is_ok(&s)) {
        ops->free(c->peers);
    }
}

static void peer_free(struct comm *comm)
{
    struct comm_peer *c = self_of(comm);
    free_set(c);
    c->parts.rest->ops->free(c->parts.rest);
    free(c);
}

/* all_reduce of short messages and all_reduce_add_norm are asynchronous; the others are what rest is. */
static const struct comm_ops table = {
    .name = "peer",
    .all_reduce = peer_all_reduce,
    .gather_v = peer_gather_v,
    .all_to_all_v = peer_all_to_all_v,
    .broadcast_device = peer_broadcast_device,
    .all_reduce_add_norm = peer_all_reduce_add_norm,
    .buffer = peer_buffer,
    .check = peer_check,
    .broadcast = comm_host_broadcast,
    .barrier = comm_host_barrier,
    .send = comm_host_send,
    .recv = comm_host_recv,
    .free = peer_free,
};

static status_t make_set(struct comm_peer *c, struct peers_handle *handle_out)
{
    const struct peers_options options = {
        .rank = c->base.rank,
        .n_ranks = c->base.size,
        .max_bytes = c->parts.max_bytes,
        .words = c->parts.words,
    };
    if (c->parts.backend->peers == NULL) {
        return status_errorf(STATUS_UNAVAILABLE, "the device %s has no peers",
                             c->parts.backend->name);
    }
    return c->parts.backend->peers->make(c->parts.stream, &options, &c->peers, handle_out);
}

static status_t join_set(struct comm_peer *c, struct peers_handle *mine)
{
    struct comm *host = c->parts.host;
    struct peers_handle handles[PEERS_MAX_RANKS];
    TRY(comm_agree(host, make_set(c, mine)));
    for (int32_t r = 0; r < c->base.size; r++) {
        handles[r] = *mine;
        TRY(host->ops->broadcast(host, &handles[r], sizeof handles[r], r));
    }
    return comm_agree(host, c->parts.backend->peers->join(c->peers, handles));
}

/* Nobody has used the memory yet, but who could map it must give it back before it is freed. */
static void unmake_set(struct comm_peer *c)
{
    struct comm *host = c->parts.host;
    if (c->peers != NULL) {
        c->parts.backend->peers->leave(c->peers);
    }
    const status_t s = host->ops->barrier(host, CLOSE_S);
    if (status_is_ok(&s) && c->peers != NULL) {
        c->parts.backend->peers->free(c->peers);
    }
}

status_t comm_peer_new(const struct comm_peer_parts *parts, struct comm **comm_out)
{
    if (parts->host->size > PEERS_MAX_RANKS) {
        return status_errorf(STATUS_UNAVAILABLE, "%d ranks, at most %d can be peers",
                             parts->host->size, (int)PEERS_MAX_RANKS);
    }
    struct comm_peer *c = calloc(1, sizeof *c);
    status_t s = comm_agree(parts->host, c != NULL ? status_ok()
                                                   : status_errorf(STATUS_RESOURCE_EXHAUSTED,
                                                                   "collectives: no memory"));
    if (c == NULL || !status_is_ok(&s)) {
        free(c);
        return s;
    }
    comm_init(&c->base, &table, parts->host);
    c->base.recordable = parts->rest->recordable;
    c->base.fused_bytes = parts->max_bytes;
    c->parts = *parts;
    struct peers_handle mine = {{0}};
    s = join_set(c, &mine);
    if (!status_is_ok(&s)) {
        unmake_set(c);
        free(c);
        return s;
    }
    *comm_out = &c->base;
    return s;
}

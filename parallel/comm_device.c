/*
 * What is made, from the outside in:
 *
 *     comm_device     the watchdog, and its verdict
 *       comm_peer     where peers are to be had: short sums
 *         comm_nccl | comm_staged
 *
 * The outer one hands calls on; its labels are what the watchdog knows.
 */
#include "parallel/comm_device.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/peers.h"
#include "parallel/comm_nccl.h"
#include "parallel/comm_peer.h"
#include "parallel/comm_staged.h"
#include "parallel/watchdog.h"

struct comm_device {
    struct comm base;
    struct comm_device_parts parts;
    struct peers_words *words;
    struct comm *moved; /* nccl or staged; owned by inner where they differ */
    struct comm *inner;
    struct watchdog *watchdog; /* NULL: staged alone, whose waits are MPI's */
};

static struct comm_device *self_of(struct comm *comm)
{
    return (struct comm_device *)comm;
}

// ---- what there is ----

/* What tells hosts and devices apart. */
struct place {
    char host[64];
    char device[40];
};

/* Of all ranks: whether they are on one host, and which two share a device (-1: none do). */
struct places {
    bool one_host;
    int32_t first, second;
};

static status_t find_place(const struct comm_device *c, struct place *place_out)
{
    enum { MAX_DEVICES = 64 };
    struct device_info devices[MAX_DEVICES];
    int n = 0;
    TRY(c->parts.backend->devices(devices, MAX_DEVICES, &n));
    if (c->parts.device >= n) {
        return status_errorf(STATUS_INTERNAL, "device %d, there are %d", c->parts.device, n);
    }
    memset(place_out, 0, sizeof *place_out);
    (void)gethostname(place_out->host, sizeof place_out->host - 1);
    memcpy(place_out->device, devices[c->parts.device].id, sizeof place_out->device - 1);
    return status_ok();
}

static bool is_same_device(const struct place *a, const struct place *b)
{
    return strcmp(a->host, b->host) == 0 && strcmp(a->device, b->device) == 0;
}

static void compare_places(const struct place *places, int32_t n, struct places *out)
{
    *out = (struct places){.one_host = true, .first = -1, .second = -1};
    for (int32_t r = 0; r < n; r++) {
        out->one_host = out->one_host && strcmp(places[r].host, places[0].host) == 0;
        for (int32_t q = 0; q < r && out->first < 0; q++) {
            if (is_same_device(&places[q], &places[r])) {
                out->first = q;
                out->second = r;
            }
        }
    }
}

static status_t find_places(const struct comm_device *c, struct places *out)
{
    struct comm *host = c->parts.host;
    struct place mine;
    TRY(comm_agree(host, find_place(c, &mine)));
    struct place *all = calloc((size_t)host->size, sizeof *all);
    status_t s =
        comm_agree(host, all != NULL ? status_ok()
                                     : status_errorf(STATUS_RESOURCE_EXHAUSTED,
                                                     "no memory for %d ranks", host->size));
    for (int32_t r = 0; all != NULL && r < host->size && status_is_ok(&s); r++) {
        all[r] = mine;
        s = host->ops->broadcast(host, &all[r], sizeof all[r], r);
    }
    if (all != NULL && status_is_ok(&s)) {
        compare_places(all, host->size, out);
    }
    free(all);
    return s;
}

/* OK where NCCL can be used; all ranks alike. */
static status_t find_nccl(const struct comm_device *c, const struct places *places)
{
    int version = 0;
    if (places->first >= 0) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "ranks %d and %d share a device, which NCCL does not take",
                             places->first, places->second);
    }
    return comm_agree(c->parts.host, comm_nccl_find(&version));
}

// ---- making ----

static status_t make_nccl(struct comm_device *c)
{
    const struct comm_nccl_parts parts = {
        .host = c->parts.host,
        .backend = c->parts.backend,
        .stream = c->parts.stream,
        .words = c->words,
        .order = c->parts.order,
        .timeout_s = c->parts.timeout_s,
    };
    return comm_nccl_new(&parts, &c->moved);
}

static status_t make_staged(struct comm_device *c)
{
    const struct comm_staged_parts parts = {
        .host = c->parts.host,
        .backend = c->parts.backend,
        .stream = c->parts.stream,
        .max_bytes = c->parts.max_bytes,
    };
    return comm_agree(c->parts.host, comm_staged_new(&parts, &c->moved));
}

/* why_out: what NCCL was not taken for. */
static status_t make_moved(struct comm_device *c, const struct places *places, status_t *why_out)
{
    const bool alone = c->parts.choice == COMM_AUTO && c->base.size == 1;
    *why_out = status_errorf(STATUS_OK, alone ? "one rank" : "asked for");
    if (c->parts.choice == COMM_STAGED || alone) {
        return make_staged(c);
    }
    const status_t found = find_nccl(c, places);
    if (status_is_ok(&found)) {
        return make_nccl(c);
    }
    if (c->parts.choice == COMM_NCCL) {
        return status_errorf(STATUS_FAILED_PRECONDITION, "--comm nccl: %s" STATUS_FIX "--comm auto",
                             found.msg);
    }
    *why_out = found;
    return make_staged(c);
}

/* Short sums of our own, where that works; why_out: why not. */
static status_t make_inner(struct comm_device *c, const struct places *places, status_t *why_out)
{
    const int64_t max_bytes = comm_peer_max_bytes(c->base.size);
    c->inner = c->moved;
    *why_out = status_ok();
    if (c->parts.peers == COMM_PEERS_OFF || c->base.size == 1) {
        return status_ok();
    }
    if (max_bytes == 0 || !places->one_host) {
        *why_out = status_errorf(STATUS_UNAVAILABLE, "%d ranks%s", c->base.size,
                                 places->one_host ? "" : " on several hosts");
        return status_ok();
    }
    const struct comm_peer_parts parts = {
        .host = c->parts.host,
        .rest = c->moved,
        .backend = c->parts.backend,
        .stream = c->parts.stream,
        .words = c->words,
        .max_bytes = max_bytes,
    };
    const status_t s = comm_peer_new(&parts, &c->inner);
    if (s.code != STATUS_UNAVAILABLE) {
        return s;
    }
    *why_out = s;
    return status_ok();
}

// ---- the watchdog's ----

static bool is_nccl(const struct comm_device *c)
{
    return c->moved->recordable;
}

static status_t look(void *user)
{
    struct comm_device *c = user;
    return is_nccl(c) ? comm_nccl_look(c->moved) : status_ok();
}

static void end_all(void *user)
{
    struct comm_device *c = user;
    __atomic_store_n(&c->words->abort, 1u, __ATOMIC_RELEASE);
    if (is_nccl(c)) {
        comm_nccl_end(c->moved);
    }
}

static status_t make_watchdog(struct comm_device *c)
{
    if (!is_nccl(c) && c->inner == c->moved) {
        return status_ok();
    }
    const struct watchdog_parts parts = {
        .comm = &c->base,
        .words = c->words,
        .timeout_s = c->parts.timeout_s,
        .look = look,
        .end = end_all,
        .user = c,
        .log = c->parts.log,
    };
    return watchdog_new(&parts, &c->watchdog);
}

// ---- the table ----

/* The verdict says more than what a call on an ended communicator has to say. */
static status_t judged(struct comm_device *c, status_t s)
{
    if (status_is_ok(&s) || c->watchdog == NULL) {
        return s;
    }
    const status_t verdict = watchdog_verdict(c->watchdog);
    return status_is_ok(&verdict) ? s : verdict;
}

static struct comm *inner_of(struct comm *comm)
{
    struct comm *const inner = self_of(comm)->inner;
    comm_label_pass(comm, inner);
    return inner;
}

static status_t device_all_reduce(struct comm *comm, void *buf, int64_t n, int dtype)
{
    struct comm *inner = inner_of(comm);
    return judged(self_of(comm), inner->ops->all_reduce(inner, buf, n, dtype));
}

// NOLINTBEGIN(readability-function-size): the parameters are those of comm.h.

static status_t device_gather_v(struct comm *comm, const void *send, int64_t n_send, void *recv,
                                const int64_t *counts, const int64_t *displs, int32_t root)
{
    struct comm *inner = inner_of(comm);
    return judged(self_of(comm),
                  inner->ops->gather_v(inner, send, n_send, recv, counts, displs, root));
}

static status_t device_all_to_all_v(struct comm *comm, const void *send, const int64_t *send_counts,
                                    const int64_t *send_displs, void *recv,
                                    const int64_t *recv_counts, const int64_t *recv_displs)
{
    struct comm *inner = inner_of(comm);
    return judged(self_of(comm), inner->ops->all_to_all_v(inner, send, send_counts, send_displs,
                                                          recv, recv_counts, recv_displs));
}

// NOLINTEND(readability-function-size)

static status_t device_broadcast_device(struct comm *comm, void *buf, int64_t n_bytes, int32_t root)
{
    struct comm *inner = inner_of(comm);
    return judged(self_of(comm), inner->ops->broadcast_device(inner, buf, n_bytes, root));
}

static status_t device_all_reduce_add_norm(struct comm *comm, const void *partial,
                                           const struct add_norm_args *args)
{
    struct comm *inner = inner_of(comm);
    return inner->ops->all_reduce_add_norm(inner, partial, args);
}

static void *device_buffer(struct comm *comm, int32_t which)
{
    struct comm *inner = self_of(comm)->inner;
    return inner->ops->buffer(inner, which);
}

static status_t device_check(struct comm *comm)
{
    struct comm_device *c = self_of(comm);
    if (c->watchdog != NULL) {
        TRY(watchdog_verdict(c->watchdog));
    }
    return c->inner->ops->check(c->inner);
}

static void device_free(struct comm *comm)
{
    struct comm_device *c = self_of(comm);
    watchdog_free(c->watchdog); // first: it looks at the others
    if (c->inner != NULL) {
        c->inner->ops->free(c->inner);
    } else if (c->moved != NULL) {
        c->moved->ops->free(c->moved);
    }
    c->parts.backend->host_free(c->parts.stream, c->words);
    free(c);
}

static const struct comm_ops table = {
    .name = "device",
    .all_reduce = device_all_reduce,
    .gather_v = device_gather_v,
    .all_to_all_v = device_all_to_all_v,
    .broadcast_device = device_broadcast_device,
    .all_reduce_add_norm = device_all_reduce_add_norm,
    .buffer = device_buffer,
    .check = device_check,
    .broadcast = comm_host_broadcast,
    .barrier = comm_host_barrier,
    .send = comm_host_send,
    .recv = comm_host_recv,
    .free = device_free,
};

// ---- life ----

static void report(const struct comm_device *c, const status_t *no_nccl, const status_t *no_peers)
{
    log_write(&c->parts.log, LOG_INFO, "collectives",
              "comm=%s why=\"%s\" own_sums_bytes=%lld why_not_more=\"%s\" ranks=%d",
              c->moved->ops->name, is_nccl(c) ? "every rank has a device of its own" : no_nccl->msg,
              (long long)c->base.fused_bytes,
              status_is_ok(no_peers) ? "longer ones go by the library" : no_peers->msg,
              c->base.size);
}

static status_t make_words(struct comm_device *c)
{
    void *words = NULL;
    TRY(c->parts.backend->host_alloc(c->parts.stream, sizeof *c->words, &words));
    c->words = words;
    memset(words, 0, sizeof *c->words);
    return status_ok();
}

static status_t make_all(struct comm_device *c)
{
    struct comm *host = c->parts.host;
    struct places places = {.one_host = false, .first = -1, .second = -1};
    status_t no_nccl = status_ok(), no_peers = status_ok();
    TRY(comm_agree(host, make_words(c)));
    TRY(find_places(c, &places));
    TRY(make_moved(c, &places, &no_nccl));
    TRY(make_inner(c, &places, &no_peers));
    TRY(comm_agree(host, make_watchdog(c)));
    c->base.recordable = c->inner->recordable;
    c->base.fused_bytes = c->inner->fused_bytes;
    report(c, &no_nccl, &no_peers);
    return status_ok();
}

status_t comm_device_new(const struct comm_device_parts *parts, struct comm **comm_out)
{
    struct comm_device *c = calloc(1, sizeof *c);
    status_t s = comm_agree(parts->host, c != NULL ? status_ok()
                                                   : status_errorf(STATUS_RESOURCE_EXHAUSTED,
                                                                   "collectives: no memory"));
    if (c == NULL || !status_is_ok(&s)) {
        free(c);
        return s;
    }
    comm_init(&c->base, &table, parts->host);
    c->parts = *parts;
    s = make_all(c);
    if (!status_is_ok(&s)) {
        device_free(&c->base);
        return s;
    }
    *comm_out = &c->base;
    return s;
}

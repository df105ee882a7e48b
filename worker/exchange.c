#include "worker/exchange.h"

#include <stdlib.h>
#include <string.h>

/* Some heads of one lane's rows, on this rank: n_rows rows of `width` bytes, `stride` apart. */
struct stretch {
    char *data; /* NULL: there are none */
    int64_t stride;
    int64_t width;
    int32_t n_rows;
};

/* One direction of one layer: where its stretches are. */
struct movement {
    const struct exchange *exchange;
    const struct exchange_step *step;
    char *kv_side;
};

typedef struct stretch stretch_fn(const struct movement *m, int32_t lane, int32_t peer);

// ---- stretches ----

static int64_t head_bytes(const struct exchange *x)
{
    return x->parts.plan->head_dim * (int64_t)dtype_bytes(x->parts.backend->activation);
}

/* Query heads of q_rank whose KV head kv_rank holds for the lane. */
static plan_interval_t shared_heads(const struct movement *m, int32_t lane, int32_t q_rank,
                                    int32_t kv_rank)
{
    const struct plan *plan = m->exchange->parts.plan;
    const int32_t class_index = plan->layers[m->step->layer].class_index;
    const int32_t group = plan->n_heads / plan->classes[class_index].n_kv_heads;
    const plan_interval_t q = plan_q_heads(plan, m->step->layer, q_rank);
    const int32_t *held;
    const int32_t n = plan_held(plan, class_index, kv_rank, lane, &held);
    if (n == 0) {
        return (plan_interval_t){0, 0};
    }
    const int32_t begin = held[0] * group;
    const int32_t end = (held[n - 1] + 1) * group;
    const plan_interval_t both = {
        .begin = q.begin > begin ? q.begin : begin,
        .end = q.end < end ? q.end : end,
    };
    return both.end > both.begin ? both : (plan_interval_t){0, 0};
}

static int32_t rows_of_lane(const struct movement *m, int32_t lane)
{
    return m->step->lane_rows[lane + 1] - m->step->lane_rows[lane];
}

/* Heads of mine that the peer attends to, in the query side's rows. */
static struct stretch query_stretch(const struct movement *m, int32_t lane, int32_t peer)
{
    const struct exchange *x = m->exchange;
    const int32_t rank = x->parts.comm->rank;
    const plan_interval_t mine = plan_q_heads(x->parts.plan, m->step->layer, rank);
    const plan_interval_t heads = shared_heads(m, lane, rank, peer);
    struct stretch stretch = {
        .stride = x->parts.ld * (int64_t)dtype_bytes(x->parts.backend->activation),
        .width = (heads.end - heads.begin) * head_bytes(x),
        .n_rows = rows_of_lane(m, lane),
    };
    if (stretch.width > 0) {
        stretch.data = (char *)m->step->query_side + m->step->lane_rows[lane] * stretch.stride +
                       (heads.begin - mine.begin) * head_bytes(x);
    }
    return stretch;
}

/* Bytes of a ragged row of the lane, and the first query head in it. */
static int64_t ragged_width(const struct movement *m, int32_t lane, int32_t *first_out)
{
    const struct exchange *x = m->exchange;
    const struct plan *plan = x->parts.plan;
    const int32_t class_index = plan->layers[m->step->layer].class_index;
    const int32_t group = plan->n_heads / plan->classes[class_index].n_kv_heads;
    const int32_t *held;
    const int32_t n = plan_held(plan, class_index, x->parts.comm->rank, lane, &held);
    *first_out = n > 0 ? held[0] * group : 0;
    return (int64_t)n * group * head_bytes(x);
}

/* Heads of the peer's that I attend to, in the ragged rows. */
static struct stretch kv_stretch(const struct movement *m, int32_t lane, int32_t peer)
{
    const struct exchange *x = m->exchange;
    const plan_interval_t heads = shared_heads(m, lane, peer, x->parts.comm->rank);
    int32_t first;
    int64_t before = 0; // bytes of the lanes before this one
    for (int32_t u = 0; u < lane; u++) {
        before += rows_of_lane(m, u) * ragged_width(m, u, &first);
    }
    struct stretch stretch = {
        .stride = ragged_width(m, lane, &first),
        .width = (heads.end - heads.begin) * head_bytes(x),
        .n_rows = rows_of_lane(m, lane),
    };
    if (stretch.width > 0) {
        stretch.data = m->kv_side + before + (heads.begin - first) * head_bytes(x);
    }
    return stretch;
}

// ---- messages ----

/* Counts and displacements of the messages to or from every peer; what stays here does not travel. */
static void count(const struct movement *m, stretch_fn *side, int64_t *counts, int64_t *displs)
{
    const struct exchange_parts *parts = &m->exchange->parts;
    int64_t total = 0;
    for (int32_t peer = 0; peer < parts->comm->size; peer++) {
        displs[peer] = total;
        for (int32_t lane = 0; peer != parts->comm->rank && lane < parts->plan->n_lanes; lane++) {
            const struct stretch stretch = side(m, lane, peer);
            total += stretch.n_rows * stretch.width;
        }
        counts[peer] = total - displs[peer];
    }
}

/* The peer's message out of its stretches, as strips from n on; returns how many there are then. A message is lane after
 * lane, dense. */
static int32_t pack(const struct movement *m, stretch_fn *from, int32_t peer, char *message,
                    int32_t n)
{
    struct strip *strips = m->exchange->strips;
    for (int32_t lane = 0; lane < m->exchange->parts.plan->n_lanes; lane++) {
        const struct stretch s = from(m, lane, peer);
        if (s.width > 0 && s.n_rows > 0) {
            strips[n++] = (struct strip){.from = s.data,
                                         .to = message,
                                         .from_stride_bytes = s.stride,
                                         .to_stride_bytes = s.width,
                                         .row_bytes = s.width,
                                         .n_rows = s.n_rows};
            message += s.n_rows * s.width;
        }
    }
    return n;
}

static int32_t unpack(const struct movement *m, stretch_fn *to, int32_t peer, const char *message,
                      int32_t n)
{
    struct strip *strips = m->exchange->strips;
    for (int32_t lane = 0; lane < m->exchange->parts.plan->n_lanes; lane++) {
        const struct stretch s = to(m, lane, peer);
        if (s.width > 0 && s.n_rows > 0) {
            strips[n++] = (struct strip){.from = message,
                                         .to = s.data,
                                         .from_stride_bytes = s.width,
                                         .to_stride_bytes = s.stride,
                                         .row_bytes = s.width,
                                         .n_rows = s.n_rows};
            message += s.n_rows * s.width;
        }
    }
    return n;
}

/* Heads whose KV head is on their own rank go from one layout to the other here. */
static int32_t keep(const struct movement *m, stretch_fn *from, stretch_fn *to, int32_t n)
{
    struct strip *strips = m->exchange->strips;
    const int32_t rank = m->exchange->parts.comm->rank;
    for (int32_t lane = 0; lane < m->exchange->parts.plan->n_lanes; lane++) {
        const struct stretch source = from(m, lane, rank);
        const struct stretch target = to(m, lane, rank);
        if (source.width > 0 && source.n_rows > 0) {
            strips[n++] = (struct strip){.from = source.data,
                                         .to = target.data,
                                         .from_stride_bytes = source.stride,
                                         .to_stride_bytes = target.stride,
                                         .row_bytes = source.width,
                                         .n_rows = source.n_rows};
        }
    }
    return n;
}

static status_t move(const struct movement *m, stretch_fn *from, stretch_fn *to)
{
    const struct exchange *x = m->exchange;
    const struct backend *backend = x->parts.backend;
    struct comm *comm = x->parts.comm;
    int64_t *const *counts = x->counts;
    count(m, from, counts[0], counts[1]);
    count(m, to, counts[2], counts[3]);
    int32_t n = keep(m, from, to, 0);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (peer != comm->rank) {
            n = pack(m, from, peer, x->sent + counts[1][peer], n);
        }
    }
    TRY(backend->copy_strips(x->parts.stream, x->strips, n));
    TRY(comm->ops->all_to_all_v(comm, x->sent, counts[0], counts[1], x->got, counts[2], counts[3]));
    n = 0;
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (peer != comm->rank) {
            n = unpack(m, to, peer, x->got + counts[3][peer], n);
        }
    }
    return backend->copy_strips(x->parts.stream, x->strips, n);
}

status_t exchange_queries(struct exchange *exchange, const struct exchange_step *step)
{
    const struct movement m = {exchange, step, exchange->q};
    return move(&m, query_stretch, kv_stretch);
}

status_t exchange_outputs(struct exchange *exchange, const struct exchange_step *step)
{
    const struct movement m = {exchange, step, exchange->out};
    return move(&m, kv_stretch, query_stretch);
}

// ---- memory ----

static status_t alloc_bytes(const struct exchange *x, int64_t n, char **out)
{
    void *memory;
    TRY(x->parts.backend->mem_alloc(x->parts.stream, (size_t)n, &memory));
    *out = memory;
    return status_ok();
}

static status_t alloc_all(struct exchange *x, int64_t kv_side, int64_t either)
{
    const size_t n_ranks = (size_t)x->parts.comm->size;
    TRY(alloc_bytes(x, kv_side, &x->q));
    TRY(alloc_bytes(x, kv_side, &x->out));
    TRY(alloc_bytes(x, either, &x->sent));
    TRY(alloc_bytes(x, either, &x->got));
    x->strips = calloc((n_ranks + 1) * (size_t)x->parts.plan->n_lanes, sizeof *x->strips);
    bool failed = x->strips == NULL;
    for (size_t i = 0; i < sizeof x->counts / sizeof x->counts[0]; i++) {
        x->counts[i] = calloc(n_ranks, sizeof *x->counts[i]);
        failed = failed || x->counts[i] == NULL;
    }
    return failed ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the exchange")
                  : status_ok();
}

int64_t exchange_max_bytes(const struct plan *plan, int32_t rank, int32_t max_rows, int dtype)
{
    int32_t kv_side;
    int32_t either;
    plan_exchange_heads(plan, rank, &kv_side, &either);
    return (int64_t)max_rows * plan->head_dim * (int64_t)dtype_bytes(dtype) * either;
}

status_t exchange_init(struct exchange *exchange, const struct exchange_parts *parts)
{
    struct exchange made = {.parts = *parts};
    int32_t kv_side;
    int32_t either;
    plan_exchange_heads(parts->plan, parts->rank, &kv_side, &either);
    if (either > 0) {
        const int64_t row = parts->max_rows * head_bytes(&made);
        // A rank may hold nothing in the layers that exchange: buffers of one head are still buffers.
        const status_t s = alloc_all(&made, row * (kv_side > 0 ? kv_side : 1), row * either);
        if (!status_is_ok(&s)) {
            exchange_destroy(&made);
            return s;
        }
    }
    *exchange = made;
    return status_ok();
}

void exchange_destroy(struct exchange *x)
{
    if (x->parts.backend == NULL) {
        return;
    }
    char *const buffers[] = {x->q, x->out, x->sent, x->got};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        x->parts.backend->mem_free(x->parts.stream, buffers[i]);
    }
    for (size_t i = 0; i < sizeof x->counts / sizeof x->counts[0]; i++) {
        free(x->counts[i]);
    }
    free(x->strips);
    memset(x, 0, sizeof *x);
}

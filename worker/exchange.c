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
    int32_t class_index;
    int32_t group;   /* query heads of a KV head */
    int32_t n_lanes; /* 1 under token */
    int64_t head_bytes;
};

typedef struct stretch stretch_fn(const struct movement *m, int32_t lane, int32_t peer);

// ---- stretches ----

static int64_t activation_bytes(const struct exchange *x)
{
    return (int64_t)dtype_bytes(x->parts.backend->activation);
}

static bool by_token(const struct movement *m)
{
    return m->exchange->parts.plan->classes[m->class_index].placement == PLAN_TOKEN;
}

static struct movement movement_of(const struct exchange *x, const struct exchange_step *step,
                                   char *kv_side)
{
    const struct plan *plan = x->parts.plan;
    struct movement m = {
        .exchange = x,
        .step = step,
        .kv_side = kv_side,
        .class_index = plan->layers[step->layer].class_index,
        .head_bytes = plan->head_dim * activation_bytes(x),
    };
    m.group = plan->n_heads / plan->classes[m.class_index].n_kv_heads;
    m.n_lanes = by_token(&m) ? 1 : plan->n_lanes;
    return m;
}

/* Query heads of the KV heads that the rank holds for the lane, whoever has the queries. */
static plan_interval_t held_heads(const struct movement *m, int32_t lane, int32_t rank)
{
    const struct plan *plan = m->exchange->parts.plan;
    plan_interval_t heads = {0, 0};
    if (by_token(m)) {
        heads = plan_kv_weight_heads(plan, m->class_index, rank);
    } else {
        const int32_t *held;
        const int32_t n = plan_held(plan, m->class_index, rank, lane, &held);
        heads = n > 0 ? (plan_interval_t){held[0], held[n - 1] + 1} : heads;
    }
    return (plan_interval_t){heads.begin * m->group, heads.end * m->group};
}

/* Query heads of q_rank whose KV head kv_rank holds for the lane. */
static plan_interval_t shared_heads(const struct movement *m, int32_t lane, int32_t q_rank,
                                    int32_t kv_rank)
{
    const plan_interval_t q = plan_q_heads(m->exchange->parts.plan, m->step->layer, q_rank);
    const plan_interval_t held = held_heads(m, lane, kv_rank);
    const plan_interval_t both = {
        .begin = q.begin > held.begin ? q.begin : held.begin,
        .end = q.end < held.end ? q.end : held.end,
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
        .stride = x->parts.ld * activation_bytes(x),
        .width = (heads.end - heads.begin) * m->head_bytes,
        .n_rows = rows_of_lane(m, lane),
    };
    if (stretch.width > 0) {
        stretch.data = (char *)m->step->query_side + m->step->lane_rows[lane] * stretch.stride +
                       (heads.begin - mine.begin) * m->head_bytes;
    }
    return stretch;
}

/* Heads of the peer's that I attend to, in the ragged rows. */
static struct stretch kv_stretch(const struct movement *m, int32_t lane, int32_t peer)
{
    const int32_t rank = m->exchange->parts.comm->rank;
    const plan_interval_t heads = shared_heads(m, lane, peer, rank);
    const plan_interval_t held = held_heads(m, lane, rank);
    int64_t before = 0; // bytes of the lanes before this one
    for (int32_t u = 0; u < lane; u++) {
        const plan_interval_t of_lane = held_heads(m, u, rank);
        before += (of_lane.end - of_lane.begin) * m->head_bytes * rows_of_lane(m, u);
    }
    struct stretch stretch = {
        .stride = (held.end - held.begin) * m->head_bytes,
        .width = (heads.end - heads.begin) * m->head_bytes,
        .n_rows = rows_of_lane(m, lane),
    };
    if (stretch.width > 0) {
        stretch.data = m->kv_side + before + (heads.begin - held.begin) * m->head_bytes;
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
        for (int32_t lane = 0; peer != parts->comm->rank && lane < m->n_lanes; lane++) {
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
    for (int32_t lane = 0; lane < m->n_lanes; lane++) {
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
    for (int32_t lane = 0; lane < m->n_lanes; lane++) {
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
    for (int32_t lane = 0; lane < m->n_lanes; lane++) {
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

/* What goes to and comes from every peer, from `from` to exchange->got; n strips stand before those that pack it. */
static status_t send(const struct movement *m, stretch_fn *from, stretch_fn *to, int32_t n)
{
    const struct exchange *x = m->exchange;
    struct comm *comm = x->parts.comm;
    int64_t *const *counts = x->counts;
    count(m, from, counts[0], counts[1]);
    count(m, to, counts[2], counts[3]);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (peer != comm->rank) {
            n = pack(m, from, peer, x->sent + counts[1][peer], n);
        }
    }
    TRY(x->parts.backend->copy_strips(x->parts.stream, x->strips, n));
    return comm->ops->all_to_all_v(comm, x->sent, counts[0], counts[1], x->got, counts[2],
                                   counts[3]);
}

static status_t move(const struct movement *m, stretch_fn *from, stretch_fn *to)
{
    const struct exchange *x = m->exchange;
    const struct comm *comm = x->parts.comm;
    TRY(send(m, from, to, keep(m, from, to, 0)));
    int32_t n = 0;
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (peer != comm->rank) {
            n = unpack(m, to, peer, x->got + x->counts[3][peer], n);
        }
    }
    return x->parts.backend->copy_strips(x->parts.stream, x->strips, n);
}

// ---- parts ----

/* The peer's part of my heads; my own lies where it was computed. */
static struct attention_source source_of(const struct movement *m, int32_t peer)
{
    const struct exchange *x = m->exchange;
    const int32_t rank = x->parts.comm->rank;
    const plan_interval_t mine = plan_q_heads(x->parts.plan, m->step->layer, rank);
    const plan_interval_t heads = shared_heads(m, 0, rank, peer);
    const struct stretch own = kv_stretch(m, 0, rank);
    const void *const rows = peer == rank ? own.data : x->got + x->counts[3][peer];
    const int64_t row_bytes = peer == rank ? own.stride : (heads.end - heads.begin) * m->head_bytes;
    return (struct attention_source){
        .rows = rows,
        .ld = row_bytes / (int64_t)sizeof(float),
        .head_begin = heads.begin - mine.begin,
        .head_end = heads.end - mine.begin,
    };
}

/* In the order of the ranks. Parts are float32, whatever activations are. */
static status_t merge(const struct exchange *x, const struct exchange_step *step)
{
    const struct plan *plan = x->parts.plan;
    const struct comm *comm = x->parts.comm;
    struct movement m = movement_of(x, step, x->out);
    m.head_bytes = (plan->head_dim + ATTENTION_STATS) * (int64_t)sizeof(float);
    TRY(send(&m, kv_stretch, query_stretch, 0));
    const plan_interval_t mine = plan_q_heads(plan, step->layer, comm->rank);
    struct attention_merge_args args = {
        .sources = x->sources,
        .n_rows = rows_of_lane(&m, 0),
        .n_heads = mine.end - mine.begin,
        .head_dim = plan->head_dim,
        .out = step->query_side,
        .ld = x->parts.ld,
    };
    for (int32_t peer = 0; peer < comm->size; peer++) {
        const plan_interval_t heads = shared_heads(&m, 0, comm->rank, peer);
        if (heads.end > heads.begin) {
            x->sources[args.n_sources++] = source_of(&m, peer);
        }
    }
    return x->parts.backend->attention_merge(x->parts.stream, &args);
}

status_t exchange_queries(struct exchange *exchange, const struct exchange_step *step)
{
    const struct movement m = movement_of(exchange, step, exchange->q);
    return move(&m, query_stretch, kv_stretch);
}

status_t exchange_outputs(struct exchange *exchange, const struct exchange_step *step)
{
    const struct movement m = movement_of(exchange, step, exchange->out);
    return by_token(&m) ? merge(exchange, step) : move(&m, kv_stretch, query_stretch);
}

// ---- memory ----

static status_t alloc_bytes(const struct exchange *x, int64_t n, char **out)
{
    void *memory;
    TRY(x->parts.backend->mem_alloc(x->parts.stream, (size_t)n, &memory));
    *out = memory;
    return status_ok();
}

static int64_t message_bytes(const struct plan_exchange *of_row)
{
    return of_row->query_message > of_row->output_message ? of_row->query_message
                                                          : of_row->output_message;
}

static status_t alloc_all(struct exchange *x, const struct plan_exchange *of_row)
{
    const size_t n_ranks = (size_t)x->parts.comm->size;
    const int64_t n_rows = x->parts.max_rows;
    const int64_t message = message_bytes(of_row);
    TRY(alloc_bytes(x, n_rows * of_row->queries, &x->q));
    TRY(alloc_bytes(x, n_rows * of_row->outputs, &x->out));
    TRY(alloc_bytes(x, n_rows * message, &x->sent));
    TRY(alloc_bytes(x, n_rows * message, &x->got));
    x->strips = calloc((n_ranks + 1) * (size_t)x->parts.plan->n_lanes, sizeof *x->strips);
    x->sources = calloc(n_ranks, sizeof *x->sources);
    bool failed = x->strips == NULL || x->sources == NULL;
    for (size_t i = 0; i < sizeof x->counts / sizeof x->counts[0]; i++) {
        x->counts[i] = calloc(n_ranks, sizeof *x->counts[i]);
        failed = failed || x->counts[i] == NULL;
    }
    return failed ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the exchange")
                  : status_ok();
}

int64_t exchange_max_bytes(const struct plan *plan, int32_t rank, int32_t max_rows, int dtype)
{
    struct plan_exchange of_row;
    plan_exchange_bytes(plan, rank, dtype, &of_row);
    return max_rows * message_bytes(&of_row);
}

status_t exchange_init(struct exchange *exchange, const struct exchange_parts *parts)
{
    struct exchange made = {.parts = *parts};
    struct plan_exchange of_row;
    plan_exchange_bytes(parts->plan, parts->rank, parts->backend->activation, &of_row);
    if (message_bytes(&of_row) > 0) {
        const status_t s = alloc_all(&made, &of_row);
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
    free(x->sources);
    memset(x, 0, sizeof *x);
}

#include "worker/exchange.h"

#include <stdlib.h>
#include <string.h>

/* Some heads of one lane's rows, on this rank: n_rows rows of `width` floats, ld apart. */
struct strip {
    float *data;
    int64_t ld;
    int64_t width;
    int32_t n_rows;
};

/* One direction of one layer: where its strips are. */
struct movement {
    const struct exchange *exchange;
    const struct exchange_step *step;
    float *kv_side;
};

typedef struct strip strip_fn(const struct movement *m, int32_t lane, int32_t peer);

// ---- strips ----

/* Query heads of q_rank whose KV head kv_rank holds for the lane. */
static plan_interval_t shared_heads(const struct movement *m, int32_t lane, int32_t q_rank,
                                    int32_t kv_rank)
{
    const struct plan *plan = m->exchange->plan;
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
static struct strip query_strip(const struct movement *m, int32_t lane, int32_t peer)
{
    const struct exchange *x = m->exchange;
    const int64_t head_dim = x->plan->head_dim;
    const plan_interval_t mine = plan_q_heads(x->plan, m->step->layer, x->comm->rank);
    const plan_interval_t heads = shared_heads(m, lane, x->comm->rank, peer);
    struct strip strip = {
        .ld = (mine.end - mine.begin) * head_dim,
        .width = (heads.end - heads.begin) * head_dim,
        .n_rows = rows_of_lane(m, lane),
    };
    if (strip.width > 0) {
        strip.data = m->step->query_side + m->step->lane_rows[lane] * strip.ld +
                     (heads.begin - mine.begin) * head_dim;
    }
    return strip;
}

/* Floats of a ragged row of the lane, and the first query head in it. */
static int64_t ragged_width(const struct movement *m, int32_t lane, int32_t *first_out)
{
    const struct plan *plan = m->exchange->plan;
    const int32_t class_index = plan->layers[m->step->layer].class_index;
    const int32_t group = plan->n_heads / plan->classes[class_index].n_kv_heads;
    const int32_t *held;
    const int32_t n = plan_held(plan, class_index, m->exchange->comm->rank, lane, &held);
    *first_out = n > 0 ? held[0] * group : 0;
    return (int64_t)n * group * plan->head_dim;
}

/* Heads of the peer's that I attend to, in the ragged rows. */
static struct strip kv_strip(const struct movement *m, int32_t lane, int32_t peer)
{
    const struct exchange *x = m->exchange;
    const int64_t head_dim = x->plan->head_dim;
    const plan_interval_t heads = shared_heads(m, lane, peer, x->comm->rank);
    int32_t first;
    int64_t before = 0; // floats of the lanes before this one
    for (int32_t u = 0; u < lane; u++) {
        before += rows_of_lane(m, u) * ragged_width(m, u, &first);
    }
    struct strip strip = {
        .ld = ragged_width(m, lane, &first),
        .width = (heads.end - heads.begin) * head_dim,
        .n_rows = rows_of_lane(m, lane),
    };
    if (strip.width > 0) {
        strip.data = m->kv_side + before + (heads.begin - first) * head_dim;
    }
    return strip;
}

// ---- messages ----

static void copy_rows(float *to, int64_t ld_to, const float *from, int64_t ld_from,
                      const struct strip *shape)
{
    for (int32_t i = 0; i < shape->n_rows; i++) {
        memcpy(to + i * ld_to, from + i * ld_from, (size_t)shape->width * sizeof *to);
    }
}

/* Counts and displacements of the messages to or from every peer; what stays here does not travel. */
static void count(const struct movement *m, strip_fn *side, int64_t *counts, int64_t *displs)
{
    const struct exchange *x = m->exchange;
    int64_t total = 0;
    for (int32_t peer = 0; peer < x->comm->size; peer++) {
        displs[peer] = total;
        for (int32_t lane = 0; peer != x->comm->rank && lane < x->plan->n_lanes; lane++) {
            const struct strip strip = side(m, lane, peer);
            total += strip.n_rows * strip.width;
        }
        counts[peer] = total - displs[peer];
    }
}

static void pack(const struct movement *m, strip_fn *from, int32_t peer, float *message)
{
    for (int32_t lane = 0; lane < m->exchange->plan->n_lanes; lane++) {
        const struct strip strip = from(m, lane, peer);
        if (strip.width > 0) {
            copy_rows(message, strip.width, strip.data, strip.ld, &strip);
            message += strip.n_rows * strip.width;
        }
    }
}

static void unpack(const struct movement *m, strip_fn *to, int32_t peer, const float *message)
{
    for (int32_t lane = 0; lane < m->exchange->plan->n_lanes; lane++) {
        const struct strip strip = to(m, lane, peer);
        if (strip.width > 0) {
            copy_rows(strip.data, strip.ld, message, strip.width, &strip);
            message += strip.n_rows * strip.width;
        }
    }
}

/* Heads whose KV head is on their own rank go from one layout to the other here. */
static void keep(const struct movement *m, strip_fn *from, strip_fn *to)
{
    const int32_t rank = m->exchange->comm->rank;
    for (int32_t lane = 0; lane < m->exchange->plan->n_lanes; lane++) {
        const struct strip source = from(m, lane, rank);
        const struct strip target = to(m, lane, rank);
        if (source.width > 0) {
            copy_rows(target.data, target.ld, source.data, source.ld, &source);
        }
    }
}

static status_t move(const struct movement *m, strip_fn *from, strip_fn *to)
{
    const struct exchange *x = m->exchange;
    struct comm *comm = x->comm;
    int64_t *const *counts = x->counts;
    count(m, from, counts[0], counts[1]);
    count(m, to, counts[2], counts[3]);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (counts[0][peer] > 0) {
            pack(m, from, peer, x->sent + counts[1][peer]);
        }
    }
    TRY(comm->ops->all_to_all_v(comm, x->sent, counts[0], counts[1], x->got, counts[2], counts[3]));
    keep(m, from, to);
    for (int32_t peer = 0; peer < comm->size; peer++) {
        if (counts[2][peer] > 0) {
            unpack(m, to, peer, x->got + counts[3][peer]);
        }
    }
    return status_ok();
}

status_t exchange_queries(struct exchange *exchange, const struct exchange_step *step)
{
    const struct movement m = {exchange, step, exchange->q};
    return move(&m, query_strip, kv_strip);
}

status_t exchange_outputs(struct exchange *exchange, const struct exchange_step *step)
{
    const struct movement m = {exchange, step, exchange->out};
    return move(&m, kv_strip, query_strip);
}

// ---- memory ----

/* Query heads of a row on the KV side at most, and on either side; 0 when no layer exchanges. */
static void max_heads(const struct plan *plan, int32_t rank, int32_t *kv_side_out,
                      int32_t *either_out)
{
    int32_t kv_side = 0;
    int32_t either = 0;
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        if (plan_attention_is_local(plan, layer)) {
            continue;
        }
        const int32_t class_index = plan->layers[layer].class_index;
        const int32_t group = plan->n_heads / plan->classes[class_index].n_kv_heads;
        const plan_interval_t q = plan_q_heads(plan, layer, rank);
        either = q.end - q.begin > either ? q.end - q.begin : either;
        for (int32_t lane = 0; lane < plan->n_lanes; lane++) {
            const int32_t *held;
            const int32_t n = group * plan_held(plan, class_index, rank, lane, &held);
            kv_side = n > kv_side ? n : kv_side;
        }
    }
    *kv_side_out = kv_side;
    *either_out = kv_side > either ? kv_side : either;
}

static status_t alloc_floats(const struct backend *backend, int64_t n, float **out)
{
    void *memory;
    TRY(backend->mem_alloc((size_t)n * sizeof(float), &memory));
    *out = memory;
    return status_ok();
}

static status_t alloc_all(struct exchange *x, int64_t kv_side, int64_t either)
{
    TRY(alloc_floats(x->backend, kv_side, &x->q));
    TRY(alloc_floats(x->backend, kv_side, &x->out));
    TRY(alloc_floats(x->backend, either, &x->sent));
    TRY(alloc_floats(x->backend, either, &x->got));
    for (size_t i = 0; i < sizeof x->counts / sizeof x->counts[0]; i++) {
        x->counts[i] = calloc((size_t)x->comm->size, sizeof *x->counts[i]);
        if (x->counts[i] == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the exchange");
        }
    }
    return status_ok();
}

status_t exchange_init(struct exchange *exchange, const struct backend *backend,
                       const struct plan *plan, struct comm *comm, int32_t max_rows)
{
    struct exchange made = {.backend = backend, .plan = plan, .comm = comm};
    int32_t kv_side;
    int32_t either;
    max_heads(plan, comm->rank, &kv_side, &either);
    if (either > 0) {
        const int64_t row = (int64_t)max_rows * plan->head_dim;
        // A rank may hold nothing in the layers that exchange: buffers of one float are still buffers.
        const status_t s = alloc_all(&made, row * (kv_side > 0 ? kv_side : 1), row * either);
        if (!status_is_ok(&s)) {
            exchange_destroy(&made);
            return s;
        }
    }
    *exchange = made;
    return status_ok();
}

void exchange_destroy(struct exchange *exchange)
{
    if (exchange->backend == NULL) {
        return;
    }
    exchange->backend->mem_free(exchange->q);
    exchange->backend->mem_free(exchange->out);
    exchange->backend->mem_free(exchange->sent);
    exchange->backend->mem_free(exchange->got);
    for (size_t i = 0; i < sizeof exchange->counts / sizeof exchange->counts[0]; i++) {
        free(exchange->counts[i]);
    }
    memset(exchange, 0, sizeof *exchange);
}

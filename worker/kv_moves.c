#include "worker/kv_moves.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Moves that go to the device together: each is two strips a layer or four. */
#define MOVES_AT_ONCE 16

enum { PLANES = 4 }; /* of a layer: K, V and their scales */

/* A plane that is there, and the bytes of a unit in it. */
struct plane {
    char *base;
    int64_t unit_bytes;
};

static int32_t planes_of(const struct kv_pool *pool, const struct kv_planes *planes,
                         struct plane *planes_out)
{
    const int64_t values = (int64_t)kv_pool_unit_bytes(pool, planes->dtype);
    const int64_t scales = (int64_t)kv_pool_unit_scale_bytes(planes->dtype);
    const struct plane all[PLANES] = {{planes->k, values},
                                      {planes->v, values},
                                      {planes->k_scales, scales},
                                      {planes->v_scales, scales}};
    int32_t n = 0;
    for (int32_t i = 0; i < PLANES; i++) {
        if (all[i].base != NULL) {
            planes_out[n++] = all[i];
        }
    }
    return n;
}

// ---- slots ----

status_t kv_moves_fit(uint64_t swap_bytes, uint64_t room_bytes, int64_t block_bytes,
                      int64_t *slots_out)
{
    if (swap_bytes > room_bytes) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "--swap-space %" PRIu64 ": %" PRIu64
                             " bytes of this host's memory are left for each rank" STATUS_FIX
                             "--swap-space %" PRIu64,
                             swap_bytes, room_bytes, room_bytes / 2);
    }
    if (swap_bytes < (uint64_t)block_bytes) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "--swap-space %" PRIu64 ": a KV block of %d tokens in each lane takes "
                             "%lld bytes on a rank" STATUS_FIX
                             "--swap-space 1G (bytes, K, M or G; 0: no swapping)",
                             swap_bytes, PLAN_BLOCK_TOKENS, (long long)block_bytes);
    }
    const uint64_t most = INT32_MAX; // ids are int32
    const uint64_t slots = block_bytes > 0 ? swap_bytes / (uint64_t)block_bytes : most;
    *slots_out = (int64_t)(slots < most ? slots : most);
    return status_ok();
}

/* Gives the layer's planes of slots their parts of the memory from *at on; NULL where the pool has none. */
static void cut_layer(const struct kv_moves *m, int32_t layer, int64_t n_slots, size_t *at)
{
    enum { ALIGNMENT = 64 };
    const struct kv_pool *pool = m->pool;
    const struct kv_planes *like = &pool->layers[layer];
    const int32_t class_index = pool->plan->layers[layer].class_index;
    struct kv_planes *planes = &m->host_layers[layer];
    planes->dtype = like->dtype;
    if (class_index < 0) {
        return; // it keeps nothing
    }
    const size_t units = (size_t)plan_units(pool->plan, class_index, pool->tp_rank, n_slots);
    const size_t values = units * kv_pool_unit_bytes(pool, like->dtype);
    const size_t scales = units * kv_pool_unit_scale_bytes(like->dtype);

    const struct {
        const void *like;
        void **plane;
        size_t size;
    } all[PLANES] = {{like->k, &planes->k, values},
                     {like->v, &planes->v, values},
                     {like->k_scales, &planes->k_scales, scales},
                     {like->v_scales, &planes->v_scales, scales}};

    for (int32_t i = 0; i < PLANES; i++) {
        if (all[i].like != NULL) {
            *all[i].plane = m->host_memory != NULL ? (char *)m->host_memory + *at : NULL;
            *at += (all[i].size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
    }
}

static size_t cut_layers(const struct kv_moves *m, int64_t n_slots)
{
    size_t at = 0;
    for (int32_t layer = m->pool->stage.begin; layer < m->pool->stage.end; layer++) {
        cut_layer(m, layer, n_slots, &at);
    }
    return at;
}

static status_t init_slots(struct kv_moves *m, int64_t n_slots)
{
    const struct kv_pool *pool = m->pool;
    m->host_layers = calloc((size_t)pool->plan->n_layers, sizeof *m->host_layers);
    if (m->host_layers == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the tables of KV slots");
    }
    m->host = (struct kv_place){.layers = m->host_layers, .blocks_per_lane = n_slots};
    m->host_bytes = cut_layers(m, n_slots);
    if (m->host_bytes == 0) {
        return status_ok();
    }
    TRY(pool->backend->host_alloc(pool->stream, m->host_bytes, &m->host_memory));
    (void)cut_layers(m, n_slots); // now that it is known where
    return status_ok();
}

// ---- life ----

static status_t init(struct kv_moves *m, int64_t n_slots)
{
    const struct kv_pool *pool = m->pool;
    for (int32_t layer = pool->stage.begin; layer < pool->stage.end; layer++) {
        struct plane planes[PLANES];
        m->max_strips += MOVES_AT_ONCE * planes_of(pool, &pool->layers[layer], planes);
    }
    m->strips = calloc(m->max_strips > 0 ? (size_t)m->max_strips : 1, sizeof *m->strips);
    if (m->strips == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for moves of KV blocks");
    }
    if (n_slots == 0) {
        return status_ok();
    }
    const status_t s = init_slots(m, n_slots);
    return status_is_ok(&s) ? s : status_wrapf(s, "KV slots in host memory");
}

status_t kv_moves_init(struct kv_moves *moves, const struct kv_pool *pool,
                       int64_t host_blocks_per_lane)
{
    struct kv_moves made = {
        .pool = pool,
        .device = {.layers = pool->layers, .blocks_per_lane = pool->blocks_per_lane},
    };
    const status_t s = init(&made, host_blocks_per_lane);
    if (!status_is_ok(&s)) {
        kv_moves_destroy(&made);
        return s;
    }
    *moves = made;
    return status_ok();
}

void kv_moves_destroy(struct kv_moves *moves)
{
    if (moves->host_memory != NULL) {
        moves->pool->backend->host_free(moves->pool->stream, moves->host_memory);
    }
    free(moves->host_layers);
    free(moves->strips);
    memset(moves, 0, sizeof *moves);
}

// ---- a step ----

static const struct kv_place *place_of(const struct kv_moves *m, const struct step_move *move,
                                       enum step_move_kind host_kind)
{
    return move->kind == (int32_t)host_kind ? &m->host : &m->device;
}

/* The unit of the block's first head. */
static int64_t unit_of(const struct kv_pool *pool, int32_t class_index,
                       const struct kv_place *place, int32_t lane, int32_t block)
{
    const struct kv_class *kv_class = &pool->classes[class_index];
    const int64_t base = kv_class->split ? lane * place->blocks_per_lane
                                         : plan_unit_base(pool->plan, class_index, pool->tp_rank,
                                                          lane, place->blocks_per_lane);
    return base + (int64_t)block * kv_class->lanes[lane].units_per_block;
}

/* From one row of a strip to the next: from head to head of a split class. */
static int64_t row_stride(const struct kv_pool *pool, int32_t class_index,
                          const struct kv_place *place)
{
    const bool split = pool->classes[class_index].split;
    return split ? pool->plan->n_lanes * place->blocks_per_lane : 0;
}

/* The move's strips of one layer; returns how many. */
static int32_t add_layer(const struct kv_moves *m, const struct step_move *move, int32_t layer,
                         struct strip *strips)
{
    const struct kv_pool *pool = m->pool;
    const int32_t class_index = pool->plan->layers[layer].class_index;
    if (class_index < 0) {
        return 0; // it keeps nothing
    }
    const struct kv_place *from = place_of(m, move, STEP_MOVE_IN);
    const struct kv_place *to = place_of(m, move, STEP_MOVE_OUT);
    const struct kv_class *kv_class = &pool->classes[class_index];
    const struct kv_lane *lane = &kv_class->lanes[move->lane];
    const int64_t from_unit = unit_of(pool, class_index, from, move->lane, move->from);
    const int64_t to_unit = unit_of(pool, class_index, to, move->lane, move->to);
    struct plane from_planes[PLANES], to_planes[PLANES];
    const int32_t n = lane->n_heads > 0 ? planes_of(pool, &from->layers[layer], from_planes) : 0;
    (void)planes_of(pool, &to->layers[layer], to_planes); // the same ones
    for (int32_t i = 0; i < n; i++) {
        const int64_t unit_bytes = from_planes[i].unit_bytes;
        strips[i] = (struct strip){
            .from = from_planes[i].base + from_unit * unit_bytes,
            .to = to_planes[i].base + to_unit * unit_bytes,
            .from_stride_bytes = row_stride(pool, class_index, from) * unit_bytes,
            .to_stride_bytes = row_stride(pool, class_index, to) * unit_bytes,
            .row_bytes = lane->units_per_block * unit_bytes,
            .n_rows = kv_class->split ? lane->n_heads : 1,
        };
    }
    return n;
}

/* Whether the order of the two matters. */
static bool touches(const struct step_move *a, const struct step_move *b)
{
    const bool a_to_host = a->kind == STEP_MOVE_OUT, b_to_host = b->kind == STEP_MOVE_OUT;
    const bool a_from_host = a->kind == STEP_MOVE_IN, b_from_host = b->kind == STEP_MOVE_IN;
    return a->lane == b->lane && ((a_to_host == b_to_host && a->to == b->to) ||
                                  (a_to_host == b_from_host && a->to == b->from) ||
                                  (a_from_host == b_to_host && a->from == b->to));
}

/* How many of the moves can be made at once, at least one. */
static int32_t independent(const struct step_move *moves, int32_t n)
{
    for (int32_t i = 1; i < n; i++) {
        for (int32_t j = 0; j < i; j++) {
            if (touches(&moves[i], &moves[j])) {
                return i;
            }
        }
    }
    return n;
}

status_t kv_moves_run(struct kv_moves *m, const struct step_plan *step)
{
    const struct kv_pool *pool = m->pool;
    int32_t n_done = 0;
    if (step->n_moves > 0 && pool->plan->stripe > 1) {
        return status_errorf(STATUS_UNIMPLEMENTED,
                             "%d moves of KV blocks under placement token, where blocks of other "
                             "places are other ranks'",
                             step->n_moves);
    }
    while (n_done < step->n_moves) {
        const struct step_move *moves = &step->moves[n_done];
        const int32_t left = step->n_moves - n_done;
        const int32_t n = independent(moves, left < MOVES_AT_ONCE ? left : MOVES_AT_ONCE);
        int32_t n_strips = 0;
        for (int32_t i = 0; i < n; i++) {
            for (int32_t layer = pool->stage.begin; layer < pool->stage.end; layer++) {
                n_strips += add_layer(m, &moves[i], layer, m->strips + n_strips);
            }
        }
        TRY(pool->backend->copy_strips(pool->stream, m->strips, n_strips));
        n_done += n;
    }
    return status_ok();
}

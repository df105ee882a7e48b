#include "worker/kv_moves.h"

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

static int32_t planes_of(const struct kv_pool *pool, int32_t layer, struct plane *planes_out)
{
    const struct kv_planes *planes = &pool->layers[layer];
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

status_t kv_moves_init(struct kv_moves *moves, const struct kv_pool *pool)
{
    struct kv_moves made = {.pool = pool};
    for (int32_t layer = pool->stage.begin; layer < pool->stage.end; layer++) {
        struct plane planes[PLANES];
        made.max_strips += MOVES_AT_ONCE * planes_of(pool, layer, planes);
    }
    const size_t n = made.max_strips > 0 ? (size_t)made.max_strips : 1;
    made.strips = calloc(n, sizeof *made.strips);
    if (made.strips == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for moves of KV blocks");
    }
    *moves = made;
    return status_ok();
}

void kv_moves_destroy(struct kv_moves *moves)
{
    free(moves->strips);
    memset(moves, 0, sizeof *moves);
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
    const struct kv_class *kv_class = &pool->classes[class_index];
    const struct kv_lane *lane = &kv_class->lanes[move->lane];
    struct plane planes[PLANES];
    const int32_t n = lane->n_heads > 0 ? planes_of(pool, layer, planes) : 0;
    const int64_t units = lane->units_per_block;
    for (int32_t i = 0; i < n; i++) {
        const int64_t unit_bytes = planes[i].unit_bytes;
        const int64_t stride = kv_class->split ? kv_class->part_units * unit_bytes : 0;
        strips[i] = (struct strip){
            .from = planes[i].base + (lane->unit_base + move->from * units) * unit_bytes,
            .to = planes[i].base + (lane->unit_base + move->to * units) * unit_bytes,
            .from_stride_bytes = stride,
            .to_stride_bytes = stride,
            .row_bytes = units * unit_bytes,
            .n_rows = kv_class->split ? lane->n_heads : 1,
        };
    }
    return n;
}

/* Whether the order of the two matters. */
static bool touches(const struct step_move *a, const struct step_move *b)
{
    return a->lane == b->lane && (a->to == b->to || a->to == b->from || a->from == b->to);
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

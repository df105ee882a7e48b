#include "worker/kv_pool.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/kv_format.h"

static status_t no_memory(void)
{
    return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the tables of the KV pool");
}

size_t kv_pool_unit_bytes(const struct kv_pool *pool, int dtype)
{
    return (size_t)PLAN_BLOCK_TOKENS * (size_t)pool->plan->head_dim * dtype_bytes(dtype);
}

size_t kv_pool_unit_scale_bytes(int dtype)
{
    return (size_t)PLAN_BLOCK_TOKENS * (size_t)kv_scale_bytes(dtype);
}

static void *at_bytes(void *plane, size_t offset)
{
    return plane != NULL ? (char *)plane + offset : NULL;
}

struct kv_planes kv_pool_part(const struct kv_pool *pool, int32_t layer, int32_t head)
{
    const struct kv_planes *whole = &pool->layers[layer];
    const struct kv_class *kv_class = &pool->classes[pool->plan->layers[layer].class_index];
    const size_t units = kv_class->split ? (size_t)head * (size_t)kv_class->part_units : 0;
    const size_t values = units * kv_pool_unit_bytes(pool, whole->dtype);
    const size_t scales = units * kv_pool_unit_scale_bytes(whole->dtype);
    return (struct kv_planes){
        .k = at_bytes(whole->k, values),
        .v = at_bytes(whole->v, values),
        .k_scales = at_bytes(whole->k_scales, scales),
        .v_scales = at_bytes(whole->v_scales, scales),
        .dtype = whole->dtype,
    };
}

int64_t kv_pool_head_units(const struct kv_class *kv_class)
{
    return kv_class->split ? kv_class->part_units : 1;
}

// ---- classes ----

/* True when in some layer of the class the rank's query heads begin or end inside a group. */
static bool has_partial_groups(const struct kv_pool *pool, int32_t class_index)
{
    const struct plan *plan = pool->plan;
    const struct plan_class *plan_class = &plan->classes[class_index];
    if (plan_class->placement != PLAN_REPLICATE) {
        return false;
    }
    const int32_t group = plan->n_heads / plan_class->n_kv_heads;
    for (int32_t layer = pool->stage.begin; layer < pool->stage.end; layer++) {
        const plan_interval_t q = plan_q_heads(plan, layer, pool->tp_rank);
        if (plan->layers[layer].class_index == class_index &&
            (q.begin % group != 0 || q.end % group != 0)) {
            return true;
        }
    }
    return false;
}

/* True when a layer of the stage is in the class. */
static bool is_here(const struct kv_pool *pool, int32_t class_index)
{
    bool here = false;
    for (int32_t layer = pool->stage.begin; layer < pool->stage.end; layer++) {
        here = here || pool->plan->layers[layer].class_index == class_index;
    }
    return here;
}

static void fill_lane(const struct kv_pool *pool, int32_t class_index, int32_t lane)
{
    struct kv_class *kv_class = &pool->classes[class_index];
    const int32_t *heads;
    const int32_t n = plan_held(pool->plan, class_index, pool->tp_rank, lane, &heads);
    struct kv_lane *to = &kv_class->lanes[lane];
    to->first_head = n > 0 ? heads[0] : 0;
    to->n_heads = n;
    if (kv_class->split) {
        to->unit_base = lane * pool->blocks_per_lane;
        to->units_per_block = 1;
    } else {
        to->unit_base =
            plan_unit_base(pool->plan, class_index, pool->tp_rank, lane, pool->blocks_per_lane);
        to->units_per_block = n;
    }
}

static status_t init_token_runs(struct kv_pool *pool, struct kv_class *kv_class,
                                const struct kv_pool_request *request)
{
    struct token_run_request run = {
        .backend = pool->backend,
        .stream = pool->stream,
        .plan = pool->plan,
        .blocks_per_lane = pool->blocks_per_lane,
        .max_seqs = request->max_seqs,
        .max_rows = request->max_rows,
        .max_blocks = request->max_blocks,
        .max_steps = pool->max_steps,
    };
    for (int32_t i = 0; i < kv_class->n_runs; i++) {
        run.run = kv_class->runs[i];
        TRY(token_run_init(&kv_class->token_runs[i], &run));
        run.unit_base += pool->plan->n_lanes * kv_class->token_runs[i].lane_units;
    }
    return status_ok();
}

static status_t init_class(struct kv_pool *pool, int32_t class_index,
                           const struct kv_pool_request *request)
{
    struct kv_class *kv_class = &pool->classes[class_index];
    const struct plan *plan = pool->plan;
    kv_class->split = has_partial_groups(pool, class_index);
    kv_class->fused = plan_fuses_kv(plan, class_index, pool->tp_rank);
    kv_class->part_units = plan->n_lanes * pool->blocks_per_lane;
    kv_class->group = plan->n_heads / plan->classes[class_index].n_kv_heads;
    kv_class->n_runs = is_here(pool, class_index)
                           ? plan_kv_runs(plan, class_index, pool->tp_rank, kv_class->runs)
                           : 0;
    kv_class->by_token = plan->classes[class_index].placement == PLAN_TOKEN;
    if (kv_class->by_token) {
        return init_token_runs(pool, kv_class, request);
    }
    kv_class->lanes = calloc((size_t)plan->n_lanes, sizeof *kv_class->lanes);
    if (kv_class->lanes == NULL) {
        return no_memory();
    }
    for (int32_t lane = 0; lane < plan->n_lanes; lane++) {
        fill_lane(pool, class_index, lane);
    }
    for (int32_t i = 0; i < kv_class->n_runs; i++) {
        TRY(device_array_init(&kv_class->units[i], pool->backend, pool->stream,
                              (size_t)request->max_rows * sizeof(int64_t), pool->max_steps));
    }
    return status_ok();
}

// ---- planes ----

/* Steps that are recorded for more rows than they have put the keys and values of the others behind the last unit. */
static int64_t padding_units(const struct kv_pool *pool, const struct kv_class *kv_class)
{
    int32_t most = 0;
    for (int32_t i = 0; i < kv_class->n_runs && !kv_class->by_token; i++) {
        const int32_t n = kv_class->runs[i].head_end - kv_class->runs[i].head_begin;
        most = n > most ? n : most;
    }
    return pool->backend->graph_begin != NULL ? most : 0;
}

/* Units of a plane, and those behind them. */
struct plane_units {
    size_t counted, padding;
};

static status_t alloc_plane(struct kv_pool *pool, struct plane_units units, size_t unit_bytes,
                            void **plane_out)
{
    const size_t size = units.counted * unit_bytes;
    if (size == 0) {
        *plane_out = NULL;
        return status_ok();
    }
    TRY(pool->backend->mem_alloc(pool->stream, size + units.padding * unit_bytes, plane_out));
    pool->bytes += size;
    return status_ok();
}

static status_t alloc_layer(struct kv_pool *pool, struct plane_units units,
                            struct kv_planes *planes)
{
    const size_t values = kv_pool_unit_bytes(pool, planes->dtype);
    const size_t scales = kv_pool_unit_scale_bytes(planes->dtype);
    TRY(alloc_plane(pool, units, values, &planes->k));
    TRY(alloc_plane(pool, units, values, &planes->v));
    TRY(alloc_plane(pool, units, scales, &planes->k_scales));
    return alloc_plane(pool, units, scales, &planes->v_scales);
}

static status_t alloc_planes(struct kv_pool *pool, int kv_dtype)
{
    const struct plan *plan = pool->plan;
    for (int32_t layer = pool->stage.begin; layer < pool->stage.end; layer++) {
        const int32_t class_index = plan->layers[layer].class_index;
        if (class_index < 0) {
            continue; // it keeps nothing
        }
        const int64_t units = plan_units(plan, class_index, pool->tp_rank, pool->blocks_per_lane);
        struct kv_class *kv_class = &pool->classes[class_index];
        const struct plane_units counts = {(size_t)units, (size_t)padding_units(pool, kv_class)};
        kv_class->padding_unit = units;
        pool->layers[layer].dtype = kv_dtype;
        const status_t s = alloc_layer(pool, counts, &pool->layers[layer]);
        if (!status_is_ok(&s)) {
            return status_wrapf(s, "KV pool of layer %d of %d", layer, plan->n_layers);
        }
    }
    return status_ok();
}

static status_t init(struct kv_pool *pool, const struct kv_pool_request *request)
{
    const struct plan *plan = pool->plan;
    pool->classes =
        calloc(plan->n_classes > 0 ? (size_t)plan->n_classes : 1, sizeof *pool->classes);
    pool->layers = calloc((size_t)plan->n_layers, sizeof *pool->layers);
    pool->lane_rows = calloc((size_t)plan->n_lanes + 1, sizeof *pool->lane_rows);
    if (pool->classes == NULL || pool->layers == NULL || pool->lane_rows == NULL) {
        return no_memory();
    }
    TRY(device_array_init(&pool->offsets, pool->backend, pool->stream,
                          (size_t)request->max_rows * sizeof(int32_t), pool->max_steps));
    for (int32_t c = 0; c < plan->n_classes; c++) {
        TRY(init_class(pool, c, request));
    }
    return alloc_planes(pool, request->kv_dtype);
}

status_t kv_pool_init(struct kv_pool *pool, const struct kv_pool_request *request)
{
    struct kv_pool made = {
        .backend = request->backend,
        .stream = request->stream,
        .plan = request->plan,
        .tp_rank = plan_tp_rank(request->plan, request->rank),
        .stage = plan_stage_layers(request->plan, plan_stage(request->plan, request->rank)),
        .blocks_per_lane = request->blocks_per_lane,
        .max_steps = request->max_steps,
    };
    const status_t s = init(&made, request);
    if (!status_is_ok(&s)) {
        kv_pool_destroy(&made);
        return s;
    }
    *pool = made;
    return status_ok();
}

void kv_pool_destroy(struct kv_pool *pool)
{
    if (pool->plan == NULL) {
        return;
    }
    for (int32_t layer = 0; pool->layers != NULL && layer < pool->plan->n_layers; layer++) {
        const struct kv_planes *planes = &pool->layers[layer];
        void *const all[] = {planes->k, planes->v, planes->k_scales, planes->v_scales};
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
            pool->backend->mem_free(pool->stream, all[i]);
        }
    }
    for (int32_t c = 0; pool->classes != NULL && c < pool->plan->n_classes; c++) {
        free(pool->classes[c].lanes);
        for (int32_t i = 0; i < PLAN_MAX_RUNS; i++) {
            device_array_destroy(&pool->classes[c].units[i], pool->backend, pool->stream);
            token_run_destroy(&pool->classes[c].token_runs[i], pool->backend, pool->stream);
        }
    }
    free(pool->classes);
    free(pool->layers);
    device_array_destroy(&pool->offsets, pool->backend, pool->stream);
    free(pool->lane_rows);
    memset(pool, 0, sizeof *pool);
}

// ---- a step ----

static void place_lanes(struct kv_pool *pool, const struct step_plan *step)
{
    int32_t lane = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        while (lane <= step->seqs[i].lane) {
            pool->lane_rows[lane++] = step->seqs[i].first_row;
        }
    }
    while (lane <= pool->plan->n_lanes) {
        pool->lane_rows[lane++] = step->n_rows;
    }
}

static status_t place_run(const struct kv_pool *pool, struct kv_class *kv_class, int32_t run_index,
                          const struct step_plan *step, int32_t n_padding)
{
    const plan_run_t run = kv_class->runs[run_index];
    int64_t *units = device_array_host(&kv_class->units[run_index]);
    const int32_t first_row = pool->lane_rows[run.lane_begin];
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct step_seq *seq = &step->seqs[i];
        if (seq->lane < run.lane_begin || seq->lane >= run.lane_end) {
            continue;
        }
        const struct kv_lane *lane = &kv_class->lanes[seq->lane];
        const int32_t slot = kv_class->split ? 0 : run.head_begin - lane->first_head;
        for (int32_t t = 0; t < seq->n_tokens; t++) {
            const int32_t index = (seq->n_computed + t) / PLAN_BLOCK_TOKENS;
            const int64_t block = step->blocks[seq->first_block + index];
            units[seq->first_row + t - first_row] =
                lane->unit_base + block * lane->units_per_block + slot;
        }
    }
    const int32_t n_rows = pool->lane_rows[run.lane_end] - first_row;
    for (int32_t i = 0; i < n_padding; i++) {
        units[n_rows + i] = kv_class->padding_unit;
    }
    return device_array_send(&kv_class->units[run_index], pool->backend, pool->stream,
                             (size_t)(n_rows + n_padding) * sizeof *units);
}

static status_t place_class(const struct kv_pool *pool, struct kv_class *kv_class,
                            const struct step_plan *step, int32_t n_rows)
{
    for (int32_t i = 0; i < kv_class->n_runs; i++) {
        TRY(kv_class->by_token ? token_run_place(&kv_class->token_runs[i], step, n_rows,
                                                 pool->backend, pool->stream)
                               : place_run(pool, kv_class, i, step, n_rows - step->n_rows));
    }
    return status_ok();
}

status_t kv_pool_place(struct kv_pool *pool, const struct step_plan *step, int32_t n_rows)
{
    int32_t *offsets = device_array_host(&pool->offsets);
    place_lanes(pool, step);
    for (int32_t row = 0; row < n_rows; row++) {
        offsets[row] = row < step->n_rows ? step->positions[row] % PLAN_BLOCK_TOKENS : 0;
    }
    TRY(device_array_send(&pool->offsets, pool->backend, pool->stream,
                          (size_t)n_rows * sizeof *offsets));
    for (int32_t c = 0; c < pool->plan->n_classes; c++) {
        TRY(place_class(pool, &pool->classes[c], step, n_rows));
    }
    return status_ok();
}

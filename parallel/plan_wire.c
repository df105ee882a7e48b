/*
 * The plan as bytes. Only decisions travel: cuts and classes. Owners follow from them on both sides, and what kind of
 * block a layer has from config.json, which both sides read. class_index is 0xffffffff for a layer in none.
 *
 *     u32 "KPLN"   u32 version
 *     u32 tp, pp, n_layers, n_heads, head_dim, n_vocab, n_classes
 *     n_classes x { u32 n_kv_heads, placement, n_layers }
 *     n_layers  x { u32 class_index, layer_in_class; u32 attention_cuts[tp + 1], ffn_cuts[tp + 1] }
 *     u32 stage_cuts[pp + 1], vocab_cuts[tp + 1]
 *     u64 FNV-1a of everything before it
 *
 * The sum is there because a plan can be consistent and yet not the one that was sent: two ranks that
 * cut differently would exchange wrong slices without noticing.
 */
#include <stdlib.h>
#include <string.h>

#include "parallel/plan.h"
#include "parallel/plan_parts.h"

#define MAGIC     0x4e4c504bu /* "KPLN" */
#define VERSION   2u          /* 1 had no stage_cuts */
#define SUM_BYTES sizeof(uint64_t)

/* Fowler, Noll, Vo: FNV-1a, 64 bits. */
static uint64_t fnv1a(const uint8_t *data, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ data[i]) * 0x100000001b3u;
    }
    return hash;
}

// ---- pack ----

static status_t put(struct bytes *out, const int32_t *values, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        TRY(bytes_append_u32(out, (uint32_t)values[i]));
    }
    return status_ok();
}

static status_t put_layer(struct bytes *out, const struct plan_layer *layer, int32_t n_cuts)
{
    const int32_t head[] = {layer->class_index, layer->layer_in_class};
    TRY(put(out, head, 2));
    TRY(put(out, layer->attention_cuts, n_cuts));
    return put(out, layer->ffn_cuts, n_cuts);
}

status_t plan_pack(const struct plan *plan, struct bytes *out)
{
    const size_t start = out->size;
    const int32_t head[] = {(int32_t)MAGIC, (int32_t)VERSION, plan->tp,
                            plan->pp,       plan->n_layers,   plan->n_heads,
                            plan->head_dim, plan->n_vocab,    plan->n_classes};
    TRY(put(out, head, (int32_t)(sizeof head / sizeof head[0])));
    for (int32_t c = 0; c < plan->n_classes; c++) {
        const struct plan_class *kv_class = &plan->classes[c];
        const int32_t row[] = {kv_class->n_kv_heads, kv_class->placement, kv_class->n_layers};
        TRY(put(out, row, 3));
    }
    for (int32_t i = 0; i < plan->n_layers; i++) {
        TRY(put_layer(out, &plan->layers[i], plan->tp + 1));
    }
    TRY(put(out, plan->stage_cuts, plan->pp + 1));
    TRY(put(out, plan->vocab_cuts, plan->tp + 1));
    return bytes_append_u64(out, fnv1a(out->data + start, out->size - start));
}

// ---- unpack ----

static void get(struct bytes_reader *r, int32_t *values, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        values[i] = (int32_t)bytes_read_u32(r);
    }
}

static status_t damaged(const char *why)
{
    return status_errorf(STATUS_DATA_LOSS, "plan: %s", why);
}

static status_t no_memory(void)
{
    return status_errorf(STATUS_RESOURCE_EXHAUSTED, "plan: no memory");
}

/* The sum at the end is right; the reader is left with what comes before it. */
static status_t open_sealed(const void *data, size_t size, struct bytes_reader *r_out)
{
    if (size < SUM_BYTES) {
        return damaged("shorter than its checksum");
    }
    struct bytes_reader tail;
    bytes_reader_init(&tail, (const uint8_t *)data + size - SUM_BYTES, SUM_BYTES);
    if (bytes_read_u64(&tail) != fnv1a(data, size - SUM_BYTES)) {
        return damaged("checksum does not match");
    }
    bytes_reader_init(r_out, data, size - SUM_BYTES);
    return status_ok();
}

struct header {
    int32_t tp, pp, n_layers, n_heads, head_dim, n_vocab, n_classes;
};

static status_t get_header(struct bytes_reader *r, const struct model_spec *spec,
                           struct header *header_out)
{
    if (bytes_read_u32(r) != MAGIC || bytes_read_u32(r) != VERSION) {
        return damaged("not a plan of version 2");
    }
    int32_t v[7];
    get(r, v, 7);
    const struct header h = {v[0], v[1], v[2], v[3], v[4], v[5], v[6]};
    if (h.n_layers != spec->n_layers || h.n_heads != spec->n_heads ||
        h.head_dim != spec->head_dim || h.n_vocab != spec->n_vocab) {
        return status_errorf(
            STATUS_DATA_LOSS,
            "plan: made for %d layers, %d heads of %d and %d rows; %s has %d, %d of "
            "%d and %d",
            h.n_layers, h.n_heads, h.head_dim, h.n_vocab, spec->name, spec->n_layers, spec->n_heads,
            spec->head_dim, spec->n_vocab);
    }
    if (h.tp < 1 || h.tp > spec->n_heads || h.pp < 1 || h.pp > spec->n_layers || h.n_classes < 0 ||
        h.n_classes > spec->n_layers) {
        return damaged("ranks, stages or classes out of range");
    }
    *header_out = h;
    return status_ok();
}

static status_t get_classes(struct bytes_reader *r, struct plan *plan)
{
    for (int32_t c = 0; c < plan->n_classes; c++) {
        struct plan_class *kv_class = &plan->classes[c];
        int32_t row[3];
        get(r, row, 3);
        kv_class->n_kv_heads = row[0];
        kv_class->placement = row[1];
        kv_class->n_layers = row[2];
        if (row[0] < 1 || row[0] > plan->n_heads || plan->n_heads % row[0] != 0 ||
            (row[1] != PLAN_SHARE && row[1] != PLAN_REPLICATE && row[1] != PLAN_TOKEN)) {
            return damaged("a class has KV heads or a placement out of range");
        }
        for (int32_t other = 0; other < c; other++) {
            // Classes that are not copied differ in their heads; this also bounds the tables below.
            if (row[1] != PLAN_REPLICATE && plan->classes[other].placement == row[1] &&
                plan->classes[other].n_kv_heads == row[0]) {
                return damaged("two classes are the same");
            }
        }
    }
    return status_ok();
}

/* Ascending cuts inside their line, so that what is computed from them stays inside its tables. */
static bool cuts_are_sane(const int32_t *cuts, int32_t tp, int32_t n)
{
    for (int32_t r = 0; r < tp; r++) {
        if (cuts[r] < 0 || cuts[r + 1] < cuts[r] || cuts[r + 1] > n) {
            return false;
        }
    }
    return true;
}

static status_t get_layers(struct bytes_reader *r, struct plan *plan, const struct model_spec *spec)
{
    const int32_t n_cuts = plan->tp + 1;
    for (int32_t i = 0; i < plan->n_layers; i++) {
        struct plan_layer *layer = &plan->layers[i];
        layer->class_index = (int32_t)bytes_read_u32(r);
        layer->layer_in_class = (int32_t)bytes_read_u32(r);
        get(r, layer->attention_cuts, n_cuts);
        get(r, layer->ffn_cuts, n_cuts);
        const int32_t first_class = layer->attention == SPEC_BLOCK_FULL ? 0 : -1;
        const int32_t last_class = layer->attention == SPEC_BLOCK_FULL ? plan->n_classes - 1 : -1;
        if (layer->class_index < first_class || layer->class_index > last_class ||
            !cuts_are_sane(layer->attention_cuts, plan->tp, plan_attention_units(spec, i)) ||
            !cuts_are_sane(layer->ffn_cuts, plan->tp, plan_ffn_units(spec, i))) {
            return damaged("a layer has a class or a cut out of range");
        }
    }
    get(r, plan->stage_cuts, plan->pp + 1);
    get(r, plan->vocab_cuts, n_cuts);
    if (!cuts_are_sane(plan->stage_cuts, plan->pp, plan->n_layers)) {
        return damaged("a stage is out of range");
    }
    return bytes_reader_end(r, "plan");
}

static status_t read_plan(struct bytes_reader *r, const struct model_spec *spec, struct plan *plan)
{
    struct header header = {0};
    TRY(get_header(r, spec, &header));
    // Before memory is taken: this much must be there for the numbers to be true.
    const size_t cuts = 4 * ((size_t)header.tp + 1);
    const size_t want = 12 * (size_t)header.n_classes + (size_t)header.n_layers * (8 + 2 * cuts) +
                        4 * ((size_t)header.pp + 1) + cuts;
    if (r->failed || r->size - r->at != want) {
        return damaged("its size does not match its numbers");
    }
    if (!plan_allocate(plan, spec, header.tp, header.pp) ||
        !plan_allocate_classes(plan, header.n_classes)) {
        return no_memory();
    }
    TRY(get_classes(r, plan));
    TRY(get_layers(r, plan, spec));
    if (!plan_complete(plan)) {
        return no_memory();
    }
    const status_t s = plan_check(plan, spec);
    return s.code == STATUS_INTERNAL ? status_errorf(STATUS_DATA_LOSS, "%s", s.msg) : s;
}

status_t plan_unpack(const void *data, size_t size, const struct model_spec *spec,
                     struct plan *plan_out)
{
    struct bytes_reader r;
    TRY(open_sealed(data, size, &r));
    struct plan plan = {0};
    const status_t s = read_plan(&r, spec, &plan);
    if (s.code != STATUS_OK) {
        plan_destroy(&plan);
        return s;
    }
    *plan_out = plan;
    return s;
}

#include "worker/weights.h"

#include <stdlib.h>
#include <string.h>

#include "worker/weight_loader.h"
#include "worker/weights_check.h"

// ---- memory ----

static int format_of(const struct weights *w, int32_t layer, enum weight_kind kind)
{
    return weight_formats_of(&w->formats, layer, kind);
}

/* An empty slice has no matrix. */
static status_t add_matrix(struct weights *w, int format, int32_t n_out, int32_t n_in,
                           struct matrix **matrix_out)
{
    if (n_out == 0 || n_in == 0) {
        *matrix_out = NULL;
        return status_ok();
    }
    TRY(w->backend->matrix_new(w->stream, format, n_out, n_in, matrix_out));
    w->bytes += w->backend->matrix_bytes(format, n_out, n_in);
    return status_ok();
}

static status_t add_array(struct weights *w, int64_t n, int dtype, void **array_out)
{
    const size_t size = (size_t)n * dtype_bytes(dtype);
    TRY(w->backend->mem_alloc(w->stream, size, array_out));
    w->bytes += size;
    return status_ok();
}

static status_t add_norm(struct weights *w, struct norm_weights *norm_out)
{
    void *array;
    TRY(add_array(w, w->spec->n_hidden, DTYPE_F32, &array));
    norm_out->weight = array;
    if (weights_check_norm_bias(w->spec)) {
        TRY(add_array(w, w->spec->n_hidden, DTYPE_F32, &array));
        norm_out->bias = array;
    }
    return status_ok();
}

static status_t alloc_attention(struct weights *w, int32_t layer)
{
    struct layer_weights *to = &w->layers[layer];
    const int32_t n_hidden = w->spec->n_hidden;
    const int32_t head_dim = w->spec->head_dim;
    const plan_interval_t q = plan_q_heads(w->plan, layer, w->tp_rank);
    const int32_t n_q = (q.end - q.begin) * head_dim;
    const int32_t class_index = w->plan->layers[layer].class_index;
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n_runs = plan_kv_runs(w->plan, class_index, w->tp_rank, runs);
    const int qkv = format_of(w, layer, WEIGHT_KIND_QKV);
    TRY(add_norm(w, &to->attention_norm));
    TRY(add_matrix(w, format_of(w, layer, WEIGHT_KIND_O), n_hidden, n_q, &to->o));
    if (plan_fuses_kv(w->plan, class_index, w->tp_rank)) {
        const plan_interval_t kv = plan_kv_weight_heads(w->plan, class_index, w->tp_rank);
        const int32_t n_kv = (kv.end - kv.begin) * head_dim;
        return add_matrix(w, qkv, n_q + 2 * n_kv, n_hidden, &to->qkv);
    }
    TRY(add_matrix(w, qkv, n_q, n_hidden, &to->qkv));
    for (int32_t i = 0; i < n_runs; i++) {
        const int32_t n_kv = (runs[i].head_end - runs[i].head_begin) * head_dim;
        TRY(add_matrix(w, qkv, 2 * n_kv, n_hidden, &to->kv[i]));
    }
    return status_ok();
}

static status_t alloc_ffn(struct weights *w, int32_t layer)
{
    struct layer_weights *to = &w->layers[layer];
    const plan_interval_t ffn = plan_ffn_columns(w->plan, layer, w->tp_rank);
    const int32_t n_ff = ffn.end - ffn.begin;
    TRY(add_norm(w, &to->ffn_norm));
    TRY(add_matrix(w, format_of(w, layer, WEIGHT_KIND_GATE_UP), 2 * n_ff, w->spec->n_hidden,
                   &to->gate_up));
    return add_matrix(w, format_of(w, layer, WEIGHT_KIND_DOWN), w->spec->n_hidden, n_ff, &to->down);
}

/* A linear block: its norm and the rank's rows. */
static status_t alloc_linear(struct weights *w, int format, plan_interval_t rows,
                             struct norm_weights *norm, struct matrix **matrix_out)
{
    TRY(add_norm(w, norm));
    return add_matrix(w, format, rows.end - rows.begin, w->spec->n_hidden, matrix_out);
}

static status_t alloc_layer(struct weights *w, int32_t layer)
{
    struct layer_weights *to = &w->layers[layer];
    const struct spec_layer *kind = &w->spec->layers[layer];
    if (kind->attention == SPEC_BLOCK_FULL) {
        TRY(alloc_attention(w, layer));
    } else if (kind->attention == SPEC_BLOCK_LINEAR) {
        TRY(alloc_linear(w, format_of(w, layer, WEIGHT_KIND_LINEAR_ATTENTION),
                         plan_attention_rows(w->plan, layer, w->tp_rank), &to->attention_norm,
                         &to->attention_linear));
    }
    if (kind->ffn == SPEC_BLOCK_FULL) {
        TRY(alloc_ffn(w, layer));
    } else if (kind->ffn == SPEC_BLOCK_LINEAR) {
        TRY(alloc_linear(w, format_of(w, layer, WEIGHT_KIND_LINEAR_FFN),
                         plan_ffn_rows(w->plan, layer, w->tp_rank), &to->ffn_norm,
                         &to->ffn_linear));
    }
    return status_ok();
}

static status_t alloc_all(struct weights *w)
{
    const plan_interval_t embedding = plan_embedding_rows(w->plan, w->rank);
    const plan_interval_t head = plan_head_rows(w->plan, w->rank);
    const int32_t n_rows = embedding.end - embedding.begin;
    w->layers = calloc((size_t)w->spec->n_layers, sizeof *w->layers);
    if (w->layers == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for %d layers",
                             w->spec->n_layers);
    }
    if (n_rows > 0) {
        TRY(add_array(w, (int64_t)n_rows * w->spec->n_hidden, w->embedding_dtype, &w->embedding));
    }
    if (plan_stage(w->plan, w->rank) == w->plan->pp - 1) {
        TRY(add_norm(w, &w->final_norm));
        TRY(add_matrix(w, format_of(w, -1, WEIGHT_KIND_HEAD), head.end - head.begin,
                       w->spec->n_hidden, &w->head));
    }
    for (int32_t layer = w->stage.begin; layer < w->stage.end; layer++) {
        const status_t s = alloc_layer(w, layer);
        if (!status_is_ok(&s)) {
            return status_wrapf(s, "weights of layer %d of %d", layer, w->spec->n_layers);
        }
    }
    return status_ok();
}

status_t weights_alloc(const struct weights_request *request, struct weights *weights_out)
{
    struct weights made = {
        .backend = request->backend,
        .stream = request->stream,
        .spec = request->spec,
        .plan = request->plan,
        .rank = request->rank,
        .tp_rank = plan_tp_rank(request->plan, request->rank),
        .stage = plan_stage_layers(request->plan, plan_stage(request->plan, request->rank)),
        .formats = request->formats,
        // Looking a row up converts it to float32, exactly: narrower rows need not grow.
        .embedding_dtype =
            request->formats.dtype == DTYPE_BF16 ? DTYPE_BF16 : request->checkpoint_dtype,
    };
    const status_t s = alloc_all(&made);
    if (!status_is_ok(&s)) {
        weights_free(&made);
        return s;
    }
    *weights_out = made;
    return status_ok();
}

static void free_norm(const struct weights *w, struct norm_weights *norm)
{
    w->backend->mem_free(w->stream, norm->weight);
    w->backend->mem_free(w->stream, norm->bias);
}

static void free_layer(const struct weights *w, struct layer_weights *layer)
{
    const struct backend *backend = w->backend;
    free_norm(w, &layer->attention_norm);
    free_norm(w, &layer->ffn_norm);
    backend->matrix_free(layer->qkv);
    backend->matrix_free(layer->o);
    for (int32_t i = 0; i < PLAN_MAX_RUNS; i++) {
        backend->matrix_free(layer->kv[i]);
    }
    backend->matrix_free(layer->gate_up);
    backend->matrix_free(layer->down);
    backend->matrix_free(layer->attention_linear);
    backend->matrix_free(layer->ffn_linear);
}

void weights_free(struct weights *w)
{
    if (w->backend == NULL) {
        return;
    }
    for (int32_t layer = 0; w->layers != NULL && layer < w->spec->n_layers; layer++) {
        free_layer(w, &w->layers[layer]);
    }
    free(w->layers);
    w->backend->mem_free(w->stream, w->embedding);
    free_norm(w, &w->final_norm);
    w->backend->matrix_free(w->head);
    memset(w, 0, sizeof *w);
}

// ---- what multiplies ----

static int32_t add_use(const struct matrix *matrix, int out_dtype, struct matmul_use *uses,
                       int32_t n)
{
    if (matrix != NULL) {
        uses[n++] = (struct matmul_use){.weight = matrix, .out_dtype = out_dtype};
    }
    return n;
}

int32_t weights_uses(const struct weights *w, struct matmul_use *uses_out)
{
    const int activation = w->backend->activation;
    int32_t n = add_use(w->head, DTYPE_F32, uses_out, 0);
    for (int32_t i = 0; i < w->spec->n_layers; i++) {
        const struct layer_weights *layer = &w->layers[i];
        const struct matrix *const matrices[] = {
            layer->qkv,       layer->o, layer->gate_up, layer->down, layer->attention_linear,
            layer->ffn_linear};
        for (size_t j = 0; j < sizeof matrices / sizeof matrices[0]; j++) {
            n = add_use(matrices[j], activation, uses_out, n);
        }
        for (int32_t j = 0; j < PLAN_MAX_RUNS; j++) {
            n = add_use(layer->kv[j], activation, uses_out, n);
        }
    }
    return n;
}

// ---- loading ----

struct loading {
    struct weights *weights;
    struct weight_loader *loader;
    const struct weights_progress *progress;
    uint64_t bytes_done;
};

static void report(struct loading *l, const struct weight_tensor *tensor)
{
    l->bytes_done += tensor->bytes;
    const uint64_t of_all = l->bytes_done * (uint64_t)l->weights->plan->pp;
    const uint64_t total = l->progress->bytes_total;
    if (l->progress->report != NULL) {
        l->progress->report(l->progress->user, of_all < total ? of_all : total, total);
    }
}

/* Rows l->loader->wanted of a tensor into the sinks. */
static status_t load_rows(struct loading *l, const struct weight_wanted *wanted,
                          const struct weight_sink *sinks, int32_t n_sinks)
{
    struct weight_tensor tensor;
    TRY(weight_source_find(l->loader->source, wanted, &tensor));
    const struct weight_rows job = {
        .tensor = &tensor, .wanted = l->loader->wanted, .sinks = sinks, .n_sinks = n_sinks};
    TRY(weight_loader_rows(l->loader, &job));
    report(l, &tensor);
    return status_ok();
}

static status_t load_columns(struct loading *l, const struct weight_wanted *wanted,
                             const struct weight_columns *columns)
{
    struct weight_tensor tensor;
    TRY(weight_source_find(l->loader->source, wanted, &tensor));
    TRY(weight_loader_columns(l->loader, &tensor, columns));
    report(l, &tensor);
    return status_ok();
}

/* wanted[r] = [cuts[r], cuts[r + 1]) * unit; returns this rank's. */
static plan_interval_t want_cuts(struct loading *l, const int32_t *cuts, int32_t unit)
{
    for (int32_t r = 0; r < l->weights->plan->tp; r++) {
        l->loader->wanted[r] = (plan_interval_t){cuts[r] * unit, cuts[r + 1] * unit};
    }
    return l->loader->wanted[l->weights->tp_rank];
}

static status_t load_array(struct loading *l, const struct weight_wanted *wanted, float *array)
{
    const plan_interval_t all = {0, wanted->n_rows};
    for (int32_t r = 0; r < l->weights->plan->tp; r++) {
        l->loader->wanted[r] = all;
    }
    const struct weight_sink sink = {.rows = all, .array = array, .array_dtype = DTYPE_F32};
    return load_rows(l, wanted, &sink, 1);
}

static status_t load_norm(struct loading *l, const struct weight_wanted *weight,
                          const struct weight_wanted *bias, const struct norm_weights *norm)
{
    TRY(load_array(l, weight, norm->weight));
    return norm->bias != NULL ? load_array(l, bias, norm->bias) : status_ok();
}

/* k_proj or v_proj: the ranks that share a head each keep it. */
static status_t load_kv(struct loading *l, int32_t layer, enum weight which)
{
    const struct weights *w = l->weights;
    const struct layer_weights *to = &w->layers[layer];
    const int32_t class_index = w->plan->layers[layer].class_index;
    const int32_t head_dim = w->spec->head_dim;
    const plan_interval_t q = plan_q_heads(w->plan, layer, w->tp_rank);
    const bool fused = plan_fuses_kv(w->plan, class_index, w->tp_rank);
    for (int32_t r = 0; r < w->plan->tp; r++) {
        const plan_interval_t heads = plan_kv_weight_heads(w->plan, class_index, r);
        l->loader->wanted[r] = (plan_interval_t){heads.begin * head_dim, heads.end * head_dim};
    }
    plan_run_t runs[PLAN_MAX_RUNS];
    struct weight_sink sinks[PLAN_MAX_RUNS];
    int32_t n_runs = plan_kv_runs(w->plan, class_index, w->tp_rank, runs);
    if (fused) {
        const plan_interval_t heads = plan_kv_weight_heads(w->plan, class_index, w->tp_rank);
        runs[0] = (plan_run_t){.head_begin = heads.begin, .head_end = heads.end};
        n_runs = 1;
    }
    for (int32_t i = 0; i < n_runs; i++) {
        const plan_interval_t rows = {runs[i].head_begin * head_dim, runs[i].head_end * head_dim};
        const int32_t before = fused ? (q.end - q.begin) * head_dim : 0;
        sinks[i] = (struct weight_sink){
            .rows = rows,
            .matrix = fused ? to->qkv : to->kv[i],
            .matrix_row = before + (which == WEIGHT_V_PROJ ? rows.end - rows.begin : 0),
        };
    }
    const struct weight_wanted wanted = weights_check_wanted(w->spec, which, layer);
    return load_rows(l, &wanted, sinks, n_runs);
}

/* A tensor whose rows are cut as `cuts` says, into the rank's matrix from matrix_row on. */
static status_t load_own_rows(struct loading *l, const struct weight_wanted *wanted,
                              plan_interval_t rows, struct matrix *matrix, int32_t matrix_row)
{
    const struct weight_sink sink = {.rows = rows, .matrix = matrix, .matrix_row = matrix_row};
    return load_rows(l, wanted, &sink, matrix != NULL ? 1 : 0);
}

static status_t load_attention(struct loading *l, int32_t layer)
{
    const struct weights *w = l->weights;
    const struct layer_weights *to = &w->layers[layer];
    const struct weight_wanted norm = weights_check_wanted(w->spec, WEIGHT_ATTENTION_NORM, layer);
    const struct weight_wanted bias =
        weights_check_wanted(w->spec, WEIGHT_ATTENTION_NORM_BIAS, layer);
    const struct weight_wanted q = weights_check_wanted(w->spec, WEIGHT_Q_PROJ, layer);
    const struct weight_wanted o = weights_check_wanted(w->spec, WEIGHT_O_PROJ, layer);
    TRY(load_norm(l, &norm, &bias, &to->attention_norm));
    const plan_interval_t rows =
        want_cuts(l, w->plan->layers[layer].attention_cuts, w->spec->head_dim);
    TRY(load_own_rows(l, &q, rows, to->qkv, 0));
    TRY(load_kv(l, layer, WEIGHT_K_PROJ));
    TRY(load_kv(l, layer, WEIGHT_V_PROJ));

    for (int32_t r = 0; r <= w->plan->tp; r++) {
        l->loader->cuts[r] = w->plan->layers[layer].attention_cuts[r] * w->spec->head_dim;
    }
    const struct weight_columns columns = {
        .cuts = l->loader->cuts, .matrix = to->o, .format = format_of(w, layer, WEIGHT_KIND_O)};
    return load_columns(l, &o, &columns);
}

static status_t load_ffn(struct loading *l, int32_t layer)
{
    const struct weights *w = l->weights;
    const struct layer_weights *to = &w->layers[layer];
    const struct weight_wanted norm = weights_check_wanted(w->spec, WEIGHT_FFN_NORM, layer);
    const struct weight_wanted bias = weights_check_wanted(w->spec, WEIGHT_FFN_NORM_BIAS, layer);
    const struct weight_wanted gate = weights_check_wanted(w->spec, WEIGHT_GATE_PROJ, layer);
    const struct weight_wanted up = weights_check_wanted(w->spec, WEIGHT_UP_PROJ, layer);
    const struct weight_wanted down = weights_check_wanted(w->spec, WEIGHT_DOWN_PROJ, layer);
    const int32_t *cuts = w->plan->layers[layer].ffn_cuts;
    TRY(load_norm(l, &norm, &bias, &to->ffn_norm));
    const plan_interval_t rows = want_cuts(l, cuts, 1);
    TRY(load_own_rows(l, &gate, rows, to->gate_up, 0));
    TRY(load_own_rows(l, &up, rows, to->gate_up, rows.end - rows.begin));
    const struct weight_columns columns = {
        .cuts = cuts, .matrix = to->down, .format = format_of(w, layer, WEIGHT_KIND_DOWN)};
    return load_columns(l, &down, &columns);
}

/* A linear block: its norm, and the rows of its matrix cut as `cuts` says. */
static status_t load_linear(struct loading *l, int32_t layer, enum weight which,
                            struct matrix *matrix)
{
    const struct weights *w = l->weights;
    const struct layer_weights *to = &w->layers[layer];
    const struct plan_layer *plan_layer = &w->plan->layers[layer];
    const bool attention = which == WEIGHT_LINEAR_ATTENTION;
    const struct weight_wanted norm =
        weights_check_wanted(w->spec, attention ? WEIGHT_ATTENTION_NORM : WEIGHT_FFN_NORM, layer);
    const struct weight_wanted bias = weights_check_wanted(
        w->spec, attention ? WEIGHT_ATTENTION_NORM_BIAS : WEIGHT_FFN_NORM_BIAS, layer);
    const struct weight_wanted linear = weights_check_wanted(w->spec, which, layer);
    TRY(load_norm(l, &norm, &bias, attention ? &to->attention_norm : &to->ffn_norm));
    const plan_interval_t rows =
        want_cuts(l, attention ? plan_layer->attention_cuts : plan_layer->ffn_cuts, 1);
    return load_own_rows(l, &linear, rows, matrix, 0);
}

static status_t load_layer(struct loading *l, int32_t layer)
{
    const struct layer_weights *to = &l->weights->layers[layer];
    const struct spec_layer *kind = &l->weights->spec->layers[layer];
    if (kind->attention == SPEC_BLOCK_FULL) {
        TRY(load_attention(l, layer));
    } else if (kind->attention == SPEC_BLOCK_LINEAR) {
        TRY(load_linear(l, layer, WEIGHT_LINEAR_ATTENTION, to->attention_linear));
    }
    if (kind->ffn == SPEC_BLOCK_FULL) {
        TRY(load_ffn(l, layer));
    } else if (kind->ffn == SPEC_BLOCK_LINEAR) {
        TRY(load_linear(l, layer, WEIGHT_LINEAR_FFN, to->ffn_linear));
    }
    return status_ok();
}

/* A tied head is the embedding packed: on a stage that has both, they are filled from one read. */
static status_t load_vocabulary(struct loading *l)
{
    const struct weights *w = l->weights;
    const struct weight_wanted embedding = weights_check_wanted(w->spec, WEIGHT_EMBEDDING, -1);
    const struct weight_wanted head =
        w->spec->tied_head ? embedding : weights_check_wanted(w->spec, WEIGHT_HEAD, -1);
    const bool first = plan_stage(w->plan, w->rank) == 0;
    const bool last = plan_stage(w->plan, w->rank) == w->plan->pp - 1;
    const plan_interval_t rows = want_cuts(l, w->plan->vocab_cuts, 1);
    const struct weight_sink sinks[2] = {
        {.rows = rows, .array = w->embedding, .array_dtype = w->embedding_dtype},
        {.rows = rows, .matrix = w->head},
    };
    const int32_t n = rows.end > rows.begin ? 1 : 0;
    if (w->spec->tied_head && first && last) {
        return load_rows(l, &embedding, sinks, 2 * n);
    }
    TRY(first ? load_rows(l, &embedding, sinks, n) : status_ok());
    return last ? load_rows(l, &head, sinks + 1, n) : status_ok();
}

static status_t load_final_norm(struct loading *l)
{
    const struct weights *w = l->weights;
    const struct weight_wanted final_norm = weights_check_wanted(w->spec, WEIGHT_FINAL_NORM, -1);
    const struct weight_wanted bias = weights_check_wanted(w->spec, WEIGHT_FINAL_NORM_BIAS, -1);
    return load_norm(l, &final_norm, &bias, &w->final_norm);
}

static status_t load_all(struct loading *l)
{
    const struct weights *w = l->weights;
    TRY(load_vocabulary(l));
    for (int32_t layer = w->stage.begin; layer < w->stage.end; layer++) {
        TRY(load_layer(l, layer));
    }
    if (w->stage.end == w->spec->n_layers) {
        TRY(load_final_norm(l));
    }
    return l->loader->failure;
}

size_t weights_max_row_bytes(const struct model_spec *spec)
{
    int32_t longest = spec->n_hidden;
    const int32_t n_q = spec->n_heads * spec->head_dim;
    longest = n_q > longest ? n_q : longest;
    for (int32_t i = 0; i < spec->n_layers; i++) {
        longest = spec->layers[i].n_ff > longest ? spec->layers[i].n_ff : longest;
    }
    return (size_t)longest * sizeof(float);
}

status_t weights_load(struct weights *weights, struct weight_loader *loader,
                      const struct weights_progress *progress)
{
    struct loading loading = {.weights = weights, .loader = loader, .progress = progress};
    return load_all(&loading);
}

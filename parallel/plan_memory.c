#include "parallel/plan_memory.h"

#include <assert.h>

#include "kernels/backend.h"
#include "kernels/int8_rows.h"
#include "kernels/kv_format.h"

/* Rows of logits beside those of the sequences that draw. */
#define MORE_LOGIT_ROWS 64

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int32_t length(plan_interval_t interval)
{
    return interval.end - interval.begin;
}

static const struct plan_device *device_of(const struct plan_memory_request *r)
{
    const struct plan_device *device = r->device;
    if (device == NULL) {
        const status_t s = plan_device_find("cpu", &device);
        assert(status_is_ok(&s));
        (void)s;
    }
    return device;
}

// ---- weights ----

static struct weight_formats formats_of(const struct plan_memory_request *r)
{
    return (struct weight_formats){.dtype = r->dtype, .quantization = r->quantization};
}

/* A rank whose weights are counted. */
struct counted {
    const struct plan_memory_request *request;
    const struct plan_device *device;
    int32_t tp_rank;
};

/* An empty slice has no matrix. */
static uint64_t matrix(const struct counted *c, int format, int64_t n_out, int64_t n_in)
{
    return n_out > 0 && n_in > 0 ? c->device->matrix_bytes(format, (int32_t)n_out, (int32_t)n_in)
                                 : 0;
}

static int format_of(const struct counted *c, int32_t layer, enum weight_kind kind)
{
    const struct weight_formats formats = formats_of(c->request);
    return weight_formats_of(&formats, layer, kind);
}

static uint64_t attention_bytes(const struct counted *c, int32_t layer)
{
    const struct plan *plan = c->request->plan;
    const int64_t n_hidden = c->request->spec->n_hidden;
    const int32_t class_index = plan->layers[layer].class_index;
    const int64_t n_q = (int64_t)length(plan_q_heads(plan, layer, c->tp_rank)) * plan->head_dim;
    const bool fused = plan_fuses_kv(plan, class_index, c->tp_rank);
    plan_run_t runs[PLAN_MAX_RUNS];
    const int32_t n_runs = plan_kv_runs(plan, class_index, c->tp_rank, runs);
    const int qkv = format_of(c, layer, WEIGHT_KIND_QKV);
    int64_t n_fused = n_q;
    uint64_t bytes = matrix(c, format_of(c, layer, WEIGHT_KIND_O), n_hidden, n_q);
    for (int32_t i = 0; i < n_runs; i++) {
        const int64_t n_kv = 2 * (int64_t)(runs[i].head_end - runs[i].head_begin) * plan->head_dim;
        n_fused += fused ? n_kv : 0;
        bytes += fused ? 0 : matrix(c, qkv, n_kv, n_hidden);
    }
    return bytes + matrix(c, qkv, n_fused, n_hidden);
}

static uint64_t layer_bytes(const struct counted *c, int32_t layer)
{
    const struct plan *plan = c->request->plan;
    const struct model_spec *spec = c->request->spec;
    const int64_t n_hidden = spec->n_hidden;
    const int64_t ffn = length(plan_ffn_columns(plan, layer, c->tp_rank));
    uint64_t bytes = (uint64_t)(spec_layer_norms(spec, layer) * spec_norm_parameters(spec)) * 4;
    if (plan->layers[layer].class_index >= 0) {
        bytes += attention_bytes(c, layer);
    }
    bytes += matrix(c, format_of(c, layer, WEIGHT_KIND_LINEAR_ATTENTION),
                    length(plan_attention_rows(plan, layer, c->tp_rank)), n_hidden);
    bytes += matrix(c, format_of(c, layer, WEIGHT_KIND_LINEAR_FFN),
                    length(plan_ffn_rows(plan, layer, c->tp_rank)), n_hidden);
    return bytes + matrix(c, format_of(c, layer, WEIGHT_KIND_GATE_UP), 2 * ffn, n_hidden) +
           matrix(c, format_of(c, layer, WEIGHT_KIND_DOWN), n_hidden, ffn);
}

/* A tied head is packed beside the rows of the embedding, also where a stage has both. */
static uint64_t weight_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const struct plan *plan = r->plan;
    const struct counted c = {r, device_of(r), plan_tp_rank(plan, rank)};
    const plan_interval_t layers = plan_stage_layers(plan, plan_stage(plan, rank));
    const int embedding_dtype = r->dtype == DTYPE_F32 ? r->embedding_dtype : DTYPE_BF16;
    uint64_t bytes = (uint64_t)length(plan_embedding_rows(plan, rank)) *
                     (uint64_t)r->spec->n_hidden * dtype_bytes(embedding_dtype);
    if (plan_stage(plan, rank) == plan->pp - 1) {
        bytes += matrix(&c, format_of(&c, -1, WEIGHT_KIND_HEAD), length(plan_head_rows(plan, rank)),
                        r->spec->n_hidden) +
                 (uint64_t)spec_norm_parameters(r->spec) * sizeof(float);
    }
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        bytes += layer_bytes(&c, layer);
    }
    return bytes;
}

// ---- KV ----

/* With what lies behind each plane for the rows that only fill up a recorded step. */
static uint64_t kv_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const struct plan *plan = r->plan;
    const int32_t tp_rank = plan_tp_rank(plan, rank);
    const plan_interval_t layers = plan_stage_layers(plan, plan_stage(plan, rank));
    const int64_t unit = (int64_t)PLAN_BLOCK_TOKENS * kv_row_bytes(plan->head_dim, r->kv_dtype);
    int64_t units = 0;
    for (int32_t i = layers.begin; i < layers.end && device_of(r)->recorded; i++) {
        plan_run_t runs[PLAN_MAX_RUNS];
        const int32_t c = plan->layers[i].class_index;
        const bool pads = c >= 0 && plan->classes[c].placement != PLAN_TOKEN;
        const int32_t n = pads ? plan_kv_runs(plan, c, tp_rank, runs) : 0;
        int64_t heads = 0;
        for (int32_t j = 0; j < n; j++) {
            heads = larger(heads, runs[j].head_end - runs[j].head_begin);
        }
        units += 2 * heads;
    }
    return (uint64_t)(plan_kv_bytes(plan, rank, r->kv_dtype, r->blocks_per_lane) + units * unit);
}

// ---- buffers ----

void plan_memory_widths(const struct plan *plan, int32_t rank, struct plan_widths *widths_out)
{
    struct plan_widths widths = {1, 0, 1};
    const int32_t tp_rank = plan_tp_rank(plan, rank);
    const plan_interval_t layers = plan_stage_layers(plan, plan_stage(plan, rank));
    for (int32_t layer = layers.begin; layer < layers.end; layer++) {
        const int64_t ffn = length(plan_ffn_columns(plan, layer, tp_rank));
        const int32_t class_index = plan->layers[layer].class_index;
        widths.gate_up = larger(widths.gate_up, 2 * ffn);
        if (class_index < 0) {
            continue;
        }
        plan_run_t runs[PLAN_MAX_RUNS];
        const int32_t n = plan_kv_runs(plan, class_index, tp_rank, runs);
        const bool fused = plan_fuses_kv(plan, class_index, tp_rank);
        int64_t keys = fused ? length(plan_kv_weight_heads(plan, class_index, tp_rank)) : 0;
        for (int32_t i = 0; i < n && !fused; i++) {
            keys = larger(keys, runs[i].head_end - runs[i].head_begin);
        }
        const int64_t q = length(plan_q_heads(plan, layer, tp_rank));
        widths.attention = larger(widths.attention, (q + (fused ? 2 * keys : 0)) * plan->head_dim);
        widths.kv = larger(widths.kv, fused ? 0 : 2 * keys * plan->head_dim);
    }
    *widths_out = widths;
}

static bool is_last_stage(const struct plan_memory_request *r, int32_t rank)
{
    return plan_stage(r->plan, rank) == r->plan->pp - 1;
}

static int64_t max_steps(const struct plan_memory_request *r)
{
    const int32_t least = r->plan->pp > 1 ? r->plan->pp + 1 : 1;
    return r->max_steps > 0 ? r->max_steps : least;
}

static bool is_here(const struct plan *plan, int32_t class_index, int32_t rank)
{
    const plan_interval_t layers = plan_stage_layers(plan, plan_stage(plan, rank));
    bool here = false;
    for (int32_t i = layers.begin; i < layers.end; i++) {
        here = here || plan->layers[i].class_index == class_index;
    }
    return here;
}

/* Runs of KV heads over the classes that have a layer in the rank's stage: each has an array of where a row's keys go. */
static int64_t n_runs(const struct plan_memory_request *r, int32_t rank)
{
    const struct plan *plan = r->plan;
    int64_t n = 0;
    for (int32_t c = 0; c < plan->n_classes; c++) {
        plan_run_t runs[PLAN_MAX_RUNS];
        n += is_here(plan, c, rank) ? plan_kv_runs(plan, c, plan_tp_rank(plan, rank), runs) : 0;
    }
    return n;
}

/* Of those, the ones of classes split by token: each has a table of its blocks, and attention of its own. */
static int64_t n_token_runs(const struct plan *plan, int32_t rank)
{
    int64_t n = 0;
    for (int32_t c = 0; c < plan->n_classes; c++) {
        plan_run_t runs[PLAN_MAX_RUNS];
        const bool split = plan->classes[c].placement == PLAN_TOKEN && is_here(plan, c, rank);
        n += split ? plan_kv_runs(plan, c, plan_tp_rank(plan, rank), runs) : 0;
    }
    return n;
}

int32_t plan_memory_logit_rows(int32_t max_seqs, int32_t max_rows)
{
    const int64_t rows = (int64_t)max_seqs + MORE_LOGIT_ROWS;
    return (int32_t)(rows < max_rows ? rows : larger(max_rows, 1));
}

/* The residual stream in float32, normed and partial beside it, what attention takes and gives, gate and up; a token, its
 * position, and where its keys go. */
static int64_t row_bytes(const struct plan_memory_request *r, int32_t rank)
{
    struct plan_widths widths;
    plan_memory_widths(r->plan, rank, &widths);
    const int64_t activations =
        2 * (int64_t)r->spec->n_hidden + 2 * widths.attention + widths.kv + widths.gate_up;
    const int64_t indices =
        3 * (int64_t)sizeof(int32_t) + n_runs(r, rank) * (int64_t)sizeof(int64_t);
    return 4 * (int64_t)r->spec->n_hidden + indices +
           activations * (int64_t)dtype_bytes(device_of(r)->activation);
}

/* Rows of logits on the last stage: whole on its first rank, where the others' are gathered first; a slice on each of several.
 * Where they are whole they are drawn from. */
static int64_t logit_row_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const bool alone = r->plan->tp == 1;
    const bool first = plan_tp_rank(r->plan, rank) == 0;
    const int64_t whole = first ? (alone ? 1 : 2) * (int64_t)r->spec->n_vocab : 0;
    const int64_t floats = whole + (alone ? 0 : length(plan_head_rows(r->plan, rank)));
    const int64_t draw = sizeof(struct sample_row) + sizeof(struct sample_result);
    return floats * (int64_t)sizeof(float) + (first ? draw : 0);
}

/* Which rows they are, on every rank; and on rank 0 results of steps under way, which are the host's. */
static int64_t logit_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const bool last = is_last_stage(r, rank);
    const bool draws = last && plan_tp_rank(r->plan, rank) == 0;
    const bool told = rank == 0 && device_of(r)->host_memory;
    const int64_t results = max_steps(r) * (int64_t)sizeof(struct sample_result);
    const int64_t each =
        (int64_t)sizeof(int32_t) + (last ? logit_row_bytes(r, rank) : 0) + (told ? results : 0);
    const int64_t tokens = plan_memory_sample_tokens(r->max_seqs, r->spec->n_vocab);
    return plan_memory_logit_rows(r->max_seqs, r->max_rows) * each +
           (draws ? tokens * (int64_t)sizeof(struct sample_token) : 0);
}

/* Its blocks, all and those of each run of a class split by token, and the id drawn last. */
static int64_t seq_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const int64_t blocks = plan_blocks_for(r->max_model_len);
    const int64_t tables = 1 + n_token_runs(r->plan, rank);
    return (tables * blocks + 1) * (int64_t)sizeof(int32_t);
}

/* Rows rounded to int8. */
static uint64_t rounded_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const struct weight_formats formats = formats_of(r);
    const int32_t n_in = plan_rounded_inputs(r->plan, r->spec, rank, &formats);
    return n_in > 0 ? int8_rows_bytes(r->max_rows, n_in) : 0;
}

static uint64_t buffer_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const int64_t rotation = (int64_t)r->max_model_len * r->spec->rotary_dim; // cosines and sines
    return (uint64_t)(r->max_rows * row_bytes(r, rank) + r->max_seqs * seq_bytes(r, rank) +
                      logit_bytes(r, rank) + (int64_t)sizeof(float) * rotation) +
           rounded_bytes(r, rank);
}

/* What stages.c keeps of messages: two of x on their way; ids and results for each step. */
static int64_t stage_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const struct plan *plan = r->plan;
    const int64_t x = (int64_t)r->max_rows * r->spec->n_hidden * (int64_t)sizeof(float);
    const int64_t ids = (int64_t)r->max_seqs * (int64_t)sizeof(int32_t);
    const int64_t results =
        plan_memory_logit_rows(r->max_seqs, r->max_rows) * (int64_t)sizeof(struct sample_result);
    if (plan->pp == 1 || !device_of(r)->host_memory) {
        return 0;
    }
    int64_t bytes = is_last_stage(r, rank) ? 0 : 2 * x;
    if (is_last_stage(r, rank) && plan_tp_rank(plan, rank) == 0) {
        bytes += max_steps(r) * (ids + results);
    }
    bytes += plan_stage(plan, rank) == 0 ? (max_steps(r) + 1) * ids : 0;
    return bytes + (rank == 0 ? max_steps(r) * results : 0);
}

/* Queries and outputs as the KV heads lie, and messages both ways, where attention happens on another rank than its queries; and
 * what goes between stages. */
static uint64_t comm_bytes(const struct plan_memory_request *r, int32_t rank)
{
    struct plan_exchange of_row;
    plan_exchange_bytes(r->plan, rank, device_of(r)->activation, &of_row);
    const int64_t message = larger(of_row.query_message, of_row.output_message);
    const int64_t exchange = r->max_rows * (of_row.queries + of_row.outputs + 2 * message);
    return (uint64_t)(exchange + stage_bytes(r, rank));
}

// ---- workspaces ----

/* A plan of attention for each class of layers on the rank, and for each run of one split by token. */
static uint64_t workspace_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const struct plan_device *device = device_of(r);
    const uint64_t unit = 40; // struct cuda_attention_unit
    const uint64_t row = ((uint64_t)r->plan->head_dim + 2) * sizeof(float);
    const uint64_t each =
        (uint64_t)device->attention_rows * row + (uint64_t)device->attention_units * unit;
    uint64_t bytes = device->workspace + (uint64_t)n_token_runs(r->plan, rank) * each;
    for (int32_t c = 0; c < r->plan->n_classes; c++) {
        const bool split = r->plan->classes[c].placement == PLAN_TOKEN;
        bytes += !split && is_here(r->plan, c, rank) ? each : 0;
    }
    return bytes;
}

// ---- all ----

void plan_memory_of(const struct plan_memory_request *request, int32_t rank,
                    struct plan_memory *memory_out)
{
    struct plan_memory m = {
        .weights = weight_bytes(request, rank),
        .kv = kv_bytes(request, rank),
        .buffers = buffer_bytes(request, rank),
        .comm = comm_bytes(request, rank),
        .workspace = workspace_bytes(request, rank),
        .runtime = device_of(request)->runtime + (rank == 0 ? device_of(request)->leader : 0),
    };
    m.swap =
        (uint64_t)plan_kv_bytes(request->plan, rank, request->kv_dtype,
                                plan_stripes_for(request->plan, request->host_blocks_per_lane));
    m.total = m.weights + m.kv + m.buffers + m.comm + m.workspace + m.runtime;
    m.total += device_of(request)->host_memory ? m.swap : 0;
    *memory_out = m;
}

int64_t plan_memory_blocks_wanted(const struct plan *plan, int32_t max_seqs, int32_t max_model_len)
{
    const int64_t per_seq = plan_blocks_for(max_model_len);
    return plan_stripes_for(plan,
                            ((int64_t)max_seqs + plan->n_lanes - 1) / plan->n_lanes * per_seq);
}

int64_t plan_memory_blocks_in(const struct plan *plan, int kv_dtype, uint64_t kv_bytes)
{
    int64_t least = INT64_MAX;
    for (int32_t rank = 0; rank < plan_n_ranks(plan); rank++) {
        const int64_t blocks = plan_kv_blocks_in(plan, rank, kv_dtype, kv_bytes);
        least = blocks < least ? blocks : least;
    }
    return least;
}

void plan_memory_set_kv(struct plan_memory_request *request, uint64_t kv_bytes)
{
    request->blocks_per_lane =
        kv_bytes > 0
            ? plan_memory_blocks_in(request->plan, request->kv_dtype, kv_bytes)
            : plan_memory_blocks_wanted(request->plan, request->max_seqs, request->max_model_len);
}

void plan_memory_set_swap(struct plan_memory_request *request, uint64_t swap_bytes)
{
    request->host_blocks_per_lane =
        swap_bytes > 0 ? plan_memory_blocks_in(request->plan, request->kv_dtype, swap_bytes) : 0;
}

static double megabytes(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

static status_t print_swap(const struct plan_memory_request *request, struct bytes *out)
{
    uint64_t most = 0;
    for (int32_t rank = 0; rank < plan_n_ranks(request->plan); rank++) {
        struct plan_memory m;
        plan_memory_of(request, rank, &m);
        most = m.swap > most ? m.swap : most;
    }
    const int64_t n_tokens =
        request->host_blocks_per_lane * PLAN_BLOCK_TOKENS * request->plan->n_lanes;
    return bytes_printf(out, "swap space in host memory: %.1f MB a rank%s, KV for %lld tokens\n",
                        megabytes(most), device_of(request)->host_memory ? " (in the total)" : "",
                        (long long)n_tokens);
}

status_t plan_memory_print(const struct plan_memory_request *request, struct bytes *out)
{
    TRY(bytes_printf(
        out,
        "\nmemory in MB, %d sequences of %d tokens, KV for %lld tokens at once\n"
        " rank   weights        KV   buffers  messages workspace   runtime     total\n",
        request->max_seqs, request->max_model_len,
        (long long)request->blocks_per_lane * PLAN_BLOCK_TOKENS * request->plan->n_lanes));
    for (int32_t rank = 0; rank < plan_n_ranks(request->plan); rank++) {
        struct plan_memory m;
        plan_memory_of(request, rank, &m);
        TRY(bytes_printf(out, "%5d %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f %9.1f\n", rank,
                         megabytes(m.weights), megabytes(m.kv), megabytes(m.buffers),
                         megabytes(m.comm), megabytes(m.workspace), megabytes(m.runtime),
                         megabytes(m.total)));
    }
    return request->host_blocks_per_lane > 0 ? print_swap(request, out) : status_ok();
}

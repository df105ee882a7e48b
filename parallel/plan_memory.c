#include "parallel/plan_memory.h"

#include "kernels/int8_rows.h"

/* Measured: resident memory of a rank of a model of a few MB, less that model. */
#define RUNTIME_BYTES ((uint64_t)20 << 20)

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

// ---- weights ----

static struct weight_formats formats_of(const struct plan_memory_request *r)
{
    return (struct weight_formats){.dtype = r->dtype, .quantization = r->quantization};
}

/* A tied head is packed beside the rows of the embedding. */
static uint64_t weight_bytes(const struct plan_memory_request *r, int32_t rank)
{
    const int64_t rows = length(plan_vocab_rows(r->plan, rank));
    const struct weight_formats formats = formats_of(r);
    const int head = weight_formats_of(&formats, -1, WEIGHT_KIND_HEAD);
    const int64_t tied =
        r->spec->tied_head ? weight_formats_bytes(head, rows, r->spec->n_hidden) : 0;
    return (uint64_t)(plan_weight_bytes(r->plan, r->spec, rank, &formats) + tied);
}

// ---- buffers ----

/* Floats that a row of a step needs where attention happens on another rank than its queries: queries and outputs as the KV
 * heads lie, and messages both ways. */
static int64_t exchange_floats(const struct plan *plan, int32_t rank)
{
    int32_t kv_side;
    int32_t either;
    plan_exchange_heads(plan, rank, &kv_side, &either);
    return 2 * ((int64_t)kv_side + either) * plan->head_dim;
}

/* Queries with the keys and values computed beside them, and those that are computed apart. */
static void attention_floats(const struct plan *plan, int32_t rank, int64_t *beside_out,
                             int64_t *apart_out)
{
    int64_t beside = 0;
    int64_t apart = 0;
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        if (plan->layers[layer].class_index < 0) {
            continue;
        }
        plan_run_t runs[PLAN_MAX_RUNS];
        const int32_t n = plan_kv_runs(plan, plan->layers[layer].class_index, rank, runs);
        const bool fused = plan_fuses_kv(plan, plan->layers[layer].class_index, rank);
        int64_t keys = 0;
        for (int32_t i = 0; i < n; i++) {
            keys = larger(keys, runs[i].head_end - runs[i].head_begin);
        }
        beside = larger(beside, length(plan_q_heads(plan, layer, rank)) + (fused ? 2 * keys : 0));
        apart = larger(apart, fused ? 0 : 2 * keys);
    }
    *beside_out = beside * plan->head_dim;
    *apart_out = apart * plan->head_dim;
}

/* The residual stream three times, what attention takes and gives, gate and up. */
static int64_t row_floats(const struct plan_memory_request *r, int32_t rank)
{
    const struct plan *plan = r->plan;
    int64_t beside;
    int64_t apart;
    int64_t columns = 0;
    attention_floats(plan, rank, &beside, &apart);
    for (int32_t layer = 0; layer < plan->n_layers; layer++) {
        columns = larger(columns, length(plan_ffn_columns(plan, layer, rank)));
    }
    return 3 * (int64_t)r->spec->n_hidden + 2 * beside + apart + 2 * columns +
           exchange_floats(plan, rank);
}

int32_t plan_memory_logit_rows(int32_t max_seqs, int32_t max_rows)
{
    const int64_t rows = (int64_t)max_seqs + MORE_LOGIT_ROWS;
    return (int32_t)(rows < max_rows ? rows : larger(max_rows, 1));
}

/* Logits: whole on rank 0, where the others' are gathered first; a slice on each of several ranks. */
static int64_t logit_row_floats(const struct plan_memory_request *r, int32_t rank)
{
    const bool alone = r->plan->tp == 1;
    const int64_t whole = rank == 0 ? (alone ? 1 : 2) * (int64_t)r->spec->n_vocab : 0;
    return whole + (alone ? 0 : length(plan_vocab_rows(r->plan, rank)));
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
    const int64_t floats =
        r->max_rows * row_floats(r, rank) +
        plan_memory_logit_rows(r->max_seqs, r->max_rows) * logit_row_floats(r, rank) + rotation;
    return (uint64_t)floats * sizeof(float) + rounded_bytes(r, rank);
}

// ---- all ----

void plan_memory_of(const struct plan_memory_request *request, int32_t rank,
                    struct plan_memory *memory_out)
{
    struct plan_memory m = {
        .weights = weight_bytes(request, rank),
        .kv = (uint64_t)(plan_kv_block_bytes(request->plan, rank, request->kv_dtype) *
                         request->blocks_per_lane),
        .buffers = buffer_bytes(request, rank),
        .runtime = RUNTIME_BYTES,
    };
    m.total = m.weights + m.kv + m.buffers + m.runtime;
    *memory_out = m;
}

int64_t plan_memory_blocks_wanted(const struct plan *plan, int32_t max_seqs, int32_t max_model_len)
{
    const int64_t per_seq = ((int64_t)max_model_len + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    return ((int64_t)max_seqs + plan->n_lanes - 1) / plan->n_lanes * per_seq;
}

int64_t plan_memory_blocks_in(const struct plan *plan, int kv_dtype, uint64_t kv_bytes)
{
    int64_t least = INT64_MAX;
    for (int32_t rank = 0; rank < plan->tp; rank++) {
        const int64_t block = larger(plan_kv_block_bytes(plan, rank, kv_dtype), 1);
        const int64_t blocks = (int64_t)(kv_bytes / (uint64_t)block);
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

static double megabytes(uint64_t bytes)
{
    return (double)bytes / 1e6;
}

status_t plan_memory_print(const struct plan_memory_request *request, struct bytes *out)
{
    TRY(bytes_printf(out,
                     "\nmemory in MB, %d sequences of %d tokens, KV for %lld tokens at once\n"
                     " rank     weights          KV     buffers     runtime       total\n",
                     request->max_seqs, request->max_model_len,
                     (long long)request->blocks_per_lane * PLAN_BLOCK_TOKENS *
                         request->plan->n_lanes));
    for (int32_t rank = 0; rank < request->plan->tp; rank++) {
        struct plan_memory m;
        plan_memory_of(request, rank, &m);
        TRY(bytes_printf(out, "%5d  %10.1f  %10.1f  %10.1f  %10.1f  %10.1f\n", rank,
                         megabytes(m.weights), megabytes(m.kv), megabytes(m.buffers),
                         megabytes(m.runtime), megabytes(m.total)));
    }
    return status_ok();
}

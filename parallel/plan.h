/*
 * plan.h - which rank owns which layers, heads, columns, rows and keys
 *
 * What:      the layers are cut into P pipeline stages of T ranks each. Every layer is three lines, [0, H) query heads,
 *            [0, G) key/value heads, [0, F) feed-forward columns, and rank r of its stage's T owns the interval
 *            [r/T, (r+1)/T) of each.
 *            Query heads and FFN columns are cut at whole heads and whole tiles of PLAN_TILE columns. Heads differ by at
 *            most one, and the extra ones are dealt to the ranks in turn, layer after layer; extra tiles go to the ranks
 *            with the fewest weights in the stage so far, so that weight bytes even out (plan_cuts.c).
 *            The KV line is cut exactly. A KV head that lies on several ranks is shared by sequence: each
 *            sequence has a lane u in [0, D), and the rank whose interval contains g + (u + 1/2)/D owns
 *            KV head g of that sequence. D is the least common multiple of the cuts' denominators.
 *
 *              T = 3, G = 4, D = 3     rank 0        rank 1        rank 2
 *              head 0  lanes 0 1 2     0 1 2
 *              head 1                  0             1 2
 *              head 2                                0 1           2
 *              head 3                                              0 1 2
 *
 *            Layers with the same KV pattern form a lane class (DeciLM has at most three); a layer whose attention
 *            keeps nothing is in none. A linear block is cut by the rows of its matrix, which are the columns of what
 *            it adds to x: a rank computes its own whole, so that a sum over ranks adds zeros and is exact. Its tiles
 *            of rows are dealt like those of the FFN. A block that is not there has empty intervals.
 *            Placement replicate: a rank holds, for every lane, the KV heads its query heads read.
 *            Placement token: the KV line is cut as under share, but what a head's place u stands for is every block with
 *            id % stripe == u of every sequence, and not a lane: the ranks that share a head each hold some blocks of all
 *            sequences, attend to these, and what they find is merged. Consecutive ids go round the ranks, so that one
 *            long sequence is on all of them. Layers whose heads come out whole are shared.
 *            Stages are cut where the largest part of the model's bytes or time that a stage has is smallest
 *            (plan_stages.c): embedding on the first stage, final norm, head and sampling on the last.
 * Layout:    ranks: `rank` is one of all T * P, stage after stage; `tp_rank` is one of the T of a stage, where the layer
 *            says which stage it is.
 *
 *              rank = stage * T + tp_rank        stage 0: ranks 0 .. T-1    stage 1: ranks T .. 2T-1    ...
 *
 *            KV blocks: one id space per lane, valid in every layer and on every rank. On a rank a class is
 *            an array of units (one KV head of one block); lane u's block b of N is the n = plan_held(..u)
 *            units from plan_unit_base(.., N) + b*n. Under token every run (plan_kv_runs) is an array of its own,
 *            [lanes][blocks it has of the lane, in the order of their ids][heads]: see plan_run_block.
 * Ownership: the plan owns its tables; free with plan_destroy.
 * Thread:    any, once made. Pure: no MPI, no device, no clock.
 * Errors:    FAILED_PRECONDITION for a layout that cannot be (T > H ...), with the numbers and what would do.
 * Invariant: plan_check: every (layer, query head), (layer, FFN column), vocabulary row exactly once;
 *            every (layer, KV head, lane) exactly once under share, every (layer, KV head, block of a stripe) exactly
 *            once under token, at least once under replicate; every row of a
 *            linear block exactly once; every layer in one stage, and in every stage a layer that computes something.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "parallel/spec.h"
#include "parallel/weight_formats.h"

#define PLAN_TILE         64
#define PLAN_BLOCK_TOKENS 16

/* KV blocks that hold so many tokens. */
static inline int64_t plan_blocks_for(int64_t n_tokens)
{
    return (n_tokens + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
}

enum plan_placement { PLAN_AUTO, PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN };

typedef struct plan_interval {
    int32_t begin, end; /* [begin, end); may be empty */
} plan_interval_t;

/* A rank's part of one KV head range: heads [head_begin, head_end) for the lanes, or under token the blocks of a stripe,
 * [lane_begin, lane_end). */
typedef struct plan_run {
    int32_t head_begin, head_end;
    int32_t lane_begin, lane_end;
} plan_run_t;

/* Chooses PLAN_SHARE, PLAN_REPLICATE or PLAN_TOKEN for one layer that keeps keys and values; see cost_place.h. */
typedef struct plan_placer {
    int (*place)(const void *user, int32_t layer);
    const void *user;
} plan_placer_t;

struct plan_request {
    int32_t tp;           /* tensor-parallel ranks T, >= 1 */
    int32_t pp;           /* pipeline stages P, >= 1; at most the layers that compute something */
    int placement;        /* enum plan_placement */
    plan_placer_t placer; /* of auto; none: share, since a plan alone knows no rates */
};

struct plan_class {
    int32_t n_kv_heads;
    int placement;     /* PLAN_SHARE, PLAN_REPLICATE or PLAN_TOKEN */
    int32_t n_layers;  /* layers in this class */
    int32_t *owned;    /* see plan_held */
    int32_t *owned_at; /* [T * plan_columns + 1] */
};

struct plan_layer {
    int attention, ffn;      /* enum spec_block */
    int32_t class_index;     /* -1: attention is not full */
    int32_t layer_in_class;  /* 0.. within its class, in layer order; 0 in none */
    int32_t *attention_cuts; /* [T + 1]; full: query heads, linear: rows, none: zeros */
    int32_t *ffn_cuts;       /* [T + 1]; full: columns, linear: rows, none: zeros */
};

/* A stage's part of the whole model, that of all stages together being 1. */
typedef struct plan_load {
    double bytes; /* of weights and of KV */
    double time;  /* of a step */
} plan_load_t;

struct plan {
    int32_t tp, pp;
    int32_t n_layers, n_heads, head_dim, n_vocab;
    int32_t n_lanes;            /* D */
    int32_t stripe;             /* blocks of a stripe; 1: no class is split by token */
    int32_t n_classes;          /* 0: no layer keeps keys and values */
    struct plan_class *classes; /* [n_classes], in order of first appearance */
    struct plan_layer *layers;  /* [n_layers] */
    int32_t *stage_cuts;        /* [P + 1], layers */
    int32_t *vocab_cuts;        /* [T + 1], rows of embedding and head */
};

MUST_USE status_t plan_make(const struct model_spec *spec, const struct plan_request *request,
                            struct plan *plan_out);
void plan_destroy(struct plan *plan); /* accepts a zeroed plan */

/* The invariant above; INTERNAL names the first violation. */
MUST_USE status_t plan_check(const struct plan *plan, const struct model_spec *spec);

// ---- stages ----

int32_t plan_n_ranks(const struct plan *plan); /* T * P */
int32_t plan_stage(const struct plan *plan, int32_t rank);
int32_t plan_tp_rank(const struct plan *plan, int32_t rank);
plan_interval_t plan_stage_layers(const struct plan *plan, int32_t stage);
int32_t plan_stage_of_layer(const struct plan *plan, int32_t layer);

/* What the cuts even out, see plan_stages.c. */
plan_load_t plan_stage_load(const struct plan *plan, const struct model_spec *spec, int32_t stage);

/* Vocabulary rows the rank holds: of the embedding on the first stage, of the head on the last, else empty. */
plan_interval_t plan_embedding_rows(const struct plan *plan, int32_t rank);
plan_interval_t plan_head_rows(const struct plan *plan, int32_t rank);

// ---- in a layer ----

/* Empty unless the block is full. */
plan_interval_t plan_q_heads(const struct plan *plan, int32_t layer, int32_t tp_rank);
plan_interval_t plan_ffn_columns(const struct plan *plan, int32_t layer, int32_t tp_rank);

/* Rows of the layer's linear attention or feed-forward; empty where the block is of another kind. */
plan_interval_t plan_attention_rows(const struct plan *plan, int32_t layer, int32_t tp_rank);
plan_interval_t plan_ffn_rows(const struct plan *plan, int32_t layer, int32_t tp_rank);

/* Of the vocabulary, in the stages that have one. */
plan_interval_t plan_vocab_rows(const struct plan *plan, int32_t tp_rank);

// ---- KV heads ----

/* What the class's tables of owners have a column for: the lanes, or under token the blocks of a stripe. Below, `lane` is one. */
int32_t plan_columns(const struct plan *plan, int32_t class_index);

/* KV heads of the class that the tp_rank of a stage holds for sequences of the lane, ascending; returns how many. */
int32_t plan_held(const struct plan *plan, int32_t class_index, int32_t tp_rank, int32_t lane,
                  const int32_t **heads_out);

/* The tp_rank that computes attention of q_rank's query heads of KV head `head` for the lane:
 * the owner under share and, of a block of a stripe, under token; q_rank itself under replicate. */
int32_t plan_attention_rank(const struct plan *plan, int32_t class_index, int32_t head,
                            int32_t lane, int32_t q_rank);

/* True when no query ever leaves its rank in this layer (then there is nothing to exchange). */
bool plan_attention_is_local(const struct plan *plan, int32_t layer);

/* Union over lanes of plan_held: the k_proj/v_proj heads whose weights the rank keeps; a contiguous range. */
plan_interval_t plan_kv_weight_heads(const struct plan *plan, int32_t class_index, int32_t tp_rank);

/* The same as rectangles (heads x lanes), at most PLAN_MAX_RUNS, ascending by head; returns how many. Rows of a step
 * are ordered by lane, so that a run's rows are contiguous and its k and v are one matmul each. */
#define PLAN_MAX_RUNS 3
int32_t plan_kv_runs(const struct plan *plan, int32_t class_index, int32_t tp_rank,
                     plan_run_t runs_out[PLAN_MAX_RUNS]);

/* True when the rank computes k and v of the class together with q: it has one run of KV heads, for every lane. Under token
 * always, for all its runs at once: which rows it keeps, their blocks say. */
bool plan_fuses_kv(const struct plan *plan, int32_t class_index, int32_t tp_rank);

/* Bytes of a row where queries leave their rank; all 0: they do not. */
struct plan_exchange {
    int64_t queries; /* by KV head held on the rank */
    int64_t outputs; /* the same heads; under token float32, with what a merge needs */
    int64_t query_message, output_message; /* to or from all others, whichever is more */
};

/* Of a layer that keeps keys and values, and the most of any of the rank's stage. */
void plan_layer_exchange(const struct plan *plan, int32_t layer, int32_t tp_rank, int activation,
                         struct plan_exchange *exchange_out);
void plan_exchange_bytes(const struct plan *plan, int32_t rank, int activation,
                         struct plan_exchange *exchange_out);

/* Units a layer of the class takes on the tp_rank when every lane has n_blocks blocks, a multiple of the stripe, and where
 * those of lane u, not of a class split by token, begin. */
int64_t plan_units(const struct plan *plan, int32_t class_index, int32_t tp_rank, int64_t n_blocks);
int64_t plan_unit_base(const struct plan *plan, int32_t class_index, int32_t tp_rank, int32_t lane,
                       int64_t n_blocks);

/* Under token, which of a run's own blocks of a lane a block is; -1: the run does not have it. */
int64_t plan_run_block(const struct plan *plan, const plan_run_t *run, int64_t block);

/* Units of a run of a class split by token for n_blocks blocks in a lane, a multiple of the stripe. */
int64_t plan_run_units(const struct plan *plan, const plan_run_t *run, int64_t n_blocks);

/* n_blocks in whole stripes: no more of them, or no fewer. */
int64_t plan_stripes_in(const struct plan *plan, int64_t n_blocks);
int64_t plan_stripes_for(const struct plan *plan, int64_t n_blocks);

// ---- bytes ----

/* Bytes of KV on the rank for n_blocks blocks, a multiple of the stripe, in every lane, all layers of its stage (K and V). */
int64_t plan_kv_bytes(const struct plan *plan, int32_t rank, int kv_dtype, int64_t n_blocks);

/* Blocks of a lane, in whole stripes, whose KV takes no more than so many bytes of the rank. */
int64_t plan_kv_blocks_in(const struct plan *plan, int32_t rank, int kv_dtype, uint64_t bytes);

/* Bytes of KV per token of the rank, averaged over lanes; and over all ranks / bytes stored once. */
double plan_kv_bytes_per_token(const struct plan *plan, int32_t rank, int kv_dtype);
double plan_kv_replication(const struct plan *plan, const struct model_spec *spec);

/* Bytes of weights on the rank in the given formats, scales included (norm weights are float32). */
int64_t plan_weight_bytes(const struct plan *plan, const struct model_spec *spec, int32_t rank,
                          const struct weight_formats *formats);

/* The plan as bytes, for the wire; unpack checks everything against the spec. */
MUST_USE status_t plan_pack(const struct plan *plan, struct bytes *out);
MUST_USE status_t plan_unpack(const void *data, size_t size, const struct model_spec *spec,
                              struct plan *plan_out);

/* The longest rows that the rank rounds to int8 to multiply them (MATRIX_W8A8); 0: none. */
int32_t plan_rounded_inputs(const struct plan *plan, const struct model_spec *spec, int32_t rank,
                            const struct weight_formats *formats);

const char *plan_placement_name(int placement); /* "auto", "share", "replicate", "token" */

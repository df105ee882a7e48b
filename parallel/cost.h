/*
 * cost.h - how long a plan's steps will take, and how many tokens a second come of it
 *
 * What:      a step of R rows on a plan, op by op, as the ops follow each other on a rank; the slowest rank of each block
 *            counts, since a sum over the ranks ends it. From steps: decoding, prompts, time to the first token, and a
 *            workload's tokens a second.
 *
 *              matmul        max(bytes / bandwidth, flops / peak)                     weights are read once a step
 *              attention     KV bytes / bandwidth, or flops / peak for many queries, whichever is more
 *              all-reduce    after each block, R rows of n_hidden                     cost_rates.h
 *              exchange      queries to the ranks that hold their KV head, and back   under share and token; under token
 *                            to all of these, and float32 back
 *              edges         the embedding's sum, logits gathered on rank 0
 *              elementwise, sampling, launches: reached parts of the device alone; a bound has none
 *
 *            Concurrency B, prompts P, completions G: B sequences are decoded at an average of P + G/2 tokens, and
 *            their prompts are computed in chunks, several in a step where they fit:
 *              tokens/s = B G / (G * decode step + B * prompt)
 *            Stages: B is cut into as many micro-batches, and a round takes n * the slowest stage, or one micro-batch's
 *            way through all stages where that is longer.
 * Units:     seconds, bytes, of one rank unless said; sequences and rows may be averages.
 * Thread:    any. Pure.
 * Source:    roofline model (Williams et al. 2009, doi:10.1145/1498765.1498785), summed over ops.
 */
#pragma once

#include <stdint.h>

#include "parallel/cost_rates.h"
#include "parallel/plan.h"
#include "parallel/plan_memory.h"

enum cost_op {
    COST_PROJECT,     /* q, k, v and o, and matrices in the place of attention */
    COST_FFN,         /* gate, up, down, and matrices in the place of a feed-forward */
    COST_HEAD,        /* logits */
    COST_ATTENTION,   /* reading keys and values */
    COST_ELEMENTWISE, /* norms, rotation, SwiGLU, embedding */
    COST_SAMPLE,
    COST_LAUNCH,     /* of all ops */
    COST_ALL_REDUCE, /* of the layers */
    COST_EXCHANGE,   /* queries and outputs between ranks that share a KV head */
    COST_EDGES,      /* sum of the embedding, gathering of logits, hand-over between stages */
    COST_STEP,       /* what each step takes whatever it computes */
    COST_N_OPS
};

const char *cost_op_name(int op);

/* What is predicted for; borrowed. */
struct cost_model {
    const struct plan *plan;
    const struct model_spec *spec;
    const struct cost_rates *rates;
    int dtype, kv_dtype;
    int quantization;       /* enum quantization: of the layers' weights */
    int32_t ranks_per_node; /* collectives over more ranks leave a node; 0: all ranks are on one */
};

/* Sequences that compute the same number of tokens. */
struct cost_rows {
    double n_seqs;
    double n_new;    /* tokens of each computed now */
    double n_past;   /* of each, in the cache before */
    double n_logits; /* rows of the step */
};

/* Of one layer, or of a step. Bytes and flops are of the rank that has most. */
struct cost_time {
    double seconds[COST_N_OPS];
    double total_s;
    double weight_bytes, kv_bytes, flops;
    double collective_bytes; /* a rank hands to collectives */
};

void cost_of_layer(const struct cost_model *model, const struct cost_rows *rows, int32_t layer,
                   struct cost_time *time_out);

/* Embedding, the layers, head and sampling of one step; with stages, of one round of micro-batches. */
void cost_of_step(const struct cost_model *model, const struct cost_rows *rows,
                  struct cost_time *time_out);

struct cost_workload {
    int32_t n_prompt, n_generate, concurrency;
    int32_t chunk_rows; /* of prompts in one step */
};

struct cost_prediction {
    struct cost_time decode;  /* one step of all sequences, at P + G/2 tokens */
    struct cost_time prefill; /* one prompt's share of a step that is full of prompts */
    double decode_tokens_per_s, prefill_tokens_per_s;
    double first_token_s; /* one prompt alone */
    double inter_token_s; /* one step */
    double tokens_per_s;  /* generated, of the workload, prompts included */
};

void cost_predict(const struct cost_model *model, const struct cost_workload *workload,
                  struct cost_prediction *prediction_out);

/* What a step waits for most: "weights", "compute", "KV reads", "collectives", "launches". */
const char *cost_binds(const struct cost_model *model, const struct cost_time *time);

struct cost_memory {
    double usable_bytes; /* of a rank: memory * utilization */
    double fixed_bytes;  /* weights, buffers and runtime of the fullest rank */
    double
        kv_tokens; /* that fit on all ranks together; 0: not even the weights; infinite without KV */
};

/* `request`: limits of a server; its blocks_per_lane is not looked at. */
void cost_fit(const struct cost_model *model, const struct plan_memory_request *request,
              double utilization, struct cost_memory *memory_out);

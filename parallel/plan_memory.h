/*
 * plan_memory.h - how much memory each rank will need
 *
 * What:      what a rank allocates for weights, KV pools and the buffers of a step, from the plan and the limits of a
 *            server alone, and a fixed amount for programs and libraries. A rank's resident memory after loading is to
 *            be within 3 % of it.
 * Units:     bytes of one rank.
 * Thread:    any. Pure.
 */
#pragma once

#include <stdint.h>

#include "base/bytes.h"
#include "parallel/plan.h"

struct plan_memory_request {
    const struct plan *plan;
    const struct model_spec *spec;
    int dtype, kv_dtype; /* of weights and of KV on the device */
    int quantization;    /* enum quantization: of weights */
    int32_t max_seqs, max_rows, max_model_len;
    int64_t blocks_per_lane; /* of KV */
};

struct plan_memory {
    uint64_t weights;
    uint64_t kv;
    uint64_t buffers; /* activations, logits, tables of the rotation */
    uint64_t runtime; /* the program, MPI, gRPC, stacks */
    uint64_t total;
};

void plan_memory_of(const struct plan_memory_request *request, int32_t rank,
                    struct plan_memory *memory_out);

/*
 * Rows of a step whose logits are kept: one a sequence that draws, and some more for sequences that want log probabilities of
 * their prompts. It bounds what logits take in memory; a longer prompt takes more steps.
 */
int32_t plan_memory_logit_rows(int32_t max_seqs, int32_t max_rows);

/* KV blocks of a lane with which max_seqs sequences of max_model_len tokens fit. */
int64_t plan_memory_blocks_wanted(const struct plan *plan, int32_t max_seqs, int32_t max_model_len);

/* KV blocks of a lane that fit kv_bytes on every rank. */
int64_t plan_memory_blocks_in(const struct plan *plan, int kv_dtype, uint64_t kv_bytes);

/* Fills in blocks_per_lane: those that fit kv_bytes on every rank, or for 0 those that all sequences need. */
void plan_memory_set_kv(struct plan_memory_request *request, uint64_t kv_bytes);

/* A line for each rank, in MB. */
MUST_USE status_t plan_memory_print(const struct plan_memory_request *request, struct bytes *out);

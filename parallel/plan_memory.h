/*
 * plan_memory.h - how much memory each rank will need
 *
 * What:      what a rank allocates for weights, KV pools, the buffers of a step, messages and workspaces, from the plan, the
 *            device and the limits of a server alone, and a fixed amount for programs and libraries, more on rank 0,
 *            which leads. All of it is there before the group is ready. A rank's resident memory is to be within 3 % of it.
 * Units:     bytes of one rank, on its device.
 * Thread:    any. Pure.
 */
#pragma once

#include <stdint.h>

#include "base/bytes.h"
#include "parallel/plan.h"
#include "parallel/plan_device.h"

struct plan_memory_request {
    const struct plan *plan;
    const struct model_spec *spec;
    const struct plan_device *device; /* NULL: the CPU */
    int dtype, kv_dtype;              /* of weights and of KV on the device */
    int quantization;                 /* enum quantization: of weights */
    int embedding_dtype; /* of its rows where dtype is float32; else they are bfloat16 */
    int32_t max_seqs, max_rows, max_model_len;
    int32_t max_steps;       /* under way at once; 0: 1, and with stages one each and one more */
    int64_t blocks_per_lane; /* of KV */
    int64_t host_blocks_per_lane; /* slots in host memory for KV blocks; 0: none */
};

struct plan_memory {
    uint64_t weights;
    uint64_t kv;
    uint64_t
        buffers; /* activations, logits, tables of the rotation, what a step sends to the device */
    uint64_t comm;      /* messages between ranks */
    uint64_t workspace; /* of attention, matmuls and sampling */
    uint64_t runtime;   /* programs and libraries */
    uint64_t swap;      /* slots in host memory */
    uint64_t total;     /* on the device: with swap where its memory is the host's */
};

void plan_memory_of(const struct plan_memory_request *request, int32_t rank,
                    struct plan_memory *memory_out);

/*
 * Rows of a step whose logits are kept: one a sequence that draws, and some more for sequences that want log probabilities of
 * their prompts. It bounds what logits take in memory; a longer prompt takes more steps.
 */
int32_t plan_memory_logit_rows(int32_t max_seqs, int32_t max_rows);

/*
 * Tokens whose logits the sequences of a step may change together: some thousands each, as penalties of long texts do; one
 * may always change all. At most 64 MiB of them.
 */
static inline int32_t plan_memory_sample_tokens(int32_t max_seqs, int32_t n_vocab)
{
    const int64_t each = n_vocab < 4096 ? n_vocab : 4096;
    const int64_t all = max_seqs * each;
    const int64_t bounded = all < (1 << 22) ? all : 1 << 22;
    return (int32_t)(bounded > n_vocab ? bounded : n_vocab);
}

/* Elements of a row in the widest layer of the rank's stage. */
struct plan_widths {
    int64_t attention; /* queries, and keys and values where they are computed with them */
    int64_t kv;        /* keys and values of a run, where they are not */
    int64_t gate_up;
};

void plan_memory_widths(const struct plan *plan, int32_t rank, struct plan_widths *widths_out);

/* KV blocks of a lane with which max_seqs sequences of max_model_len tokens fit. */
int64_t plan_memory_blocks_wanted(const struct plan *plan, int32_t max_seqs, int32_t max_model_len);

/* KV blocks of a lane that fit kv_bytes on every rank. */
int64_t plan_memory_blocks_in(const struct plan *plan, int kv_dtype, uint64_t kv_bytes);

/* Fills in blocks_per_lane: those that fit kv_bytes on every rank, or for 0 those that all sequences need. */
void plan_memory_set_kv(struct plan_memory_request *request, uint64_t kv_bytes);

/* Fills in host_blocks_per_lane: those that fit swap_bytes on every rank. */
void plan_memory_set_swap(struct plan_memory_request *request, uint64_t swap_bytes);

/* A line for each rank, in MB, and one for what slots take of the host. */
MUST_USE status_t plan_memory_print(const struct plan_memory_request *request, struct bytes *out);

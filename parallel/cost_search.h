/*
 * cost_search.h - which layout of a model on a cluster is fastest
 *
 * What:      goes through tensor-parallel sizes T, stages P, replicas R with T * P * R GPUs at most, and placements, and ranks
 *            what fits by the predicted tokens/s of the workload, or by the time of a token.
 *            Sequences are dealt to the replicas; where a replica has no room for its part, it computes as many as fit at
 *            once and the others wait. Ranks of a stage and stages one after the other fill a node first.
 * Ownership: the caller frees the list with cost_search_destroy.
 * Thread:    any. Pure; under a second for 16 GPUs.
 * Errors:    INVALID_ARGUMENT for sizes that make no sense; RESOURCE_EXHAUSTED for memory.
 */
#pragma once

#include "parallel/cost.h"

enum cost_objective { COST_THROUGHPUT, COST_LATENCY };

#define COST_OBJECTIVE_CHOICES "throughput|latency"

struct cost_search_request {
    const struct model_spec *spec;
    const struct cost_rates *rates;
    const struct plan_device *device; /* whose buffers are counted */
    int dtype, kv_dtype;
    int quantization; /* enum quantization */
    int placement;    /* enum plan_placement: auto tries all */
    int objective;    /* enum cost_objective */
    int32_t n_gpus, gpus_per_node;
    struct cost_workload workload; /* concurrency of all replicas; 0: as many as fit */
    int32_t max_seqs;              /* of a replica */
    double utilization;
};

struct cost_candidate {
    int32_t tp, pp, replicas;
    int placement;        /* PLAN_AUTO: not the same for all layers */
    int32_t n_replicated; /* layers whose KV heads are copied on several ranks */
    int32_t n_token;      /* layers whose KV heads are split by token */
    int32_t concurrency;  /* of a replica, at once; 0: does not fit */
    double kv_tokens;     /* that fit, over all replicas */
    double needed_bytes,
        usable_bytes;    /* of the fullest rank, with KV for one sequence; of the device */
    double tokens_per_s; /* of all replicas */
    double inter_token_s, first_token_s;
    const char *binds;
    char refusal[120]; /* why it cannot be; "" when it fits */
};

struct cost_search {
    struct cost_candidate *candidates; /* those that fit first, best first */
    int32_t n, n_fitting;
};

MUST_USE status_t cost_search_run(const struct cost_search_request *request,
                                  struct cost_search *search_out);
void cost_search_destroy(struct cost_search *search);

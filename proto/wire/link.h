/*
 * link.h - messages of kvasir.v1.WorkerLink as plain structs (see inference.h for the rules)
 *
 * What:      the leader of a group dials the coordinator and opens Attach. Then
 *
 *              leader                         coordinator
 *              hello            ->
 *                               <-            assign (model, plan, limits) or a final status
 *              loading ...      ->
 *              ready            ->
 *                               <-            submit, cancel, ...
 *              step_result ...  ->
 *              heartbeat 1/s    ->            (also while loading and between steps)
 *                               <-            shutdown
 *              failed           ->            before the group ends by itself
 */
#pragma once

#include "proto/wire/inference.h"

#define WIRE_LINK_VERSION 1

struct wire_hello {
    uint32_t link_version;
    const char *version; /* of the program */
    const char *join_token;
    bool has_group; /* started by a supervisor, which said which group and generation this is */
    uint32_t group_id, generation;
    uint32_t world_size; /* ranks */
    const char *host, *device;
    uint32_t pid;
    uint32_t n_cores;
    uint64_t memory_bytes;
};

struct wire_loading {
    uint64_t bytes_done, bytes_total;
};

struct wire_ready {
    uint32_t n_lanes;
    uint64_t kv_blocks_per_lane;
    uint64_t weight_bytes, kv_bytes; /* summed over ranks */
    const uint64_t *rank_kv_bytes;   /* per rank, from the pools */
    size_t n_rank_kv_bytes;
    double load_seconds;
};

struct wire_seq_output {
    uint64_t seq_id;
    const struct wire_token_info *tokens; /* new ones, in order; may be empty */
    size_t n_tokens;
    uint32_t first_position; /* index in the completion of tokens[0] */
    int finish;              /* enum wire_finish_reason; NONE: goes on */
    bool has_stop_token_id;
    uint32_t stop_token_id;
    status_t error;                                /* when finish is ERROR */
    const struct wire_token_info *prompt_logprobs; /* of the prompt's tokens, from the second on */
    size_t n_prompt_logprobs;
    uint32_t first_prompt_position; /* place in the prompt of prompt_logprobs[0] */
    uint32_t cached_tokens;         /* found in the prefix cache when it was first computed */
    bool has_cumulative_logprob;
    double cumulative_logprob; /* of a beam search */
};

struct wire_load {
    uint32_t running, waiting;
    uint64_t kv_blocks_used, kv_blocks_total;
    uint64_t preemptions_total;
    uint64_t step_age_ns;                             /* of the step under way; 0 between steps */
    uint64_t prefix_queries_total, prefix_hits_total; /* tokens */
    uint64_t recompute_tokens_total;
    uint64_t swapped_out_blocks_total, swapped_in_blocks_total;
    uint64_t prompt_tokens_total, prompt_ns_total; /* computed, and by steps that took so long */
};

struct wire_step_result {
    uint64_t step;
    uint64_t step_ns;
    const struct wire_seq_output *outputs;
    size_t n_outputs;
    struct wire_load load;
};

enum wire_worker_kind {
    WIRE_WORKER_NONE,
    WIRE_WORKER_HELLO,
    WIRE_WORKER_LOADING,
    WIRE_WORKER_READY,
    WIRE_WORKER_STEP_RESULT,
    WIRE_WORKER_HEARTBEAT,
    WIRE_WORKER_FAILED,
};

struct wire_worker_message {
    int kind; /* enum wire_worker_kind: which of these */
    struct wire_hello hello;
    struct wire_loading loading;
    struct wire_ready ready;
    struct wire_step_result step_result;
    struct wire_load heartbeat;
    status_t failed;
};

MUST_USE status_t wire_worker_message_pack(const struct wire_worker_message *m, struct bytes *out);
MUST_USE status_t wire_worker_message_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                             struct wire_worker_message *out);

struct wire_assign {
    uint32_t group_id, generation;
    const char *model_dir;
    int dtype;    /* enum dtype of weights on the device */
    int kv_dtype; /* enum dtype */
    uint32_t max_model_len, max_num_seqs, max_num_batched_tokens;
    uint64_t kv_cache_bytes;   /* per rank; 0: the worker decides from free memory */
    uint64_t swap_space_bytes; /* of host memory, per rank; 0: none */
    uint32_t threads;          /* per rank; 0: cores / ranks on the host */
    const uint8_t *plan;       /* plan_pack */
    size_t plan_bytes;
    bool dummy_weights; /* made up from config.json, keyed by */
    uint64_t weights_seed;
    double gpu_memory_utilization; /* (0, 1]: of a GPU's memory, what its ranks may use together */
    bool prefix_caching;
    int quantization;            /* enum quantization */
    int determinism;             /* 0: default, 1: batch */
    int comm;                    /* 0: auto, 1: nccl, 2: staged */
    double collective_timeout_s; /* 0: the worker decides */
};

struct wire_submit {
    uint64_t seq_id;
    struct wire_token_ids tokens; /* prompt, then what was generated before (after a restart) */
    uint32_t n_generated;         /* how many of tokens were generated */
    float temperature, top_p, min_p;
    int32_t top_k;
    uint64_t seed;
    uint32_t sample;     /* which of n */
    uint32_t max_tokens; /* of the completion, n_generated included */
    uint32_t min_tokens;
    struct wire_token_ids stop_token_ids; /* eos ids included unless ignored */
    int32_t n_top;                        /* alternatives wanted; -1: no logprobs at all */
    int32_t priority;
    float repetition_penalty, presence_penalty, frequency_penalty;
    const struct wire_logit_bias *logit_bias;
    size_t n_logit_bias;
    struct wire_token_ids allowed_token_ids; /* none: all */
    const char *cache_salt;
    struct wire_token_ids held_token_ids; /* out before min_tokens, and no end after it */
    int32_t n_prompt_top;                 /* as n_top, for the tokens of the prompt */
    uint64_t time_left_ns;                /* to the deadline; 0: there is none */
    uint32_t beam_width;                  /* 0: it is sampled */
    uint32_t n_best; /* answers of a beam search: the sequences from seq_id on */
    float length_penalty;
    int early_stopping; /* enum wire_early_stopping */
};

enum wire_coordinator_kind {
    WIRE_COORDINATOR_NONE,
    WIRE_COORDINATOR_ASSIGN,
    WIRE_COORDINATOR_SUBMIT,
    WIRE_COORDINATOR_CANCEL,
    WIRE_COORDINATOR_SHUTDOWN,
};

struct wire_coordinator_message {
    int kind; /* enum wire_coordinator_kind: which of these */
    struct wire_assign assign;
    struct wire_submit submit;
    uint64_t cancel_seq_id;
};

MUST_USE status_t wire_coordinator_message_pack(const struct wire_coordinator_message *m,
                                                struct bytes *out);
MUST_USE status_t wire_coordinator_message_unpack(const uint8_t *data, size_t size,
                                                  struct arena *arena,
                                                  struct wire_coordinator_message *out);

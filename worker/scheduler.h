/*
 * scheduler.h - continuous batching: which tokens of which sequences the next step computes
 *
 * What:      a sequence is n_computed chasing n_tokens; there are no prefill and decode phases. A step packs a budget of
 *            tokens: first the running sequences that lack one token (decode), then the rest of the running ones
 *            (prefill chunks), then waiting ones, by (priority, arrival). A sequence is admitted when all its present
 *            tokens fit into a lane, and into the one that is then the emptiest. When a running sequence
 *            needs a block and its lane has none, the lane's last sequence in that order is preempted: its blocks are
 *            freed and it waits to be computed again. Sampling is keyed by position, so it continues with the same tokens.
 * Swapping:  where slots of host memory are free and it costs less than computing the tokens again, the blocks of a preempted
 *            sequence go there (moves of the step plan) and come back, to the same lane, when it is admitted again. Leading blocks
 *            that others hold too stay; they are found by their tokens later, and if not, all is computed again. So it is where
 *            another lane has room before its own: nothing overtakes the head of the queue, and nothing waits for one lane
 *            while others are free.
 * Scoring:   rows of a prompt whose log probabilities are wanted take logits, of which a step has max_logits: chunks of
 *            such a prompt are as long as that allows, one token at least. What has been scored is not scored again after a
 *            preemption.
 * Changes:   the tokens whose logits running sequences change (sample_list.h) are at most max_sample_tokens together. A
 *            sequence is admitted where its list fits with some growth; when lists have grown beyond, the last sequences
 *            are preempted, as for blocks.
 * Ahead:     up to max_steps plans may be made before the first of them is applied; they are computed and applied in the order
 *            they were made. A token that is drawn in a plan not applied yet is pending: the next plan names it by its
 *            sequence's slot. Ends by length are foreseen. A stop id is found out late: the sequence is gone from then on,
 *            and what later plans drew for it is dropped. Blocks and slots of a sequence that ends, is cancelled or is
 *            preempted are lent again at once: whoever gets them is computed after it. A preempted sequence waits
 *            until it has no pending token.
 * Stages:    with P > 1 of them P plans are computed at once, each by another stage. A plan then takes its share alone of the
 *            token budget and of the sequences that decode, so that P plans in a row keep all stages busy, and a sequence with a
 *            pending token waits for P plans: by then its token is where the next one begins. Chunks of a prompt follow each
 *            other without waiting.
 * Prefixes:  full blocks of sequences, running and past, are found by their tokens and those before them: a sequence begins behind
 *            the longest prefix that its lane still has, up to its last token but one. Prompts and what was generated alike;
 *            a preempted sequence finds its own. What is found has the bits that computing it would give.
 * Deadlines: time is an input: scheduler_expire is told what time it is and takes out what is too late.
 * Beams:     a request with beam_width is a group of as many sequences of one lane, and slots, from its admission to its end. Its
 *            prompt is computed by one of them. When the rows of all its beams are there, the next beams are chosen (beam.h): a
 *            beam goes on as a sequence that holds the blocks of the one it continues, and the last block, where that is not
 *            full and others hold it too, is copied before it is written to (moves of the plan). Until its rows are there a group
 *            waits, and others go on. It is preempted as a whole; what its beams have in common is then computed once, by
 *            one of them, and the blocks are shared again. All a group can come to fits into an empty lane.
 * Units:     tokens and blocks of PLAN_BLOCK_TOKENS tokens; one block id space per lane.
 * Ownership: the scheduler copies what it is given.
 * Thread:    owner:leader. No threads, clocks or system calls inside: time is steps.
 * Errors:    scheduler_submit says what is wrong with a request; nothing else fails.
 * Invariant: scheduler_check: free + held blocks of every lane == blocks_per_lane, every block has the holders that are counted,
 *            free + held slots of host memory of every lane == host_blocks_per_lane, none of them held twice,
 *            running <= max_seqs, slots of running sequences differ, and every running sequence has a token that is still to be
 *            computed, or is a beam that waits for the others of its group.
 * Source:    Yu et al. 2022 (Orca, iteration-level scheduling); Agrawal et al. 2024, arXiv:2403.02310
 *            (chunked prefill); Kwon et al. 2023, arXiv:2309.06180 (paged KV, recompute preemption).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/backend.h"
#include "worker/beam.h"
#include "worker/sample_list.h"
#include "worker/step_plan.h"

struct scheduler;

struct scheduler_config {
    int32_t max_seqs;      /* running at once */
    int32_t max_rows;      /* token budget of a step, >= max_seqs */
    int32_t max_model_len; /* tokens of a sequence, prompt and completion */
    int32_t max_waiting;   /* RESOURCE_EXHAUSTED beyond */
    int32_t n_lanes;
    int64_t blocks_per_lane; /* at least what max_model_len tokens need */
    int32_t stripe;          /* of the plan: a sequence's blocks go round id % stripe; 0: 1 */
    int32_t n_vocab;
    int32_t max_steps;            /* made and not applied; 0: 1 */
    int32_t n_stages;             /* of the pipeline that computes the steps; 0: 1 */
    bool prefix_caching;          /* false: every token is computed */
    int32_t max_logits;           /* of a step; 0: max_seqs */
    int32_t max_sample_tokens;    /* of a step, at least n_vocab; 0: step_max_sample_tokens */
    int64_t host_blocks_per_lane; /* slots of host memory; 0: no swapping */
    int32_t max_moves;            /* of a step */
    double swap_block_s;          /* what a block costs that goes there and comes back ... */
    double recompute_token_s;     /* ... and a token that is computed again */
};

#define SCHEDULER_MAX_STOP_IDS 264 /* what a request may name, and a model's own */
#define SCHEDULER_MAX_BIAS     300

struct scheduler_request {
    uint64_t seq_id;
    const int32_t *tokens; /* prompt, then what was generated before */
    int32_t n_tokens;
    int32_t n_generated; /* of tokens */
    int32_t max_tokens;  /* of the completion, n_generated included */
    int32_t min_tokens;
    const int32_t *stop_ids;
    int32_t n_stop_ids; /* at most SCHEDULER_MAX_STOP_IDS */
    int32_t priority;   /* smaller first */
    float temperature, top_p, min_p;
    int32_t top_k;
    uint64_t seed;
    uint32_t sample;
    int32_t n_top;        /* alternatives to report; -1: no logprobs */
    const char *salt;     /* prefixes are shared with requests of the same salt; NULL: "" */
    int32_t computes_all; /* 1: takes nothing from the prefix cache */
    float repetition, presence, frequency;
    const struct sample_bias *bias; /* an id once */
    int32_t n_bias;                 /* at most SCHEDULER_MAX_BIAS */
    const int32_t *allowed;         /* none: all */
    int32_t n_allowed;
    const int32_t *held_ids; /* like stop ids out before min_tokens, and no end after it */
    int32_t n_held_ids;      /* at most SCHEDULER_MAX_STOP_IDS */
    int32_t
        n_prompt_top; /* as n_top, for the tokens of the prompt, all of which are then computed */
    uint64_t deadline_ns; /* on the clock of scheduler_expire; 0: none */
    int32_t
        beam_width; /* 0: the request is sampled; else nothing is drawn, and nothing was generated before */
    int32_t n_best; /* answers of a beam search, at most beam_width */
    float length_penalty;
    int early_stopping; /* enum beam_stop */
};

enum scheduler_finish { SCHEDULER_GOES_ON, SCHEDULER_STOP, SCHEDULER_LENGTH, SCHEDULER_ERROR };

/* What one sequence got out of a step. */
struct scheduler_output {
    uint64_t seq_id;
    int32_t position; /* index of the token in the completion */
    int32_t n_top;    /* as requested */
    int32_t n_cached; /* tokens of the request that were found in the prefix cache */
    int finish;       /* enum scheduler_finish */
    const struct sample_result *result; /* NULL: no token was drawn */
    const struct sample_result *scored; /* [n_scored]: tokens of the prompt, in order */
    int32_t n_scored;
    int32_t first_scored; /* place in the prompt of the first of them */
    int32_t n_prompt_top; /* as requested */
    const struct beam_search *
        beams; /* NULL, or what a beam search ended with: valid until the next plan is made or applied */
    int32_t n_best; /* as requested: of what has ended there */
};

struct scheduler_load {
    int32_t n_running, n_waiting;
    int64_t blocks_used, blocks_total;
    int64_t host_blocks_used;
    uint64_t n_preemptions;
    uint64_t n_recomputed;                    /* tokens that were there before a preemption */
    uint64_t n_swapped_out, n_swapped_in;     /* blocks */
    uint64_t n_prefix_queries, n_prefix_hits; /* tokens looked up in the prefix cache, and found */
};

MUST_USE status_t scheduler_new(const struct scheduler_config *config, struct scheduler **out);
void scheduler_free(struct scheduler *s); /* accepts NULL */

/* INVALID_ARGUMENT names field, value and limit; ALREADY_EXISTS; RESOURCE_EXHAUSTED when max_waiting wait. */
MUST_USE status_t scheduler_submit(struct scheduler *s, const struct scheduler_request *request);

/* Frees the sequence's blocks and slots at once; false when it is not known (it may have finished). */
bool scheduler_cancel(struct scheduler *s, uint64_t seq_id);

/* Removes sequences whose deadline is at or before now_ns, as cancelling does, waiting and running ones alike: writes the ids of at
 * most max of them and returns how many. Called before each step, nothing out of time is computed. */
int32_t scheduler_expire(struct scheduler *s, uint64_t now_ns, uint64_t *seq_ids, int32_t max);

/* Fills the plan (cleared first) and returns its number of rows; 0: nothing to do, or nothing until a plan is applied. Fewer than
 * max_steps plans may be waiting for that. */
int32_t scheduler_schedule(struct scheduler *s, struct step_plan *plan);

/*
 * For the last plan made, what is wanted of each row of logits, in the plan's order: rows [n_logits], row i's logits beginning at
 * element i * n_vocab, and the tokens they name, at most max_sample_tokens; returns how many tokens. Rows of a prompt come
 * before the one that draws.
 */
int32_t scheduler_sample_rows(const struct scheduler *s, const struct step_plan *plan,
                              struct sample_row *rows, struct sample_token *tokens);

/*
 * Takes in what the oldest plan not applied yet computed: results [plan->n_logits] in the plan's order, which the outputs borrow.
 * Writes an output for each sequence that is still there and got something, and returns how many. Finished sequences are
 * gone afterwards.
 */
int32_t scheduler_apply(struct scheduler *s, const struct step_plan *plan,
                        const struct sample_result *results, struct scheduler_output *outputs);

struct scheduler_load scheduler_load(const struct scheduler *s);

/* The invariant above; INTERNAL names the first violation. For tests and debug builds. */
MUST_USE status_t scheduler_check(const struct scheduler *s);

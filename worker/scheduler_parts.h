/*
 * scheduler_parts.h - what the scheduler's files share
 *
 * scheduler.c           the queue, the running sequences and the ring of plans
 * scheduler_step.c      which tokens the next step computes
 * scheduler_results.c   what is wanted of a step's logits, and what came of them
 * scheduler_check.c     the invariant
 * scheduler_deadline.c  what is out of time
 * scheduler_sequence.c  requests and the sequences made of them
 * scheduler_swap.c      blocks that wait in host memory, and the moves of blocks
 * scheduler_prefix.c    blocks that are found instead of computed
 * scheduler_beam.c      groups of sequences that are one beam search
 */
#pragma once

#include <stdbool.h>
#include <string.h>

#include "parallel/plan.h"
#include "worker/beam.h"
#include "worker/block_pool.h"
#include "worker/sample_list.h"
#include "worker/scheduler.h"

/*
 *     tokens   [ prompt ............ | completion ... | placeholders of pending ones ]
 *                n_scored     n_prompt         n_tokens
 *                ^ rows of the prompt whose logits have been asked for: row i says how likely token i + 1 was
 */
struct sequence {
    struct scheduler_request request; /* without its lists */
    int32_t *stop_ids;                /* [request.n_stop_ids] */
    struct sample_list list;
    uint64_t arrival;
    int32_t
        *tokens; /* [n_tokens + n_pending], room for prompt + completion; placeholders at the end */
    int32_t n_tokens;  /* that are known */
    int32_t n_pending; /* drawn in plans that are not applied */
    uint64_t drawn_in; /* the number of the last of them */
    int32_t n_prompt;
    int32_t n_computed; /* in plans made so far */
    int32_t
        n_scored;  /* likewise; n_prompt - 1 where no log probabilities of the prompt are wanted */
    int32_t n_now; /* tokens of the step being made */
    int32_t n_extra;    /* of their logits, those over one */
    int32_t lane, slot; /* while running */
    int32_t *blocks;
    int32_t n_blocks;
    uint64_t root;       /* of its salt: where its chain of blocks begins */
    uint64_t last;       /* serial of the last block published or found, or the root */
    int32_t n_published; /* blocks published or found, from the first on */
    int32_t n_cached;    /* tokens found when it was admitted first; -1: not admitted yet */
    /* Preempted, and its blocks are in host memory: blocks[n_left ..] are n_swapped slots, n_computed is what they hold. */
    int32_t n_left;    /* leading blocks that others held and that are to be found */
    int32_t n_swapped; /* 0: it is not */
    int32_t
        n_lost; /* tokens that were computed before it was preempted, and are not there any more */
    int32_t n_rows;           /* of the plans not applied that name it */
    bool gone;                /* finished or cancelled: it lives on until those are applied */
    struct beam_group *group; /* NULL: it is sampled */
    bool has_row; /* a beam that waits for the other ones: what follows its tokens is known */
};

/*
 * The sequences of a beam search. Those that stand for a beam are the first n_live, best first; the others are room for more. The
 * group waits or runs as one: members[0] stands for it in the queue, and while it runs all members have a slot. Beams
 * that are asleep are not among the running sequences yet: what they have in common with members[0] is being computed.
 */
struct beam_group {
    struct beam_search search;
    struct sequence *members[BEAM_MAX_WIDTH];  /* [search.params.width] */
    struct sample_result rows[BEAM_MAX_WIDTH]; /* [n_live], of those that have one */
    int32_t n_live, n_best, n_row_top;
    int32_t n_common; /* whole blocks that the live beams had in common when it last stopped */
    bool runs, asleep;
    bool is_lent; /* its search has been given out */
    struct beam_group *next_lent;
};

/* A sequence of a plan that is not applied. */
struct planned_seq {
    struct sequence *seq;
    int32_t position;     /* in the completion, of what is drawn */
    int32_t first_scored; /* row of the prompt */
    int32_t n_scored;     /* rows of the prompt, from that one on */
    bool draws;           /* the last row of logits */
    bool has_pending;     /* the token before it was not known */
};

struct planned_step {
    uint64_t step;
    struct planned_seq *seqs; /* [max_seqs], in the plan's order */
    int32_t n_seqs;
};

struct host_slots {
    int32_t *free_ids; /* [n_lanes][host_blocks_per_lane], stacks */
    int64_t *n_free;   /* [n_lanes] */
    /* Of the next plan: those of sequences preempted since the last one, then those of sequences that come back. */
    struct step_move *moves; /* [max_moves] */
    int32_t n_moves;
    uint64_t n_out, n_in; /* blocks */
};

struct scheduler {
    struct scheduler_config config;
    struct block_pool pool;
    struct host_slots slots;
    struct sequence **running; /* [max_seqs], in order of admission */
    int32_t n_running;
    struct sequence **waiting; /* [max_waiting + max_seqs], by (priority, arrival) */
    int32_t n_waiting;
    int32_t *free_slots; /* [max_seqs], the next one last */
    int32_t n_free_slots;
    int64_t n_listed;             /* tokens whose logits the running sequences may change */
    struct planned_step *planned; /* [max_steps]: a ring of the plans not applied */
    int32_t n_planned, next_planned;
    uint64_t n_prefix_queries, n_prefix_hits; /* tokens */
    uint64_t n_arrivals;
    uint64_t n_preemptions;
    uint64_t n_recomputed; /* tokens */
    uint64_t n_steps;
    int32_t n_beam_slots;    /* of slots, those of groups that run */
    struct beam_group *lent; /* over, and freed by the next call: outputs borrow from them */
};

/* KV blocks that hold so many tokens. */
static inline int32_t blocks_for(int32_t n_tokens)
{
    return (int32_t)plan_blocks_for(n_tokens);
}

/* Whether a row of the sequence has no distribution. */
static inline bool has_nan(const struct planned_seq *planned, const struct sample_result *results)
{
    bool found = false;
    for (int32_t i = 0; i < planned->n_scored + (planned->draws ? 1 : 0); i++) {
        found = found || results[i].nan;
    }
    return found;
}

/* A sequence that had been preempted runs again: what it has lost and does not find is computed once more. */
static inline void scheduler_count_recomputed(struct scheduler *s, struct sequence *seq)
{
    s->n_recomputed +=
        seq->n_lost > seq->n_computed ? (uint64_t)(seq->n_lost - seq->n_computed) : 0;
    seq->n_lost = 0;
}

/* Known and pending ones. */
static inline int32_t n_all_tokens(const struct sequence *seq)
{
    return seq->n_tokens + seq->n_pending;
}

/* Where the sequence stands in the list; -1: it does not. */
static inline int32_t sequence_list_find(struct sequence *const *list, int32_t n,
                                         const struct sequence *seq)
{
    for (int32_t i = 0; i < n; i++) {
        if (list[i] == seq) {
            return i;
        }
    }
    return -1;
}

static inline void sequence_list_remove(struct sequence **list, int32_t *n, int32_t at)
{
    memmove(&list[at], &list[at + 1], (size_t)(*n - at - 1) * sizeof(struct sequence *));
    (*n)--;
}

/* By (priority, arrival). */
bool scheduler_before(const struct sequence *a, const struct sequence *b);

/* Keeps the queue ordered; a preempted sequence keeps its arrival and so stands before later ones. */
void scheduler_enqueue(struct scheduler *s, struct sequence *seq);

/* Takes a running sequence off the device: whoever gets its blocks and its slot next is computed after what it still has there. */
void scheduler_stop_running(struct scheduler *s, int32_t at);

/* Wherever it is; a sequence that plans still name is freed with the last of them. False when it is in neither list. */
bool scheduler_remove(struct scheduler *s, uint64_t seq_id);

struct planned_step *scheduler_oldest_planned(const struct scheduler *s);

/* The oldest plan holds its sequences no longer. */
void scheduler_drop_planned(struct scheduler *s);

/* Checks the request and copies it: INVALID_ARGUMENT with field, value and limit, RESOURCE_EXHAUSTED for memory. */
MUST_USE status_t scheduler_sequence_new(const struct scheduler_config *config,
                                         const struct scheduler_request *request,
                                         struct sequence **sequence_out);
void scheduler_sequence_free(struct sequence *sequence); /* accepts NULL */

/* Of the next n tokens to be computed, how many are rows of the prompt that are still to be scored: the last ones. */
int32_t scheduler_sequence_unscored(const struct sequence *seq, int32_t n);

/* What a lane holds of the beginning of a sequence: whole blocks, of which all tokens but the last may be. */
struct prefix_match {
    int32_t n_blocks;
    int32_t
        n_cached; /* of them, those nobody holds: holding them takes from the lane's free blocks */
};

struct prefix_match scheduler_prefix_match(const struct scheduler *s, const struct sequence *seq,
                                           int32_t lane);

/* Holds what seq->lane has of it and counts its tokens as computed. seq holds no blocks yet. */
void scheduler_prefix_attach(struct scheduler *s, struct sequence *seq);

/* Likewise of a sequence that shares its first blocks with another one. */
void scheduler_prefix_follow(struct scheduler *s, struct sequence *seq,
                             const struct sequence *other, int32_t n_blocks);

/* Publishes the blocks that are full when n_computed tokens are there. What computes them comes before whatever is planned from
 * now on, or is in the same step, in which all keys of a layer are stored before any is read. */
void scheduler_prefix_publish(struct scheduler *s, struct sequence *seq, int32_t n_computed);

/* It holds no blocks any more. */
void scheduler_prefix_forget(struct sequence *seq);

// ---- scheduler_swap.c ----

MUST_USE status_t scheduler_swap_init(struct scheduler *s);
void scheduler_swap_destroy(struct scheduler *s); /* accepts zeroed slots */

/* Blocks a running sequence that is preempted now would leave to the others that hold them: leading ones. */
int32_t scheduler_swap_shared(const struct scheduler *s, const struct sequence *seq);

/* Whether slots take what it has computed, n_left blocks aside, at less than it costs to compute that again. */
bool scheduler_swap_pays(const struct scheduler *s, const struct sequence *seq, int32_t n_left);

/* Its blocks, which it has just given back, go to slots before anybody else's rows are computed into them. */
void scheduler_swap_out(struct scheduler *s, struct sequence *seq, int32_t n_left);

/* Whether its lane has what it left there, and the next plan room for the moves. */
bool scheduler_swap_is_whole(const struct scheduler *s, const struct sequence *seq);

/* Takes blocks of its lane, which has room for all its tokens, and brings back what it does not find there. */
void scheduler_swap_in(struct scheduler *s, struct sequence *seq);

/* Gives up its slots, if it has any: it is to be computed again, or gone. */
void scheduler_swap_drop(struct scheduler *s, struct sequence *seq);

/* A copy of a block of the lane, in its turn among the other moves; and that it is not needed after all. */
void scheduler_swap_copy(struct scheduler *s, int32_t lane, int32_t from, int32_t to);
void scheduler_swap_forget_copy(struct scheduler *s, int32_t lane, int32_t to);

/* The moves into a plan. */
void scheduler_swap_emit(struct scheduler *s, struct step_plan *plan);

/* INTERNAL where slots leak or are held twice. */
MUST_USE status_t scheduler_swap_check(const struct scheduler *s);

// ---- scheduler_beam.c ----

/* Makes a group of the new sequence `lead`, which belongs to it from then on, also where this fails: INVALID_ARGUMENT with the
 * numbers for one that could never run. */
MUST_USE status_t scheduler_beam_new(const struct scheduler_config *config,
                                     const struct scheduler_request *request,
                                     struct sequence *lead);
void scheduler_beam_free(struct beam_group *group); /* accepts NULL */

/* Whether something of it is in plans that are not applied: rows, and with draws, tokens that it waits for. */
bool scheduler_beam_is_planned(const struct beam_group *group);
bool scheduler_beam_is_pending(const struct beam_group *group);

/* What a lane must have to take it in, if nothing of it is found there. */
int32_t scheduler_beam_blocks(const struct beam_group *group);

/* members[0] is admitted and has its lane: slots for all. */
void scheduler_beam_admit(struct scheduler *s, struct beam_group *group);

/* Beams that are asleep and whose common blocks are computed in plans made so far begin to run. */
void scheduler_beam_wake(struct scheduler *s);

/* Takes it off the device, and forgets what it has computed. It is in neither list then. */
void scheduler_beam_stop(struct scheduler *s, struct beam_group *group);

/* Takes in what a plan's rows of a beam gave, and makes the next beams with the last row that was missing. False: there is nothing
 * to tell. */
bool scheduler_beam_take(struct scheduler *s, const struct planned_seq *planned,
                         const struct sample_result *results, struct scheduler_output *output_out);

/* Nobody borrows any more from what has been given out. */
void scheduler_beam_forget_lent(struct scheduler *s);

/* Whether others read the block that the next token of the sequence is written to. */
bool scheduler_beam_shares_block(const struct scheduler *s, const struct sequence *seq);

/* It gets block `id` of its lane instead, a copy. */
void scheduler_beam_own_block(struct scheduler *s, struct sequence *seq, int32_t id);

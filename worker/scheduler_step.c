#include <assert.h>

#include "worker/scheduler_parts.h"

/* What a step has left. Each sequence may have one row of logits; `logits` are those beyond. */
struct budget {
    int32_t rows, logits;
};

/* True when all of it is drawn, known or not. */
static bool is_complete(const struct scheduler *s, const struct sequence *seq)
{
    const int32_t n = n_all_tokens(seq);
    return n - seq->n_prompt >= seq->request.max_tokens || n >= s->config.max_model_len;
}

/* All of it is drawn; or its last but one is not known, and then there is one to wait for: sampling can take account of one pending
 * token; or its pending token will not be on the first stage when this plan gets there. A beam waits for its group. */
static bool must_wait(const struct scheduler *s, const struct sequence *seq)
{
    if (seq->group != NULL) {
        return seq->n_pending > 0 || seq->has_row;
    }
    const uint64_t n_stages = (uint64_t)s->config.n_stages;
    const bool too_early = seq->n_pending > 0 && s->n_steps - seq->drawn_in < n_stages;
    return is_complete(s, seq) || seq->n_pending > 1 || too_early;
}

/* ---- lanes ---- */

static int32_t n_running_in_lane(const struct scheduler *s, int32_t lane)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        n += s->running[i]->lane == lane;
    }
    return n;
}

/* Computing a token takes much longer than reading one more in a lane than in another (7 G parameters on an A100: 45 us
 * against some ns a step), but lanes that are uneven also run full one before the other. */
#define COMPUTING_WEIGHT 8

/* Of the growth of a lane's sequences, what counts where a new one is placed: measured on lengths that are distributed
 * lognormally, 96 of them on 8 lanes are 1.13 times the mean on the fullest, 1.15 without, 1.18 when all growth counts. */
#define NEAR_TOKENS 64

/* Blocks that the lane's sequences will hold soon. */
static int64_t blocks_soon(const struct scheduler *s, int32_t lane)
{
    int64_t n_tokens = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct sequence *seq = s->running[i];
        const int32_t left = seq->n_prompt + seq->request.max_tokens - seq->n_tokens;
        if (seq->lane == lane) {
            n_tokens += seq->n_tokens + (left < NEAR_TOKENS ? left : NEAR_TOKENS);
        }
    }
    return plan_blocks_for(n_tokens);
}

/* What stands in the queue needs it at once. */
static int32_t blocks_wanted(const struct sequence *seq)
{
    return seq->group != NULL ? scheduler_beam_blocks(seq->group) : blocks_for(seq->n_tokens);
}

/* One block stays free for each sequence that runs there, else the newcomer is preempted as soon as they grow. */
static bool has_room(const struct scheduler *s, const struct sequence *seq, int32_t lane,
                     struct prefix_match match)
{
    const int64_t wanted = blocks_wanted(seq) - match.n_blocks + match.n_cached;
    return wanted + n_running_in_lane(s, lane) <= block_pool_free_count(&s->pool, lane);
}

/*
 * The lane in which the sequence costs least: blocks that its sequences will hold soon, and those that must be computed. A prefix
 * draws sequences to its lane until another is emptier by COMPUTING_WEIGHT times what the prefix saves; then it comes to be there
 * too. -1: no lane has room.
 */
static int32_t choose_lane(const struct scheduler *s, const struct sequence *seq)
{
    int32_t best = -1;
    int64_t least = INT64_MAX;
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        const struct prefix_match match = scheduler_prefix_match(s, seq, lane);
        const int64_t to_compute = blocks_for(seq->n_tokens) - match.n_blocks;
        const int64_t cost = blocks_soon(s, lane) + COMPUTING_WEIGHT * to_compute;
        if (has_room(s, seq, lane, match) && cost < least) {
            best = lane;
            least = cost;
        }
    }
    return best;
}

/* ---- preemption ---- */

/* Where a lane has room it comes back at once, and what is worth keeping is still there to be found: no use in swapping. */
static void preempt(struct scheduler *s, int32_t at)
{
    struct sequence *seq = s->running[at];
    if (seq->group != NULL) {
        scheduler_beam_stop(s, seq->group);
        s->n_preemptions++;
        scheduler_enqueue(s, seq->group->members[0]);
        return;
    }
    const int32_t n_left = scheduler_swap_shared(s, seq);
    scheduler_stop_running(s, at);
    seq->n_now = seq->n_extra = 0;
    s->n_preemptions++;
    if (scheduler_swap_pays(s, seq, n_left) && choose_lane(s, seq) < 0) {
        scheduler_swap_out(s, seq, n_left);
    } else {
        seq->n_lost = seq->n_computed;
        seq->n_computed = 0;
    }
    scheduler_enqueue(s, seq);
}

/* ---- what the requests change ---- */

/* Tokens that a list may still take before its sequence has to make room for others; enough not to be admitted in vain. */
#define LIST_GROWTH 64

static int32_t list_with_growth(const struct sample_list *list)
{
    return list->max < list->n + LIST_GROWTH ? list->max : list->n + LIST_GROWTH;
}

/* Whether the lists of the running sequences leave room for its own. */
static bool list_fits(const struct scheduler *s, const struct sequence *seq)
{
    const int32_t n_own = seq->group != NULL ? seq->group->search.params.width : 1;
    int64_t n = (int64_t)n_own * list_with_growth(&seq->list);
    for (int32_t i = 0; i < s->n_running; i++) {
        n += list_with_growth(&s->running[i]->list);
    }
    return s->n_running == 0 || n <= s->config.max_sample_tokens;
}

/* Of running sequences. */
static int64_t n_listed(const struct scheduler *s)
{
    int64_t n = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        n += s->running[i]->list.n;
    }
    return n;
}

/* Lists grow token by token: as with blocks, the last sequences make room for those before. One alone always fits. */
static void make_room_for_lists(struct scheduler *s)
{
    while (n_listed(s) > s->config.max_sample_tokens) {
        int32_t last = 0;
        for (int32_t i = 1; i < s->n_running; i++) {
            last = scheduler_before(s->running[last], s->running[i]) ? i : last;
        }
        preempt(s, last);
    }
}

/* ---- blocks ---- */

/* The running sequence of the lane that stands last by (priority, arrival). The one that asks is in that lane, so
 * there is one. */
static int32_t last_in_lane(const struct scheduler *s, int32_t lane)
{
    int32_t last = -1;
    for (int32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->lane == lane &&
            (last < 0 || scheduler_before(s->running[last], s->running[i]))) {
            last = i;
        }
    }
    return last;
}

/* Preempts the last sequence of the lane, a beam with its group. *budget gets back what was planned for it. */
static void preempt_last(struct scheduler *s, int32_t lane, struct budget *budget)
{
    const int32_t victim = last_in_lane(s, lane);
    const struct sequence *last = s->running[victim];
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct sequence *seq = s->running[i];
        if (seq == last || (seq->group != NULL && seq->group == last->group)) {
            budget->rows += seq->n_now;
            budget->logits += seq->n_extra;
        }
    }
    preempt(s, victim);
}

/*
 * Gives seq the blocks for n more tokens, preempting the last sequences of its lane while that is needed. Returns
 * false when seq itself was the last and is preempted. *budget gets back what preempted sequences had planned.
 */
static bool reserve(struct scheduler *s, struct sequence *seq, int32_t n, struct budget *budget)
{
    const int32_t wanted = blocks_for(seq->n_computed + n);
    for (;;) {
        const bool shares = scheduler_beam_shares_block(s, seq);
        if (!shares && seq->n_blocks >= wanted) {
            return true;
        }
        const int32_t at = shares ? seq->n_computed / PLAN_BLOCK_TOKENS : seq->n_blocks;
        const int32_t id = block_pool_take_near(&s->pool, seq->lane, at);
        if (id < 0) {
            preempt_last(s, seq->lane, budget);
            if (sequence_list_find(s->running, s->n_running, seq) < 0) {
                return false;
            }
        } else if (shares) {
            scheduler_beam_own_block(s, seq, id);
        } else {
            seq->blocks[seq->n_blocks++] = id;
        }
    }
}

enum pass { PASS_DECODE, PASS_PREFILL };

/* How many of its missing tokens the sequence can compute now; at least one. */
static int32_t affordable(const struct sequence *seq, const struct budget *budget)
{
    const int32_t missing = n_all_tokens(seq) - seq->n_computed;
    const int32_t n = missing < budget->rows ? missing : budget->rows;
    const int32_t n_logits = scheduler_sequence_unscored(seq, n) + (n == missing ? 1 : 0);
    const int32_t over = n_logits - 1 - budget->logits;
    return over > 0 ? n - over : n; // the last rows of n are those with logits
}

static void spend(struct sequence *seq, int32_t n, struct budget *budget)
{
    const bool draws = seq->n_computed + n == n_all_tokens(seq);
    const int32_t n_logits = scheduler_sequence_unscored(seq, n) + (draws ? 1 : 0);
    seq->n_now = n;
    seq->n_extra = n_logits > 1 ? n_logits - 1 : 0;
    budget->rows -= n;
    budget->logits -= seq->n_extra;
}

/* A plan's share of n things that as many plans as there are stages have to do. */
static int32_t share_of_stages(const struct scheduler *s, int32_t n)
{
    return (n + s->config.n_stages - 1) / s->config.n_stages;
}

/* Sequences that a plan may decode. */
static int32_t decode_share(const struct scheduler *s)
{
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct sequence *seq = s->running[i];
        n += n_all_tokens(seq) - seq->n_computed == 1 && !is_complete(s, seq);
    }
    return share_of_stages(s, n);
}

static void schedule_running(struct scheduler *s, enum pass pass, struct budget *budget)
{
    int32_t n_left = pass == PASS_DECODE ? decode_share(s) : s->n_running;
    for (int32_t i = 0; i < s->n_running && budget->rows > 0 && n_left > 0;) {
        struct sequence *seq = s->running[i];
        const int32_t missing = n_all_tokens(seq) - seq->n_computed;
        if (seq->n_now > 0 || (missing == 1) != (pass == PASS_DECODE) || must_wait(s, seq)) {
            i++;
            continue;
        }
        const int32_t n = affordable(seq, budget);
        const uint64_t preempted_before = s->n_preemptions;
        if (reserve(s, seq, n, budget)) {
            spend(seq, n, budget);
            n_left--;
        }
        i = s->n_preemptions == preempted_before ? i + 1 : 0; // a preemption has moved the others
    }
}

/* Gives the sequence a lane and what it finds there, or has kept in host memory; false: no lane has room. */
static bool attach_lane(struct scheduler *s, struct sequence *seq)
{
    if (scheduler_swap_is_whole(s, seq) &&
        has_room(s, seq, seq->lane, scheduler_prefix_match(s, seq, seq->lane))) {
        scheduler_swap_in(s, seq);
        return true;
    }
    const int32_t lane = choose_lane(s, seq);
    if (lane < 0) {
        return false;
    }
    scheduler_swap_drop(s, seq);
    seq->lane = lane;
    scheduler_prefix_attach(s, seq);
    scheduler_count_recomputed(s, seq);
    return true;
}

/* All that is drawn for it is known, and there are slots. */
static bool is_ready(const struct scheduler *s, const struct sequence *seq)
{
    const struct beam_group *group = seq->group;
    return group != NULL
               ? !scheduler_beam_is_pending(group) && s->n_free_slots >= group->search.params.width
               : seq->n_pending == 0 && s->n_free_slots > 0;
}

static void admit_waiting(struct scheduler *s, struct budget *budget)
{
    while (s->n_waiting > 0 && budget->rows > 0) {
        struct sequence *seq = s->waiting[0];
        if (!is_ready(s, seq) || !list_fits(s, seq) || !attach_lane(s, seq)) {
            return; // first come, first served: nothing overtakes the head of the queue
        }
        sequence_list_remove(s->waiting, &s->n_waiting, 0);
        if (seq->group != NULL) {
            scheduler_beam_admit(s, seq->group);
        } else {
            seq->slot = s->free_slots[--s->n_free_slots];
        }
        s->running[s->n_running++] = seq;
        const int32_t n = affordable(seq, budget);
        const bool reserved = reserve(s, seq, n, budget);
        assert(reserved); // the lane had the blocks of all its tokens
        (void)reserved;
        spend(seq, n, budget);
        scheduler_prefix_publish(s, seq, seq->n_computed + n); // nothing is preempted from here on
    }
}

/* The sequence's part of the plan: from now on its tokens count as computed, and what it draws is pending. */
static void emit_sequence(struct scheduler *s, struct sequence *seq, struct step_plan *plan,
                          struct planned_step *to)
{
    const struct planned_seq planned = {
        .seq = seq,
        .position = n_all_tokens(seq) - seq->n_prompt,
        .first_scored = seq->n_scored,
        .n_scored = scheduler_sequence_unscored(seq, seq->n_now),
        .draws = seq->n_computed + seq->n_now == n_all_tokens(seq),
        .has_pending = seq->n_pending > 0,
    };
    const struct step_seq row = {
        .seq_id = seq->request.seq_id,
        .lane = seq->lane,
        .slot = seq->slot,
        .n_computed = seq->n_computed,
        .n_tokens = seq->n_now,
        .n_blocks = blocks_for(seq->n_computed + seq->n_now),
        .n_logits = planned.n_scored + (planned.draws ? 1 : 0),
    };
    const status_t added = step_plan_add(plan, &row, seq->tokens + seq->n_computed, seq->blocks);
    assert(added.code == STATUS_OK); // the plan was made with this scheduler's limits
    (void)added;
    to->seqs[to->n_seqs++] = planned;
    seq->n_rows++;
    seq->n_computed += seq->n_now;
    seq->n_scored += planned.n_scored;
    seq->n_now = seq->n_extra = 0;
    scheduler_prefix_publish(s, seq, seq->n_computed);
    if (planned.draws) {
        seq->drawn_in = to->step;
        seq->tokens[n_all_tokens(seq)] = step_placeholder(seq->slot);
        seq->n_pending++;
    }
}

/* Writes the planned sequences lane by lane, so that every lane's rows are contiguous. */
static int32_t emit(struct scheduler *s, struct step_plan *plan)
{
    struct planned_step *to = &s->planned[s->next_planned];
    *to = (struct planned_step){.step = s->n_steps, .seqs = to->seqs};
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        for (int32_t i = 0; i < s->n_running; i++) {
            struct sequence *seq = s->running[i];
            if (seq->lane == lane && seq->n_now > 0) {
                emit_sequence(s, seq, plan, to);
            }
        }
    }
    if (to->n_seqs > 0) {
        scheduler_swap_emit(s, plan);
        plan->step = s->n_steps++;
        s->next_planned = (s->next_planned + 1) % s->config.max_steps;
        s->n_planned++;
    }
    return plan->n_rows;
}

int32_t scheduler_schedule(struct scheduler *s, struct step_plan *plan)
{
    step_plan_clear(plan);
    assert(s->n_planned < s->config.max_steps);
    struct budget budget = {.rows = share_of_stages(s, s->config.max_rows),
                            .logits = s->config.max_logits - s->config.max_seqs};
    const uint64_t preempted_before = s->n_preemptions;
    scheduler_beam_forget_lent(s);
    scheduler_beam_wake(s);
    make_room_for_lists(s);
    schedule_running(s, PASS_DECODE, &budget);
    schedule_running(s, PASS_PREFILL, &budget);
    if (s->n_preemptions ==
        preempted_before) { // else what was just freed would be taken right back
        admit_waiting(s, &budget);
    }
    return emit(s, plan);
}

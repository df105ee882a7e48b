#include <assert.h>
#include <stdlib.h>

#include "worker/scheduler_parts.h"

// ---- slots ----

status_t scheduler_swap_init(struct scheduler *s)
{
    struct host_slots *slots = &s->slots;
    const size_t n_lanes = (size_t)s->config.n_lanes;
    const int64_t n = s->config.host_blocks_per_lane;
    const size_t n_moves = s->config.max_moves > 0 ? (size_t)s->config.max_moves : 1;
    if (n < 0 || n > INT32_MAX) {
        return status_errorf(STATUS_INTERNAL, "scheduler: %lld slots a lane", (long long)n);
    }
    slots->n_free = calloc(n_lanes, sizeof *slots->n_free);
    slots->moves = calloc(n_moves, sizeof *slots->moves);
    slots->free_ids = calloc(n > 0 ? n_lanes * (size_t)n : 1, sizeof *slots->free_ids);
    if (slots->n_free == NULL || slots->moves == NULL || slots->free_ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "scheduler: no memory for %lld slots",
                             (long long)n);
    }
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        for (int64_t i = 0; i < n; i++) {
            slots->free_ids[lane * n + i] = (int32_t)(n - 1 - i); // the top of the stack is 0
        }
        slots->n_free[lane] = n;
    }
    return status_ok();
}

void scheduler_swap_destroy(struct scheduler *s)
{
    free(s->slots.free_ids);
    free(s->slots.n_free);
    free(s->slots.moves);
    s->slots = (struct host_slots){0};
}

static int32_t take_slot(struct scheduler *s, int32_t lane)
{
    struct host_slots *slots = &s->slots;
    assert(slots->n_free[lane] > 0);
    return slots->free_ids[lane * s->config.host_blocks_per_lane + --slots->n_free[lane]];
}

static void give_slot(struct scheduler *s, int32_t lane, int32_t slot)
{
    struct host_slots *slots = &s->slots;
    slots->free_ids[lane * s->config.host_blocks_per_lane + slots->n_free[lane]++] = slot;
}

/* Moves that the next plan may still take, beside a copy for each beam. */
static int32_t room_for_moves(const struct scheduler *s)
{
    return s->config.max_moves - s->slots.n_moves - s->n_beam_slots;
}

static void add_move(struct scheduler *s, struct step_move move)
{
    assert(s->slots.n_moves < s->config.max_moves);
    s->slots.moves[s->slots.n_moves++] = move;
}

// ---- out ----

int32_t scheduler_swap_shared(const struct scheduler *s, const struct sequence *seq)
{
    int32_t n = 0;
    if (!s->config.prefix_caching || seq->request.computes_all) {
        return 0; // nothing would be found again
    }
    while (n < seq->n_published && block_pool_holders(&s->pool, seq->lane, seq->blocks[n]) > 1) {
        n++;
    }
    return n;
}

bool scheduler_swap_pays(const struct scheduler *s, const struct sequence *seq, int32_t n_left)
{
    const int32_t n_blocks = blocks_for(seq->n_computed) - n_left;
    const int32_t n_tokens = seq->n_computed - n_left * PLAN_BLOCK_TOKENS;
    const double swap_s = n_blocks * s->config.swap_block_s;
    return n_blocks > 0 && n_blocks <= s->slots.n_free[seq->lane] &&
           n_blocks <= room_for_moves(s) && swap_s < n_tokens * s->config.recompute_token_s;
}

void scheduler_swap_out(struct scheduler *s, struct sequence *seq, int32_t n_left)
{
    const int32_t n_blocks = blocks_for(seq->n_computed);
    seq->n_left = n_left;
    seq->n_swapped = n_blocks - n_left;
    for (int32_t i = n_left; i < n_blocks; i++) {
        const int32_t slot = take_slot(s, seq->lane);
        add_move(s,
                 (struct step_move){
                     .kind = STEP_MOVE_OUT, .lane = seq->lane, .from = seq->blocks[i], .to = slot});
        seq->blocks[i] = slot;
    }
}

/* What a slot or a block was to be given by the next plan is not needed any more. */
static void forget_move_to(struct scheduler *s, int32_t kind, int32_t lane, int32_t to)
{
    struct host_slots *slots = &s->slots;
    for (int32_t i = 0; i < slots->n_moves; i++) {
        const struct step_move *move = &slots->moves[i];
        if (move->kind == kind && move->lane == lane && move->to == to) {
            memmove(&slots->moves[i], &slots->moves[i + 1],
                    (size_t)(slots->n_moves - i - 1) * sizeof *slots->moves);
            slots->n_moves--;
            return;
        }
    }
}

static void give_up_slot(struct scheduler *s, int32_t lane, int32_t slot)
{
    forget_move_to(s, STEP_MOVE_OUT, lane, slot);
    give_slot(s, lane, slot);
}

// ---- in ----

bool scheduler_swap_is_whole(const struct scheduler *s, const struct sequence *seq)
{
    return seq->n_swapped > 0 && seq->n_swapped <= room_for_moves(s) &&
           scheduler_prefix_match(s, seq, seq->lane).n_blocks >= seq->n_left;
}

void scheduler_swap_in(struct scheduler *s, struct sequence *seq)
{
    const int32_t n_computed = seq->n_computed;
    const int32_t end = seq->n_left + seq->n_swapped;
    const int32_t n_found = scheduler_prefix_match(s, seq, seq->lane).n_blocks;
    for (int32_t i = seq->n_left; i < n_found && i < end; i++) {
        give_up_slot(s, seq->lane, seq->blocks[i]); // the lane still has it
    }
    scheduler_prefix_attach(s, seq);
    for (int32_t i = n_found; i < end; i++) {
        const int32_t slot = seq->blocks[i];
        seq->blocks[i] = block_pool_take(&s->pool, seq->lane);
        assert(seq->blocks[i] >= 0 && seq->n_blocks == i);
        seq->n_blocks++;
        add_move(s,
                 (struct step_move){
                     .kind = STEP_MOVE_IN, .lane = seq->lane, .from = slot, .to = seq->blocks[i]});
        give_slot(s, seq->lane, slot); // what goes there next comes behind this move
    }
    seq->n_computed = seq->n_computed > n_computed ? seq->n_computed : n_computed;
    seq->n_left = seq->n_swapped = 0;
}

// ---- neither ----

void scheduler_swap_drop(struct scheduler *s, struct sequence *seq)
{
    if (seq->n_swapped == 0) {
        return;
    }
    for (int32_t i = 0; i < seq->n_swapped; i++) {
        give_up_slot(s, seq->lane, seq->blocks[seq->n_left + i]);
    }
    seq->n_lost = seq->n_computed;
    seq->n_computed = 0;
    seq->n_left = seq->n_swapped = 0;
}

void scheduler_swap_copy(struct scheduler *s, int32_t lane, int32_t from, int32_t to)
{
    add_move(s, (struct step_move){.kind = STEP_MOVE_COPY, .lane = lane, .from = from, .to = to});
}

void scheduler_swap_forget_copy(struct scheduler *s, int32_t lane, int32_t to)
{
    forget_move_to(s, STEP_MOVE_COPY, lane, to);
}

void scheduler_swap_emit(struct scheduler *s, struct step_plan *plan)
{
    struct host_slots *slots = &s->slots;
    for (int32_t i = 0; i < slots->n_moves; i++) {
        const status_t added = step_plan_add_move(plan, &slots->moves[i]);
        assert(added.code == STATUS_OK); // the plan was made with this scheduler's limits
        (void)added;
        slots->n_out += slots->moves[i].kind == STEP_MOVE_OUT;
        slots->n_in += slots->moves[i].kind == STEP_MOVE_IN;
    }
    slots->n_moves = 0;
}

// ---- the invariant ----

/* Counts a slot of the lane that is held, or free. */
static status_t count_slot(const struct scheduler *s, int32_t lane, int32_t slot, uint8_t *n_uses)
{
    const int64_t n = s->config.host_blocks_per_lane;
    if (slot < 0 || slot >= n || n_uses[lane * n + slot]++ > 0) {
        return status_errorf(STATUS_INTERNAL, "lane %d: slot %d of %lld is %s", lane, slot,
                             (long long)n, slot < 0 || slot >= n ? "none" : "held or free twice");
    }
    return status_ok();
}

static status_t count_slots(const struct scheduler *s, uint8_t *n_uses)
{
    const int64_t n = s->config.host_blocks_per_lane;
    int64_t n_counted = 0;
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        for (int64_t i = 0; i < s->slots.n_free[lane]; i++) {
            TRY(count_slot(s, lane, s->slots.free_ids[lane * n + i], n_uses));
        }
        n_counted += s->slots.n_free[lane];
    }
    for (int32_t i = 0; i < s->n_waiting; i++) {
        const struct sequence *seq = s->waiting[i];
        for (int32_t b = 0; b < seq->n_swapped; b++) {
            TRY(count_slot(s, seq->lane, seq->blocks[seq->n_left + b], n_uses));
        }
        n_counted += seq->n_swapped;
    }
    return n_counted == n * s->config.n_lanes
               ? status_ok()
               : status_errorf(STATUS_INTERNAL, "%lld slots are held or free, of %lld in %d lanes",
                               (long long)n_counted, (long long)n, s->config.n_lanes);
}

/* Whether any slot is held, as far as counts say. */
static bool is_used(const struct scheduler *s)
{
    bool used = false;
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        used = used || s->slots.n_free[lane] != s->config.host_blocks_per_lane;
    }
    for (int32_t i = 0; i < s->n_waiting; i++) {
        used = used || s->waiting[i]->n_swapped != 0;
    }
    return used;
}

status_t scheduler_swap_check(const struct scheduler *s)
{
    const size_t n = (size_t)(s->config.host_blocks_per_lane * s->config.n_lanes);
    if (!is_used(s)) {
        return status_ok(); // most of the time
    }
    uint8_t *n_uses = calloc(n > 0 ? n : 1, sizeof *n_uses);
    if (n_uses == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "scheduler check: out of memory");
    }
    const status_t status = count_slots(s, n_uses);
    free(n_uses);
    return status;
}

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "worker/scheduler_parts.h"

// ---- life ----

/* Blocks of n_beams sequences of n_tokens that have the first n_common blocks in common. */
static int64_t blocks_of(int32_t n_beams, int32_t n_tokens, int32_t n_common)
{
    return n_common + (int64_t)n_beams * (blocks_for(n_tokens) - n_common);
}

static status_t check_request(const struct scheduler_config *config,
                              const struct scheduler_request *r)
{
    if (r->beam_width > config->max_seqs) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "beam_width: %d, %d sequences run at once" STATUS_FIX
                             "lower it, or raise --max-num-seqs",
                             r->beam_width, config->max_seqs);
    }
    if (r->beam_width > config->max_moves) {
        return status_errorf(STATUS_INTERNAL, "beam_width: %d, a step moves %d blocks at most",
                             r->beam_width, config->max_moves);
    }
    if (r->n_best < 1 || r->n_best > r->beam_width || r->n_generated > 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "n: %d answers of %d beams, behind %d generated tokens", r->n_best,
                             r->beam_width, r->n_generated);
    }
    const int64_t wanted =
        blocks_of(r->beam_width, r->n_tokens + r->max_tokens, r->n_tokens / PLAN_BLOCK_TOKENS);
    if (wanted > config->blocks_per_lane) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "beam_width: %d beams of %d + %d tokens may need %lld KV blocks, a "
                             "lane has %lld" STATUS_FIX "lower beam_width or max_tokens",
                             r->beam_width, r->n_tokens, r->max_tokens, (long long)wanted,
                             (long long)config->blocks_per_lane);
    }
    return status_ok();
}

static status_t make_members(const struct scheduler_config *config,
                             const struct scheduler_request *request, struct beam_group *group)
{
    const int32_t width = request->beam_width;
    for (int32_t i = 1; i < width; i++) {
        TRY(scheduler_sequence_new(config, request, &group->members[i]));
        group->members[i]->group = group;
    }
    const int64_t listed = (int64_t)width * group->members[0]->list.max;
    if (listed > config->max_sample_tokens) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "beam_width: %d beams may change the logits of %lld tokens, a step "
                             "of %d at most" STATUS_FIX
                             "lower beam_width or max_tokens, or do without penalties",
                             width, (long long)listed, config->max_sample_tokens);
    }
    return status_ok();
}

static status_t fill(const struct scheduler_config *config, const struct scheduler_request *request,
                     struct beam_group *group)
{
    const struct sequence *lead = group->members[0];
    const struct beam_params params = {
        .width = request->beam_width,
        .max_tokens = request->max_tokens,
        .length_penalty = request->length_penalty,
        .early_stopping = request->early_stopping,
        .n_vocab = config->n_vocab,
        .stop_ids = lead->stop_ids,
        .n_stop_ids = request->n_stop_ids,
        .n_top = lead->request.n_top > 0 ? lead->request.n_top : 0,
    };
    TRY(check_request(config, request));
    TRY(beam_search_init(&group->search, &params));
    const int32_t n_candidates = beam_candidates(&params);
    group->n_row_top = n_candidates > params.n_top ? n_candidates : params.n_top;
    group->n_best = request->n_best;
    group->n_live = 1;
    group->n_common = lead->n_tokens / PLAN_BLOCK_TOKENS;
    return make_members(config, request, group);
}

status_t scheduler_beam_new(const struct scheduler_config *config,
                            const struct scheduler_request *request, struct sequence *lead)
{
    struct beam_group *group = calloc(1, sizeof *group);
    if (group == NULL) {
        scheduler_sequence_free(lead);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a beam search");
    }
    group->members[0] = lead;
    lead->group = group;
    const status_t s = fill(config, request, group);
    if (!status_is_ok(&s)) {
        scheduler_beam_free(group);
    }
    return s;
}

void scheduler_beam_free(struct beam_group *group)
{
    if (group == NULL) {
        return;
    }
    beam_search_destroy(&group->search);
    for (int32_t i = 0; i < BEAM_MAX_WIDTH; i++) {
        scheduler_sequence_free(group->members[i]);
    }
    free(group);
}

static int32_t width_of(const struct beam_group *group)
{
    return group->search.params.width;
}

bool scheduler_beam_is_planned(const struct beam_group *group)
{
    int32_t n = 0;
    for (int32_t i = 0; i < width_of(group); i++) {
        n += group->members[i]->n_rows;
    }
    return n > 0;
}

bool scheduler_beam_is_pending(const struct beam_group *group)
{
    int32_t n = 0;
    for (int32_t i = 0; i < width_of(group); i++) {
        n += group->members[i]->n_pending;
    }
    return n > 0;
}

// ---- waiting and running ----

int32_t scheduler_beam_blocks(const struct beam_group *group)
{
    // With the token that comes next, for which some of them need a block.
    const int32_t n_tokens = group->members[0]->n_tokens + 1;
    return (int32_t)blocks_of(width_of(group), n_tokens, group->n_common);
}

/* Whole blocks that all live beams have in common; of a single one, all. */
static int32_t common_blocks(const struct beam_group *group)
{
    const struct sequence *lead = group->members[0];
    int32_t n = lead->n_tokens;
    for (int32_t i = 1; i < group->n_live; i++) {
        const int32_t *tokens = group->members[i]->tokens;
        int32_t same = 0;
        while (same < n && tokens[same] == lead->tokens[same]) {
            same++;
        }
        n = same;
    }
    return n / PLAN_BLOCK_TOKENS;
}

void scheduler_beam_admit(struct scheduler *s, struct beam_group *group)
{
    const int32_t width = width_of(group);
    assert(s->n_free_slots >= width && !group->runs);
    for (int32_t i = 0; i < width; i++) {
        struct sequence *seq = group->members[i];
        seq->lane = group->members[0]->lane;
        seq->slot = s->free_slots[--s->n_free_slots];
        seq->has_row = false; // the rows of the others are missing: all are computed again
    }
    s->n_beam_slots += width;
    group->runs = true;
    group->asleep = group->n_live > 1;
}

static void wake(struct scheduler *s, struct beam_group *group)
{
    for (int32_t i = 1; i < group->n_live; i++) {
        struct sequence *seq = group->members[i];
        scheduler_prefix_follow(s, seq, group->members[0], group->n_common);
        scheduler_count_recomputed(s, seq);
        s->running[s->n_running++] = seq;
    }
    group->asleep = false;
}

void scheduler_beam_wake(struct scheduler *s)
{
    for (int32_t i = 0; i < s->n_running; i++) {
        struct beam_group *group = s->running[i]->group;
        if (group != NULL && group->asleep &&
            group->members[0]->n_computed >= group->n_common * PLAN_BLOCK_TOKENS) {
            wake(s, group);
        }
    }
}

/* The sequence holds no blocks any more. */
static void give_blocks(struct scheduler *s, struct sequence *seq)
{
    const int32_t at = seq->n_computed / PLAN_BLOCK_TOKENS; // may have been made its own just now
    if (at < seq->n_blocks) {
        scheduler_swap_forget_copy(s, seq->lane, seq->blocks[at]);
    }
    while (seq->n_blocks > 0) {
        block_pool_give(&s->pool, seq->lane, seq->blocks[--seq->n_blocks]);
    }
    scheduler_prefix_forget(seq);
    seq->n_computed = 0;
}

void scheduler_beam_stop(struct scheduler *s, struct beam_group *group)
{
    const int32_t width = width_of(group);
    assert(group->runs);
    for (int32_t i = 0; i < width; i++) {
        struct sequence *seq = group->members[i];
        const int32_t at = sequence_list_find(s->running, s->n_running, seq);
        if (at >= 0) { // a beam that is asleep, or room for one, does not run
            sequence_list_remove(s->running, &s->n_running, at);
        }
        seq->n_lost = seq->n_computed;
        give_blocks(s, seq);
        seq->n_now = seq->n_extra = 0;
        s->free_slots[s->n_free_slots++] = seq->slot;
    }
    s->n_beam_slots -= width;
    group->runs = false;
    group->n_common = common_blocks(group);
}

// ---- blocks that are written to ----

bool scheduler_beam_shares_block(const struct scheduler *s, const struct sequence *seq)
{
    const int32_t at = seq->n_computed / PLAN_BLOCK_TOKENS;
    return seq->group != NULL && at < seq->n_blocks &&
           block_pool_holders(&s->pool, seq->lane, seq->blocks[at]) > 1;
}

void scheduler_beam_own_block(struct scheduler *s, struct sequence *seq, int32_t id)
{
    int32_t *block = &seq->blocks[seq->n_computed / PLAN_BLOCK_TOKENS];
    scheduler_swap_copy(s, seq->lane, *block, id);
    block_pool_give(&s->pool, seq->lane, *block);
    *block = id;
}

// ---- the next beams ----

/* Blocks of a beam that another one goes on with. Where a block's id says which rank has it none can be copied: one that is not full is
 * computed again. */
static int32_t shared_blocks(const struct scheduler *s, const struct sequence *from)
{
    const int32_t n_full = from->n_computed / PLAN_BLOCK_TOKENS;
    return s->config.stripe > 1 && n_full < from->n_blocks ? n_full : from->n_blocks;
}

/* `to` becomes what `from` is. */
static void copy_beam(struct scheduler *s, const struct sequence *from, struct sequence *to)
{
    const int32_t n_blocks = shared_blocks(s, from);
    memcpy(to->tokens, from->tokens, (size_t)from->n_tokens * sizeof *to->tokens);
    memcpy(to->blocks, from->blocks, (size_t)n_blocks * sizeof *to->blocks);
    sample_list_copy(&to->list, &from->list);
    to->arrival = from->arrival;
    to->n_tokens = from->n_tokens;
    to->n_computed = n_blocks < from->n_blocks ? n_blocks * PLAN_BLOCK_TOKENS : from->n_computed;
    to->n_scored = from->n_scored;
    to->n_blocks = n_blocks;
    to->root = from->root;
    to->last = from->last;
    to->n_published = from->n_published;
    to->n_cached = from->n_cached;
    to->n_lost = from->n_lost;
    for (int32_t i = 0; i < to->n_blocks; i++) {
        block_pool_share(&s->pool, to->lane, to->blocks[i]);
    }
}

/* The first beam that goes on from one does so in its place. The others go on in places of beams that end, or of none. */
static void make_beams(struct scheduler *s, struct beam_group *group, const struct beam_next *next,
                       int32_t n)
{
    struct sequence *old[BEAM_MAX_WIDTH], *made[BEAM_MAX_WIDTH] = {NULL};
    struct sequence *idle[BEAM_MAX_WIDTH] = {NULL};
    int32_t n_idle = 0;
    memcpy(old, group->members, sizeof old);
    for (int32_t i = 0; i < n; i++) {
        struct sequence **parent = &group->members[next[i].parent];
        made[i] = *parent;
        *parent = NULL; // taken
    }
    const int32_t n_live = group->n_live;
    for (int32_t i = width_of(group) - 1; i >= 0; i--) { // the last one is used first
        if (group->members[i] != NULL) {
            idle[n_idle++] = group->members[i];
            give_blocks(s, group->members[i]);
        }
    }
    for (int32_t i = 0; i < n; i++) {
        if (made[i] == NULL) {
            assert(n_idle > 0); // there are as many sequences as beams
            made[i] = idle[--n_idle];
            copy_beam(s, old[next[i].parent], made[i]);
        }
    }
    for (int32_t i = 0; i < n_idle; i++) {
        made[n + i] = idle[i];
    }
    memcpy(group->members, made, sizeof made);
    group->n_live = n;
    for (int32_t i = 0; i < n_live; i++) {
        old[i]->has_row = false;
    }
    for (int32_t i = 0; i < n; i++) {
        made[i]->tokens[made[i]->n_tokens++] = next[i].id;
        sample_list_add(&made[i]->list, next[i].id);
    }
}

/* The beams that there are now, in the place of those that were. */
static void list_running(struct scheduler *s, const struct beam_group *group)
{
    int32_t at = -1;
    int32_t n = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        if (s->running[i]->group != group) {
            s->running[n++] = s->running[i];
        } else if (at < 0) {
            at = n;
        }
    }
    memmove(&s->running[at + group->n_live], &s->running[at],
            (size_t)(n - at) * sizeof(struct sequence *));
    memcpy(&s->running[at], group->members, (size_t)group->n_live * sizeof(struct sequence *));
    s->n_running = n + group->n_live;
}

static void list_waiting(struct scheduler *s, struct beam_group *group)
{
    for (int32_t i = 0; i < s->n_waiting; i++) {
        if (s->waiting[i]->group == group) {
            s->waiting[i] = group->members[0];
        }
    }
    group->n_common = common_blocks(group);
}

static bool all_rows_are_here(const struct beam_group *group)
{
    for (int32_t i = 0; i < group->n_live; i++) {
        if (!group->members[i]->has_row) {
            return false;
        }
    }
    return true;
}

/* Over: its search is given out, and it is freed when nobody borrows from it any more. */
static void lend(struct scheduler *s, struct beam_group *group)
{
    group->is_lent = true;
    group->next_lent = s->lent;
    s->lent = group;
    (void)scheduler_remove(s, group->members[0]->request.seq_id);
}

void scheduler_beam_forget_lent(struct scheduler *s)
{
    while (s->lent != NULL) {
        struct beam_group *group = s->lent;
        s->lent = group->next_lent;
        group->is_lent = false;
        if (!scheduler_beam_is_planned(group)) {
            scheduler_beam_free(group);
        }
    }
}

/* All beams have their row. True when the search is over. */
static bool go_on(struct scheduler *s, struct beam_group *group)
{
    struct beam_next next[BEAM_MAX_WIDTH];
    const int32_t n = beam_search_step(&group->search, group->rows, next);
    if (n == 0) {
        lend(s, group);
        return true;
    }
    make_beams(s, group, next, n);
    if (group->runs) {
        list_running(s, group);
    } else {
        list_waiting(s, group);
    }
    return false;
}

bool scheduler_beam_take(struct scheduler *s, const struct planned_seq *planned,
                         const struct sample_result *results, struct scheduler_output *output_out)
{
    struct sequence *seq = planned->seq;
    struct beam_group *group = seq->group;
    struct scheduler_output out = {
        .seq_id = seq->request.seq_id,
        .n_top = seq->request.n_top,
        .n_cached = seq->n_cached,
        .finish = SCHEDULER_GOES_ON,
        .scored = results,
        .n_scored = planned->n_scored,
        .first_scored = planned->first_scored + 1,
        .n_prompt_top = seq->request.n_prompt_top,
        .n_best = group->n_best,
    };
    seq->n_pending -= planned->draws ? 1 : 0;
    if (has_nan(planned, results)) {
        out.finish = SCHEDULER_ERROR;
        out.n_scored = 0;
        (void)scheduler_remove(s, seq->request.seq_id);
    } else if (planned->draws) {
        group->rows[sequence_list_find(group->members, group->n_live, seq)] =
            results[planned->n_scored];
        seq->has_row = true;
        if (all_rows_are_here(group) && go_on(s, group)) {
            out.finish = SCHEDULER_STOP;
            out.beams = &group->search;
        }
    }
    *output_out = out;
    return out.finish != SCHEDULER_GOES_ON || out.n_scored > 0;
}

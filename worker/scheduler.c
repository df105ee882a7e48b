#include "worker/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "worker/scheduler_parts.h"

static status_t allocate(struct scheduler *s)
{
    const size_t n_seqs = (size_t)s->config.max_seqs;
    const size_t n_steps = (size_t)s->config.max_steps;
    s->running = calloc(n_seqs, sizeof(struct sequence *));
    s->waiting = calloc(n_seqs + (size_t)s->config.max_waiting, sizeof(struct sequence *));
    s->free_slots = calloc(n_seqs, sizeof *s->free_slots);
    s->planned = calloc(n_steps, sizeof *s->planned);
    bool allocated =
        s->running != NULL && s->waiting != NULL && s->free_slots != NULL && s->planned != NULL;
    for (size_t i = 0; allocated && i < n_steps; i++) {
        s->planned[i].seqs = calloc(n_seqs, sizeof *s->planned[i].seqs);
        allocated = s->planned[i].seqs != NULL;
    }
    if (!allocated) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "scheduler: out of memory");
    }
    while (s->n_free_slots < s->config.max_seqs) {
        s->free_slots[s->n_free_slots] = s->config.max_seqs - 1 - s->n_free_slots;
        s->n_free_slots++;
    }
    return block_pool_init(&s->pool, s->config.n_lanes, s->config.blocks_per_lane);
}

status_t scheduler_new(const struct scheduler_config *config, struct scheduler **out)
{
    if (config->max_seqs < 1 || config->max_rows < config->max_seqs) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "max-num-batched-tokens %d is smaller than max-num-seqs %d" STATUS_FIX
                             "raise the first or lower the second",
                             config->max_rows, config->max_seqs);
    }
    if (config->max_sample_tokens > 0 && config->max_sample_tokens < config->n_vocab) {
        return status_errorf(STATUS_INTERNAL,
                             "%d tokens that sampling changes, %d in the vocabulary",
                             config->max_sample_tokens, config->n_vocab);
    }
    if (blocks_for(config->max_model_len) > config->blocks_per_lane) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "one sequence of max-model-len %d needs %d KV blocks, a lane has %lld",
                             config->max_model_len, blocks_for(config->max_model_len),
                             (long long)config->blocks_per_lane);
    }
    struct scheduler *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "scheduler: out of memory");
    }
    s->config = *config;
    s->config.max_steps = config->max_steps > 0 ? config->max_steps : 1;
    s->config.max_logits = config->max_logits > 0 ? config->max_logits : config->max_seqs;
    s->config.max_sample_tokens = config->max_sample_tokens > 0
                                      ? config->max_sample_tokens
                                      : step_max_sample_tokens(config->max_seqs, config->n_vocab);
    s->config.n_stages = config->n_stages > 0 ? config->n_stages : 1;
    const status_t status = allocate(s);
    if (status.code != STATUS_OK) {
        scheduler_free(s);
        return status;
    }
    *out = s;
    return status_ok();
}

/* The list too; it is NULL when there was no memory for it. */
static void free_sequences(struct sequence **list, int32_t n)
{
    for (int32_t i = 0; list != NULL && i < n; i++) {
        scheduler_sequence_free(list[i]);
    }
    free(list);
}

static struct planned_step *oldest_planned(const struct scheduler *s)
{
    const int32_t n = s->config.max_steps;
    return &s->planned[(s->next_planned - s->n_planned + n) % n];
}

/* The plan that was made last. */
static const struct planned_step *newest_planned(const struct scheduler *s)
{
    const int32_t n = s->config.max_steps;
    return &s->planned[(s->next_planned - 1 + n) % n];
}

/* The oldest plan holds its sequences no longer. */
static void drop_planned(struct scheduler *s)
{
    const struct planned_step *step = oldest_planned(s);
    for (int32_t i = 0; i < step->n_seqs; i++) {
        struct sequence *seq = step->seqs[i].seq;
        seq->n_rows--;
        if (seq->gone && seq->n_rows == 0) {
            scheduler_sequence_free(seq);
        }
    }
    s->n_planned--;
}

void scheduler_free(struct scheduler *s)
{
    if (s == NULL) {
        return;
    }
    while (s->n_planned > 0) { // those that are gone are nowhere else
        drop_planned(s);
    }
    for (int32_t i = 0; s->planned != NULL && i < s->config.max_steps; i++) {
        free(s->planned[i].seqs);
    }
    free(s->planned);
    free(s->free_slots);
    free_sequences(s->running, s->n_running);
    free_sequences(s->waiting, s->n_waiting);
    block_pool_destroy(&s->pool);
    free(s);
}

/* ---- requests ---------------------------------------------------------------------------------- */

static struct sequence *find(struct sequence **list, int32_t n, uint64_t seq_id, int32_t *index_out)
{
    for (int32_t i = 0; i < n; i++) {
        if (list[i]->request.seq_id == seq_id) {
            *index_out = i;
            return list[i];
        }
    }
    return NULL;
}

static bool before(const struct sequence *a, const struct sequence *b)
{
    return a->request.priority != b->request.priority ? a->request.priority < b->request.priority
                                                      : a->arrival < b->arrival;
}

/* Keeps the queue ordered; a preempted sequence keeps its arrival and so stands before later ones. */
static void enqueue(struct scheduler *s, struct sequence *seq)
{
    int32_t at = s->n_waiting;
    while (at > 0 && before(seq, s->waiting[at - 1])) {
        s->waiting[at] = s->waiting[at - 1];
        at--;
    }
    s->waiting[at] = seq;
    s->n_waiting++;
}

status_t scheduler_submit(struct scheduler *s, const struct scheduler_request *request)
{
    int32_t at;
    struct sequence *seq;
    if (find(s->running, s->n_running, request->seq_id, &at) != NULL ||
        find(s->waiting, s->n_waiting, request->seq_id, &at) != NULL) {
        return status_errorf(STATUS_ALREADY_EXISTS, "sequence %llu is already here",
                             (unsigned long long)request->seq_id);
    }
    if (s->n_waiting >= s->config.max_waiting) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "%d sequences wait, the limit is %d",
                             s->n_waiting, s->config.max_waiting);
    }
    TRY(scheduler_sequence_new(&s->config, request, &seq));
    seq->arrival = s->n_arrivals++;
    seq->root = block_pool_root(&s->pool, request->salt != NULL ? request->salt : "");
    seq->n_cached = -1;
    scheduler_prefix_forget(seq);
    enqueue(s, seq);
    return status_ok();
}

static void remove_at(struct sequence **list, int32_t *n, int32_t at)
{
    memmove(&list[at], &list[at + 1], (size_t)(*n - at - 1) * sizeof(struct sequence *));
    (*n)--;
}

/* Takes a running sequence off the device: whoever gets its blocks and its slot next is computed after what it still has there. */
static void stop_running(struct scheduler *s, int32_t at)
{
    struct sequence *seq = s->running[at];
    remove_at(s->running, &s->n_running, at);
    while (seq->n_blocks > 0) {
        block_pool_give(&s->pool, seq->lane, seq->blocks[--seq->n_blocks]);
    }
    scheduler_prefix_forget(seq);
    s->free_slots[s->n_free_slots++] = seq->slot;
}

/* Wherever it is; a sequence that plans still name is freed with the last of them. False when it is in neither list. */
static bool remove_sequence(struct scheduler *s, uint64_t seq_id)
{
    int32_t at = 0;
    struct sequence *seq = find(s->waiting, s->n_waiting, seq_id, &at);
    if (seq != NULL) {
        remove_at(s->waiting, &s->n_waiting, at);
    } else {
        seq = find(s->running, s->n_running, seq_id, &at);
        if (seq == NULL) {
            return false;
        }
        stop_running(s, at);
    }
    seq->gone = true;
    if (seq->n_rows == 0) {
        scheduler_sequence_free(seq);
    }
    return true;
}

bool scheduler_cancel(struct scheduler *s, uint64_t seq_id)
{
    return remove_sequence(s, seq_id);
}

/* ---- making a step ------------------------------------------------------------------------------ */

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
 * token; or its pending token will not be on the first stage when this plan gets there. */
static bool must_wait(const struct scheduler *s, const struct sequence *seq)
{
    const uint64_t n_stages = (uint64_t)s->config.n_stages;
    const bool too_early = seq->n_pending > 0 && s->n_steps - seq->drawn_in < n_stages;
    return is_complete(s, seq) || seq->n_pending > 1 || too_early;
}

static void preempt(struct scheduler *s, int32_t at)
{
    struct sequence *seq = s->running[at];
    stop_running(s, at);
    seq->n_computed = 0;
    seq->n_now = seq->n_extra = 0;
    s->n_preemptions++;
    enqueue(s, seq);
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
    int64_t n = list_with_growth(&seq->list);
    for (int32_t i = 0; i < s->n_running; i++) {
        n += list_with_growth(&s->running[i]->list);
    }
    return s->n_running == 0 || n <= s->config.max_sample_tokens;
}

/* Lists grow token by token: as with blocks, the last sequences make room for those before. One alone always fits. */
static void make_room_for_lists(struct scheduler *s)
{
    int64_t n = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        n += s->running[i]->list.n;
    }
    while (s->n_running > 1 && n > s->config.max_sample_tokens) {
        int32_t last = 0;
        for (int32_t i = 1; i < s->n_running; i++) {
            last = before(s->running[last], s->running[i]) ? i : last;
        }
        n -= s->running[last]->list.n;
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
        if (s->running[i]->lane == lane && (last < 0 || before(s->running[last], s->running[i]))) {
            last = i;
        }
    }
    return last;
}

/*
 * Gives seq the blocks for n more tokens, preempting the last sequences of its lane while that is needed. Returns
 * false when seq itself was the last and is preempted. *budget gets back what preempted sequences had planned.
 */
static bool reserve(struct scheduler *s, struct sequence *seq, int32_t n, struct budget *budget)
{
    const int32_t wanted = blocks_for(seq->n_computed + n);
    while (seq->n_blocks < wanted) {
        const int32_t id = block_pool_take(&s->pool, seq->lane);
        if (id >= 0) {
            seq->blocks[seq->n_blocks++] = id;
            continue;
        }
        const int32_t victim = last_in_lane(s, seq->lane);
        const bool itself = s->running[victim] == seq;
        budget->rows += s->running[victim]->n_now;
        budget->logits += s->running[victim]->n_extra;
        preempt(s, victim);
        if (itself) {
            return false;
        }
    }
    return true;
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
    return (n_tokens + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
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
        const int64_t n_free = block_pool_free_count(&s->pool, lane);
        const int64_t to_compute = blocks_for(seq->n_tokens) - match.n_blocks;
        // One block stays free for each sequence that runs there, else the newcomer is preempted as soon as they grow.
        const int64_t wanted = to_compute + match.n_cached + n_running_in_lane(s, lane);
        const int64_t cost = blocks_soon(s, lane) + COMPUTING_WEIGHT * to_compute;
        if (wanted <= n_free && cost < least) {
            best = lane;
            least = cost;
        }
    }
    return best;
}

static void admit_waiting(struct scheduler *s, struct budget *budget)
{
    while (s->n_waiting > 0 && s->n_running < s->config.max_seqs && budget->rows > 0) {
        struct sequence *seq = s->waiting[0];
        const bool waits = seq->n_pending > 0 || !list_fits(s, seq);
        const int32_t lane = waits ? -1 : choose_lane(s, seq);
        if (lane < 0) {
            return; // first come, first served: nothing overtakes the head of the queue
        }
        remove_at(s->waiting, &s->n_waiting, 0);
        seq->lane = lane;
        seq->slot = s->free_slots[--s->n_free_slots];
        s->running[s->n_running++] = seq;
        scheduler_prefix_attach(s, seq);
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
    make_room_for_lists(s);
    schedule_running(s, PASS_DECODE, &budget);
    schedule_running(s, PASS_PREFILL, &budget);
    if (s->n_preemptions ==
        preempted_before) { // else what was just freed would be taken right back
        admit_waiting(s, &budget);
    }
    return emit(s, plan);
}

/* ---- after a step ------------------------------------------------------------------------------- */

static int32_t n_generated(const struct sequence *seq)
{
    return seq->n_tokens - seq->n_prompt;
}

/* How likely the prompt's next token was after each row. */
static void write_scored_rows(const struct planned_seq *planned, struct sample_row *rows)
{
    const struct sequence *seq = planned->seq;
    for (int32_t i = 0; i < planned->n_scored; i++) {
        rows[i] = (struct sample_row){
            .top_p = 1.0f,
            .repetition = 1.0f,
            .n_top = seq->request.n_prompt_top,
            .forced = 1,
            .forced_id = seq->tokens[planned->first_scored + i + 1],
            .slot = -1,
            .pending_slot = -1,
        };
    }
}

static int32_t write_drawn_row(const struct planned_seq *planned, struct sample_row *row,
                               struct sample_token *tokens)
{
    const struct sequence *seq = planned->seq;
    const struct scheduler_request *r = &seq->request;
    const enum sample_list_phase phase =
        planned->position < r->min_tokens ? SAMPLE_LIST_HELD : SAMPLE_LIST_FREE;
    const int32_t n = sample_list_write(&seq->list, phase, tokens);
    *row = (struct sample_row){
        .temperature = r->temperature,
        .top_k = r->top_k,
        .top_p = r->top_p,
        .min_p = r->min_p,
        .seed = r->seed,
        .sample = r->sample,
        .position = (uint32_t)planned->position,
        .repetition = r->repetition,
        .presence = r->presence,
        .frequency = r->frequency,
        .n_tokens = n,
        .only_listed = seq->list.only_listed,
        .n_top = r->n_top > 0 ? r->n_top : 0,
        .slot = seq->slot,
        .pending_slot = planned->has_pending ? seq->slot : -1,
    };
    return n;
}

int32_t scheduler_sample_rows(const struct scheduler *s, const struct step_plan *plan,
                              struct sample_row *rows, struct sample_token *tokens)
{
    const struct planned_step *step = newest_planned(s);
    int32_t at = 0;
    int32_t n_tokens = 0;
    assert(s->n_planned > 0 && plan->step == step->step);
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct planned_seq *planned = &step->seqs[i];
        write_scored_rows(planned, rows + at);
        at += planned->n_scored;
        if (planned->draws) {
            const int32_t n = write_drawn_row(planned, &rows[at], tokens + n_tokens);
            rows[at++].first_token = n_tokens;
            n_tokens += n;
        }
    }
    assert(at == plan->n_logits && n_tokens <= s->config.max_sample_tokens);
    for (int32_t i = 0; i < at; i++) {
        rows[i].logits = (int64_t)i * s->config.n_vocab;
    }
    return n_tokens;
}

static int finish_of(const struct scheduler *s, const struct sequence *seq,
                     const struct sample_result *result)
{
    for (int32_t i = 0; i < seq->request.n_stop_ids; i++) {
        if (result->id == seq->stop_ids[i]) {
            return SCHEDULER_STOP;
        }
    }
    if (n_generated(seq) >= seq->request.max_tokens || seq->n_tokens >= s->config.max_model_len) {
        return SCHEDULER_LENGTH;
    }
    return SCHEDULER_GOES_ON;
}

static bool has_nan(const struct sample_result *results, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (results[i].nan) {
            return true;
        }
    }
    return false;
}

/* What the plan's rows of the sequence gave. */
static struct scheduler_output take_results(struct scheduler *s, const struct planned_seq *planned,
                                            const struct sample_result *results)
{
    struct sequence *seq = planned->seq;
    const struct sample_result *drawn = planned->draws ? &results[planned->n_scored] : NULL;
    struct scheduler_output out = {
        .seq_id = seq->request.seq_id,
        .position = n_generated(seq),
        .n_top = seq->request.n_top,
        .n_cached = seq->n_cached,
        .finish = SCHEDULER_GOES_ON,
        .result = drawn,
        .scored = results,
        .n_scored = planned->n_scored,
        .first_scored = planned->first_scored + 1,
        .n_prompt_top = seq->request.n_prompt_top,
    };
    seq->n_pending -= planned->draws ? 1 : 0;
    if (has_nan(results, planned->n_scored + (planned->draws ? 1 : 0))) {
        out.finish = SCHEDULER_ERROR;
        out.result = NULL;
        out.n_scored = 0;
    } else if (drawn != NULL) {
        seq->tokens[seq->n_tokens++] = drawn->id;
        sample_list_add(&seq->list, drawn->id);
        out.finish = finish_of(s, seq, drawn);
    }
    if (out.finish != SCHEDULER_GOES_ON) {
        (void)remove_sequence(s, seq->request.seq_id);
    }
    return out;
}

int32_t scheduler_apply(struct scheduler *s, const struct step_plan *plan,
                        const struct sample_result *results, struct scheduler_output *outputs)
{
    const struct planned_step *step = oldest_planned(s);
    int32_t n_outputs = 0;
    assert(s->n_planned > 0 && plan->step == step->step);
    for (int32_t i = 0; i < step->n_seqs; i++) {
        const struct planned_seq *planned = &step->seqs[i];
        const int32_t n = planned->n_scored + (planned->draws ? 1 : 0);
        if (n > 0 && !planned->seq->gone) {
            outputs[n_outputs++] = take_results(s, planned, results);
        }
        results += n;
    }
    drop_planned(s);
    return n_outputs;
}

/* ---- state ------------------------------------------------------------------------------------- */

struct scheduler_load scheduler_load(const struct scheduler *s)
{
    int64_t n_free = 0;
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        n_free += block_pool_free_count(&s->pool, lane);
    }
    const int64_t total = s->config.blocks_per_lane * s->config.n_lanes;
    return (struct scheduler_load){.n_running = s->n_running,
                                   .n_waiting = s->n_waiting,
                                   .blocks_used = total - n_free,
                                   .blocks_total = total,
                                   .n_preemptions = s->n_preemptions,
                                   .n_prefix_queries = s->n_prefix_queries,
                                   .n_prefix_hits = s->n_prefix_hits};
}

/* Counts who holds each block of the lane. */
static status_t count_holders(const struct scheduler *s, int32_t lane, int32_t *n_holders)
{
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct sequence *seq = s->running[i];
        if (seq->lane != lane) {
            continue;
        }
        if (seq->n_computed >= n_all_tokens(seq) || seq->n_pending > seq->n_rows) {
            return status_errorf(STATUS_INTERNAL,
                                 "sequence %llu: %d computed of %d tokens, %d pending in %d plans",
                                 (unsigned long long)seq->request.seq_id, seq->n_computed,
                                 n_all_tokens(seq), seq->n_pending, seq->n_rows);
        }
        for (int32_t b = 0; b < seq->n_blocks; b++) {
            const int32_t id = seq->blocks[b];
            if (id < 0 || id >= s->config.blocks_per_lane) {
                return status_errorf(STATUS_INTERNAL, "lane %d: block %d out of range", lane, id);
            }
            n_holders[id]++;
        }
    }
    return status_ok();
}

static status_t check_lane(const struct scheduler *s, int32_t lane, int32_t *n_holders)
{
    memset(n_holders, 0, (size_t)s->config.blocks_per_lane * sizeof *n_holders);
    TRY(count_holders(s, lane, n_holders));
    int64_t n_held = 0;
    for (int32_t id = 0; id < s->config.blocks_per_lane; id++) {
        const int32_t known = block_pool_holders(&s->pool, lane, id);
        if (known != n_holders[id]) {
            return status_errorf(STATUS_INTERNAL, "lane %d: block %d has %d holders, not %d", lane,
                                 id, n_holders[id], known);
        }
        n_held += known > 0;
    }
    if (n_held + block_pool_free_count(&s->pool, lane) != s->config.blocks_per_lane) {
        return status_errorf(STATUS_INTERNAL, "lane %d: %lld held + %lld free of %lld blocks", lane,
                             (long long)n_held, (long long)block_pool_free_count(&s->pool, lane),
                             (long long)s->config.blocks_per_lane);
    }
    return status_ok();
}

static status_t check_slots(const struct scheduler *s)
{
    if (s->n_free_slots + s->n_running != s->config.max_seqs) {
        return status_errorf(STATUS_INTERNAL, "%d free slots with %d running of %d",
                             s->n_free_slots, s->n_running, s->config.max_seqs);
    }
    for (int32_t i = 0; i < s->n_running; i++) {
        for (int32_t j = 0; j < i; j++) {
            if (s->running[i]->slot == s->running[j]->slot) {
                return status_errorf(STATUS_INTERNAL, "slot %d is held twice", s->running[i]->slot);
            }
        }
    }
    return status_ok();
}

status_t scheduler_check(const struct scheduler *s)
{
    TRY(check_slots(s));
    int32_t *n_holders = calloc((size_t)s->config.blocks_per_lane, sizeof *n_holders);
    if (n_holders == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "scheduler check: out of memory");
    }
    status_t status = status_ok();
    for (int32_t lane = 0; lane < s->config.n_lanes && status.code == STATUS_OK; lane++) {
        status = check_lane(s, lane, n_holders);
    }
    free(n_holders);
    return status;
}

#include "worker/scheduler.h"

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
    TRY(scheduler_swap_init(s));
    TRY(block_pool_init(&s->pool, s->config.n_lanes, s->config.blocks_per_lane));
    return block_pool_stripe(&s->pool, s->config.stripe);
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

struct planned_step *scheduler_oldest_planned(const struct scheduler *s)
{
    const int32_t n = s->config.max_steps;
    return &s->planned[(s->next_planned - s->n_planned + n) % n];
}

/* The sequence is gone: it is freed unless plans name it, and a beam with its group. */
static void release(struct sequence *seq)
{
    struct beam_group *group = seq->group;
    if (group == NULL && seq->n_rows == 0) {
        scheduler_sequence_free(seq);
    } else if (group != NULL && !group->is_lent && !scheduler_beam_is_planned(group)) {
        scheduler_beam_free(group);
    }
}

void scheduler_drop_planned(struct scheduler *s)
{
    const struct planned_step *step = scheduler_oldest_planned(s);
    for (int32_t i = 0; i < step->n_seqs; i++) {
        struct sequence *seq = step->seqs[i].seq;
        seq->n_rows--;
        if (seq->gone) {
            release(seq);
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
        scheduler_drop_planned(s);
    }
    scheduler_beam_forget_lent(s);
    while (s->n_running > 0) {
        (void)scheduler_remove(s, s->running[0]->request.seq_id);
    }
    while (s->n_waiting > 0) {
        (void)scheduler_remove(s, s->waiting[0]->request.seq_id);
    }
    for (int32_t i = 0; s->planned != NULL && i < s->config.max_steps; i++) {
        free(s->planned[i].seqs);
    }
    free(s->planned);
    free(s->free_slots);
    free(s->running);
    free(s->waiting);
    scheduler_swap_destroy(s);
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

bool scheduler_before(const struct sequence *a, const struct sequence *b)
{
    return a->request.priority != b->request.priority ? a->request.priority < b->request.priority
                                                      : a->arrival < b->arrival;
}

void scheduler_enqueue(struct scheduler *s, struct sequence *seq)
{
    int32_t at = s->n_waiting;
    while (at > 0 && scheduler_before(seq, s->waiting[at - 1])) {
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
    if (request->beam_width > 0) {
        TRY(scheduler_beam_new(&s->config, request, seq));
    }
    seq->arrival = s->n_arrivals++;
    seq->root = block_pool_root(&s->pool, request->salt != NULL ? request->salt : "");
    seq->n_cached = -1;
    scheduler_prefix_forget(seq);
    scheduler_enqueue(s, seq);
    return status_ok();
}

void scheduler_stop_running(struct scheduler *s, int32_t at)
{
    struct sequence *seq = s->running[at];
    if (seq->group != NULL) {
        scheduler_beam_stop(s, seq->group);
        return;
    }
    sequence_list_remove(s->running, &s->n_running, at);
    while (seq->n_blocks > 0) {
        block_pool_give(&s->pool, seq->lane, seq->blocks[--seq->n_blocks]);
    }
    scheduler_prefix_forget(seq);
    s->free_slots[s->n_free_slots++] = seq->slot;
}

bool scheduler_remove(struct scheduler *s, uint64_t seq_id)
{
    int32_t at = 0;
    struct sequence *seq = find(s->waiting, s->n_waiting, seq_id, &at);
    if (seq != NULL) {
        sequence_list_remove(s->waiting, &s->n_waiting, at);
        scheduler_swap_drop(s, seq);
    } else {
        seq = find(s->running, s->n_running, seq_id, &at);
        if (seq == NULL) {
            return false;
        }
        scheduler_stop_running(s, at);
    }
    seq->gone = true;
    for (int32_t i = 0; seq->group != NULL && i < seq->group->search.params.width; i++) {
        seq->group->members[i]->gone = true;
    }
    release(seq);
    return true;
}

bool scheduler_cancel(struct scheduler *s, uint64_t seq_id)
{
    return scheduler_remove(s, seq_id);
}

/* ---- state ------------------------------------------------------------------------------------- */

struct scheduler_load scheduler_load(const struct scheduler *s)
{
    int64_t n_free = 0;
    int64_t n_slots = s->config.host_blocks_per_lane * s->config.n_lanes;
    for (int32_t lane = 0; lane < s->config.n_lanes; lane++) {
        n_free += block_pool_free_count(&s->pool, lane);
        n_slots -= s->slots.n_free[lane];
    }
    const int64_t total = s->config.blocks_per_lane * s->config.n_lanes;
    return (struct scheduler_load){.n_running = s->n_running,
                                   .n_waiting = s->n_waiting,
                                   .blocks_used = total - n_free,
                                   .blocks_total = total,
                                   .host_blocks_used = n_slots,
                                   .n_preemptions = s->n_preemptions,
                                   .n_recomputed = s->n_recomputed,
                                   .n_swapped_out = s->slots.n_out,
                                   .n_swapped_in = s->slots.n_in,
                                   .n_prefix_queries = s->n_prefix_queries,
                                   .n_prefix_hits = s->n_prefix_hits};
}

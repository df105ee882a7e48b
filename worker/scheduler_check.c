#include <stdlib.h>

#include "worker/scheduler_parts.h"

/* Counts who holds each block: n_holders [n_lanes][blocks_per_lane]. */
static status_t count_holders(const struct scheduler *s, int32_t *n_holders)
{
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct sequence *seq = s->running[i];
        const bool computes = seq->n_computed < n_all_tokens(seq) || seq->has_row;
        if (!computes || seq->n_pending > seq->n_rows) {
            return status_errorf(STATUS_INTERNAL,
                                 "sequence %llu: %d computed of %d tokens, %d pending in %d plans",
                                 (unsigned long long)seq->request.seq_id, seq->n_computed,
                                 n_all_tokens(seq), seq->n_pending, seq->n_rows);
        }
        if (seq->lane < 0 || seq->lane >= s->config.n_lanes || seq->n_swapped != 0) {
            return status_errorf(STATUS_INTERNAL, "sequence %llu runs in lane %d with %d slots",
                                 (unsigned long long)seq->request.seq_id, seq->lane,
                                 seq->n_swapped);
        }
        for (int32_t b = 0; b < seq->n_blocks; b++) {
            const int32_t id = seq->blocks[b];
            if (id < 0 || id >= s->config.blocks_per_lane) {
                return status_errorf(STATUS_INTERNAL, "lane %d: block %d out of range", seq->lane,
                                     id);
            }
            n_holders[seq->lane * s->config.blocks_per_lane + id]++;
        }
    }
    return status_ok();
}

static status_t check_lane(const struct scheduler *s, int32_t lane, const int32_t *n_holders)
{
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
    int32_t n_held = 0;
    int32_t n_of_beams = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct sequence *seq = s->running[i];
        const struct beam_group *group = seq->group;
        n_held += group == NULL;
        n_of_beams += group != NULL && group->members[0] == seq ? group->search.params.width : 0;
    }
    if (s->n_free_slots + n_held + n_of_beams != s->config.max_seqs ||
        n_of_beams != s->n_beam_slots) {
        return status_errorf(
            STATUS_INTERNAL, "%d free slots with %d held and %d (%d) of beams, of %d",
            s->n_free_slots, n_held, n_of_beams, s->n_beam_slots, s->config.max_seqs);
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
    TRY(scheduler_swap_check(s));
    const int64_t n = s->config.blocks_per_lane;
    int32_t *n_holders = calloc((size_t)(n * s->config.n_lanes), sizeof *n_holders);
    if (n_holders == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "scheduler check: out of memory");
    }
    status_t status = count_holders(s, n_holders);
    for (int32_t lane = 0; lane < s->config.n_lanes && status.code == STATUS_OK; lane++) {
        status = check_lane(s, lane, n_holders + lane * n);
    }
    free(n_holders);
    return status;
}

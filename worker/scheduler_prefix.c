#include "worker/scheduler_parts.h"

struct prefix_match scheduler_prefix_match(const struct scheduler *s, const struct sequence *seq,
                                           int32_t lane)
{
    struct prefix_match match = {0, 0};
    if (!s->config.prefix_caching || seq->request.computes_all) {
        return match;
    }
    const int32_t n_held = seq->n_blocks;
    const int32_t most = (seq->n_tokens - 1) / PLAN_BLOCK_TOKENS; // something is left to compute
    struct block_contents contents = {.before = seq->last,
                                      .tokens = seq->tokens + (int64_t)n_held * PLAN_BLOCK_TOKENS};
    while (n_held + match.n_blocks < most) {
        const int32_t id = block_pool_find(&s->pool, lane, &contents, &contents.before);
        if (id < 0) {
            return match;
        }
        match.n_blocks++;
        match.n_cached += block_pool_holders(&s->pool, lane, id) == 0;
        contents.tokens += PLAN_BLOCK_TOKENS;
    }
    return match;
}

/* Behind the blocks that it holds and that are published. */
static void attach_found(struct scheduler *s, struct sequence *seq)
{
    const int32_t end = seq->n_blocks + scheduler_prefix_match(s, seq, seq->lane).n_blocks;
    struct block_contents contents = {
        .before = seq->last, .tokens = seq->tokens + (int64_t)seq->n_blocks * PLAN_BLOCK_TOKENS};
    while (seq->n_blocks < end) {
        const int32_t id = block_pool_find(&s->pool, seq->lane, &contents, &contents.before);
        block_pool_share(&s->pool, seq->lane, id);
        seq->blocks[seq->n_blocks++] = id;
        contents.tokens += PLAN_BLOCK_TOKENS;
    }
    seq->last = contents.before;
    seq->n_published = seq->n_blocks;
    seq->n_computed = seq->n_blocks * PLAN_BLOCK_TOKENS;
}

void scheduler_prefix_attach(struct scheduler *s, struct sequence *seq)
{
    attach_found(s, seq);
    if (seq->n_cached < 0) { // coming back after a preemption is no query
        seq->n_cached = seq->n_computed;
        s->n_prefix_queries += (uint64_t)seq->n_tokens;
        s->n_prefix_hits += (uint64_t)seq->n_computed;
    }
}

void scheduler_prefix_follow(struct scheduler *s, struct sequence *seq,
                             const struct sequence *other, int32_t n_blocks)
{
    struct block_contents contents = {.before = seq->root, .tokens = seq->tokens};
    int32_t n_found = 0;
    for (; seq->n_blocks < n_blocks; seq->n_blocks++) {
        block_pool_share(&s->pool, seq->lane, other->blocks[seq->n_blocks]);
        seq->blocks[seq->n_blocks] = other->blocks[seq->n_blocks];
        n_found += block_pool_find(&s->pool, seq->lane, &contents, &contents.before) >= 0;
        contents.tokens += PLAN_BLOCK_TOKENS;
    }
    seq->n_computed = n_blocks * PLAN_BLOCK_TOKENS;
    if (n_found < n_blocks) { // not published, or as what followed a block that is gone
        seq->n_published = INT32_MAX;
        return;
    }
    seq->last = contents.before;
    seq->n_published = n_blocks;
    attach_found(s, seq);
}

void scheduler_prefix_publish(struct scheduler *s, struct sequence *seq, int32_t n_computed)
{
    // A token that was drawn but is not known yet stands as a placeholder.
    const int32_t n = n_computed < seq->n_tokens ? n_computed : seq->n_tokens;
    while (s->config.prefix_caching && seq->n_published < n / PLAN_BLOCK_TOKENS) {
        const struct block_contents contents = {
            .before = seq->last,
            .tokens = seq->tokens + (int64_t)seq->n_published * PLAN_BLOCK_TOKENS,
        };
        seq->last =
            block_pool_publish(&s->pool, seq->lane, seq->blocks[seq->n_published++], &contents);
    }
}

void scheduler_prefix_forget(struct sequence *seq)
{
    seq->last = seq->root;
    seq->n_published = 0;
}

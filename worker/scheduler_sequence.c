#include "worker/scheduler_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int32_t scheduler_sequence_unscored(const struct sequence *seq, int32_t n)
{
    const int32_t end =
        seq->n_computed + n < seq->n_prompt - 1 ? seq->n_computed + n : seq->n_prompt - 1;
    const int32_t first = seq->n_computed > seq->n_scored ? seq->n_computed : seq->n_scored;
    return end > first ? end - first : 0;
}

// ---- checks ----

static status_t check_ids(const char *field, const int32_t *ids, int32_t n, int32_t n_vocab)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= n_vocab) {
            return status_errorf(STATUS_INVALID_ARGUMENT, "%s[%d]: id %d, the vocabulary has %d",
                                 field, i, ids[i], n_vocab);
        }
    }
    return status_ok();
}

static status_t check_lengths(const struct scheduler_config *config,
                              const struct scheduler_request *r)
{
    if (r->n_tokens < 1 || r->n_generated < 0 || r->n_generated >= r->n_tokens) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "tokens: %d with %d generated, need at least 1", r->n_tokens,
                             r->n_generated);
    }
    if (r->max_tokens <= r->n_generated) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "max_tokens: %d with %d already generated",
                             r->max_tokens, r->n_generated);
    }
    TRY(check_ids("tokens", r->tokens, r->n_tokens, config->n_vocab));
    const int64_t total = (int64_t)r->n_tokens - r->n_generated + r->max_tokens;
    if (total > config->max_model_len) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT, "prompt of %d tokens + max_tokens %d = %lld, the limit is %d",
            r->n_tokens - r->n_generated, r->max_tokens, (long long)total, config->max_model_len);
    }
    return status_ok();
}

static status_t check_filters(const struct scheduler_request *r)
{
    const bool filters = r->temperature >= 0 && r->temperature < INFINITY && r->top_p > 0 &&
                         r->top_p <= 1 && r->min_p >= 0 && r->min_p <= 1 && r->top_k >= 0;
    const bool penalties = r->repetition > 0 && r->repetition < INFINITY && isfinite(r->presence) &&
                           isfinite(r->frequency);
    if (!filters || !penalties || r->n_top > SAMPLE_MAX_TOP || r->n_prompt_top > SAMPLE_MAX_TOP) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "sampling parameters out of range");
    }
    if (r->salt != NULL && strlen(r->salt) >= BLOCK_POOL_SALT_BYTES) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "cache_salt: %zu bytes, at most %d",
                             strlen(r->salt), BLOCK_POOL_SALT_BYTES - 1);
    }
    // A sequence is only continued elsewhere once its client has been told of the prompt.
    if (r->n_prompt_top >= 0 && r->n_generated > 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "log probabilities of the prompt with %d tokens generated",
                             r->n_generated);
    }
    return status_ok();
}

static status_t check_lists(const struct scheduler_config *config,
                            const struct scheduler_request *r)
{
    if (r->n_stop_ids < 0 || r->n_stop_ids > SCHEDULER_MAX_STOP_IDS || r->n_held_ids < 0 ||
        r->n_held_ids > SCHEDULER_MAX_STOP_IDS) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%d stop ids and %d held, the limit is %d",
                             r->n_stop_ids, r->n_held_ids, SCHEDULER_MAX_STOP_IDS);
    }
    if (r->n_bias < 0 || r->n_bias > SCHEDULER_MAX_BIAS || r->n_allowed < 0) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%d biased ids, the limit is %d; %d allowed",
                             r->n_bias, SCHEDULER_MAX_BIAS, r->n_allowed);
    }
    for (int32_t i = 0; i < r->n_bias; i++) {
        const struct sample_bias *bias = &r->bias[i];
        if (bias->id < 0 || bias->id >= config->n_vocab || !isfinite(bias->bias)) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "logit_bias[%d]: %g to id %d, the vocabulary has %d", i,
                                 (double)bias->bias, bias->id, config->n_vocab);
        }
    }
    return check_ids("allowed_token_ids", r->allowed, r->n_allowed, config->n_vocab);
}

// ---- life ----

static int32_t *copy_ids(const int32_t *ids, int32_t n, int32_t capacity)
{
    int32_t *copy = calloc((size_t)capacity + 1, sizeof *copy);
    if (copy != NULL && n > 0) {
        memcpy(copy, ids, (size_t)n * sizeof *copy);
    }
    return copy;
}

static status_t make_list(struct sequence *seq, const struct scheduler_config *config,
                          const struct scheduler_request *r)
{
    const struct sample_list_request request = {
        .n_vocab = config->n_vocab,
        .repetition = r->repetition,
        .presence = r->presence,
        .frequency = r->frequency,
        .bias = r->bias,
        .n_bias = r->n_bias,
        .allowed = r->allowed,
        .n_allowed = r->n_allowed,
        .held = {r->stop_ids, r->held_ids},
        .n_held = {r->min_tokens > r->n_generated ? r->n_stop_ids : 0,
                   r->min_tokens > r->n_generated ? r->n_held_ids : 0},
        .tokens = r->tokens,
        .n_prompt = r->n_tokens - r->n_generated,
        .n_tokens = r->n_tokens,
        .max_generated = r->max_tokens,
    };
    return sample_list_init(&seq->list, &request);
}

static status_t fill(struct sequence *seq, const struct scheduler_config *config,
                     const struct scheduler_request *r)
{
    const int32_t capacity = r->n_tokens - r->n_generated + r->max_tokens;
    seq->request = *r;
    seq->request.tokens = seq->request.stop_ids = seq->request.held_ids = NULL;
    seq->request.allowed = NULL;
    seq->request.bias = NULL;
    seq->request.salt = NULL;
    seq->request.computes_all =
        r->computes_all || r->n_prompt_top >= 0; // what is found has no logits
    seq->request.n_top = r->n_top < config->n_vocab ? r->n_top : config->n_vocab;
    seq->request.n_prompt_top =
        r->n_prompt_top < config->n_vocab ? r->n_prompt_top : config->n_vocab;
    if (r->beam_width > 0) { // nothing is drawn
        seq->request.temperature = 0.0f;
    }
    seq->stop_ids = copy_ids(r->stop_ids, r->n_stop_ids, r->n_stop_ids);
    seq->tokens = copy_ids(r->tokens, r->n_tokens, capacity);
    seq->blocks = calloc((size_t)blocks_for(capacity), sizeof *seq->blocks);
    seq->n_tokens = r->n_tokens;
    seq->n_prompt = r->n_tokens - r->n_generated;
    seq->n_scored = r->n_prompt_top >= 0 ? 0 : seq->n_prompt - 1;
    if (seq->stop_ids == NULL || seq->tokens == NULL || seq->blocks == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a sequence of %d tokens",
                             r->n_tokens);
    }
    return make_list(seq, config, r);
}

status_t scheduler_sequence_new(const struct scheduler_config *config,
                                const struct scheduler_request *request,
                                struct sequence **sequence_out)
{
    TRY(check_lengths(config, request));
    TRY(check_filters(request));
    TRY(check_lists(config, request));
    struct sequence *seq = calloc(1, sizeof *seq);
    if (seq == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a sequence");
    }
    const status_t s = fill(seq, config, request);
    if (!status_is_ok(&s)) {
        scheduler_sequence_free(seq);
        return s;
    }
    *sequence_out = seq;
    return status_ok();
}

void scheduler_sequence_free(struct sequence *seq)
{
    if (seq != NULL) {
        sample_list_destroy(&seq->list);
        free(seq->tokens);
        free(seq->blocks);
        free(seq->stop_ids);
        free(seq);
    }
}

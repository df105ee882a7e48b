/*
 * bench_perplexity.h - how well a model predicts a text: exp of the mean of -log p(token | tokens before)
 *
 * What:      the tokens are cut into windows of --context tokens, --stride apart; in each the model sees the window alone.
 *            A window scores the tokens that none before it has scored, but never its first token, of which it knows
 *            nothing. The last, shorter window counts.
 *            A step computes up to 256 tokens, each as a sequence of one token whose keys are in the same blocks: the
 *            ops are those of decoding, keys and values go through the cache in its dtype, and every token's logits
 *            are there.
 * Units:     natural logarithms.
 * Thread:    owner:the rank's main thread.
 * Collective: yes; the result is rank 0's.
 */
#pragma once

#include "worker/bench_session.h"

struct bench_perplexity_result {
    int64_t n_tokens, n_scored, n_windows;
    int32_t context, stride;
    double nll; /* sum of -log p */
};

/* ids: [n], at least 2. */
MUST_USE status_t bench_perplexity_run(const struct bench_session_request *request,
                                       const int32_t *ids, int64_t n,
                                       struct bench_perplexity_result *result_out);

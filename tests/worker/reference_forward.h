/*
 * reference_forward.h - the model in float64 with plain loops over whole weights, as the oracle of engine tests
 *
 * What:      no cache, no batch, no ranks, nothing shared with the code under test but the weights.
 * Thread:    any
 */
#pragma once

#include "tests/worker/model_writer.h"

/* logits [n_tokens, n_vocab] after each of the tokens. */
void reference_forward(const struct test_model *model, const int32_t *tokens, int32_t n_tokens,
                       double *logits);

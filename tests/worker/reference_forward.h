/*
 * reference_forward.h - the model in float64 with plain loops over whole weights, as the oracle of engine tests
 *
 * What:      no cache, no batch, no ranks, nothing shared with the code under test but the weights. Keys and values are
 *            exact, or for DTYPE_I8 rounded as kernels/kv_format.h says.
 * Thread:    any
 */
#pragma once

#include "tests/worker/model_writer.h"

struct reference_input {
    const int32_t *tokens;
    int32_t n_tokens;
    int kv_dtype; /* DTYPE_I8, or any other: exact */
};

/* logits [n_tokens, n_vocab] after each of the tokens. */
void reference_forward(const struct test_model *model, const struct reference_input *input,
                       double *logits);

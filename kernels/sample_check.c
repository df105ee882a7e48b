#include "kernels/sample_check.h"

#include <math.h>

static status_t check_filters(const struct sample_row *row, int32_t index)
{
    const bool finite = row->temperature >= 0.0f && row->temperature < INFINITY;
    if (!finite || !(row->top_p > 0.0f && row->top_p <= 1.0f) || row->top_k < 0 ||
        !(row->min_p >= 0.0f && row->min_p <= 1.0f)) {
        return status_errorf(
            STATUS_INVALID_ARGUMENT, "sample: row %d: temperature %g, top_k %d, top_p %g, min_p %g",
            index, (double)row->temperature, row->top_k, (double)row->top_p, (double)row->min_p);
    }
    if (!(row->repetition > 0.0f && row->repetition < INFINITY) || !isfinite(row->presence) ||
        !isfinite(row->frequency)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: row %d: penalties: repetition %g, presence %g, frequency %g",
                             index, (double)row->repetition, (double)row->presence,
                             (double)row->frequency);
    }
    return status_ok();
}

static status_t check_row(const struct sample_args *a, int32_t index)
{
    const struct sample_row *row = &a->rows[index];
    TRY(check_filters(row, index));
    if (row->logits < -1 || row->n_top < 0 || row->n_top > SAMPLE_MAX_TOP ||
        row->n_top > a->n_vocab || row->first_token < 0 || row->n_tokens < 0 ||
        row->first_token > a->n_tokens - row->n_tokens) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: row %d: %d alternatives, tokens [%d, +%d) of %d", index,
                             row->n_top, row->first_token, row->n_tokens, a->n_tokens);
    }
    const bool to_slot = row->slot >= -1 && row->slot < a->n_drawn;
    const bool of_own = row->pending_slot == -1 || row->pending_slot == row->slot;
    if (a->n_drawn > 0 && (!to_slot || !of_own)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: row %d: slot %d of %d, pending in slot %d", index, row->slot,
                             a->n_drawn, row->pending_slot);
    }
    if (row->of_logprobs && (row->forced || (a->n_drawn > 0 && row->pending_slot >= 0))) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: row %d: of log probabilities, forced or with a pending token",
                             index);
    }
    if (row->forced && (row->forced_id < 0 || row->forced_id >= a->n_vocab)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: row %d: forced id %d, the vocabulary has %d", index,
                             row->forced_id, a->n_vocab);
    }
    for (int32_t i = 0; i < row->n_tokens; i++) {
        const int32_t id = a->tokens[row->first_token + i].id;
        if (id < 0 || id >= a->n_vocab) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "sample: row %d: id %d, the vocabulary has %d", index, id,
                                 a->n_vocab);
        }
    }
    return status_ok();
}

status_t sample_check(const struct sample_args *a, int32_t max_vocab)
{
    if (a->n_rows < 0 || a->n_tokens < 0 || a->n_drawn < 0 || a->n_vocab < 1 ||
        a->n_vocab > max_vocab) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "sample: %d rows of %d ids, at most %d; %d tokens", a->n_rows,
                             a->n_vocab, max_vocab, a->n_tokens);
    }
    for (int32_t i = 0; i < a->n_rows; i++) {
        TRY(check_row(a, i));
    }
    return status_ok();
}

/*
 * The end of a step where tokens are drawn: the first rank of the last stage samples from its logits, and every rank that embeds
 * learns the ids.
 *
 *     drawn [max_seqs]     the last id of each slot, in device memory on every rank: what the next step's placeholders
 *                          stand for, so that ids need not come to the host in between
 *     results [max_logits] what the host is told, downloaded behind the step
 */
#include "worker/forward.h"

#include <string.h>

#include "kernels/sample_check.h"

/* Rows of a recording that the step does not fill draw nothing. */
status_t forward_send_sampling(struct forward *f, const struct step_sampling *sampling,
                               int32_t n_rows, int32_t n_padded)
{
    const struct backend *backend = f->parts.backend;
    const struct sample_args args = {
        .rows = sampling->rows,
        .tokens = sampling->tokens,
        .n_tokens = sampling->n_tokens,
        .n_rows = n_rows,
        .n_vocab = f->parts.spec->n_vocab,
        .n_drawn = f->limits.max_seqs,
    };
    if (sampling->n_tokens > f->limits.max_sample_tokens) {
        return status_errorf(STATUS_INTERNAL, "%d tokens that sampling changes, the limit is %d",
                             sampling->n_tokens, f->limits.max_sample_tokens);
    }
    TRY(sample_check(&args, args.n_vocab));
    struct sample_row *rows = device_array_host(&f->sample_rows);
    memcpy(rows, sampling->rows, (size_t)n_rows * sizeof *rows);
    for (int32_t i = n_rows; i < n_padded; i++) {
        rows[i] = (struct sample_row){.logits = -1, .slot = -1, .pending_slot = -1};
    }
    TRY(device_array_send(&f->sample_rows, backend, f->parts.stream,
                          (size_t)n_padded * sizeof *rows));
    const size_t tokens_bytes = (size_t)sampling->n_tokens * sizeof *sampling->tokens;
    if (tokens_bytes > 0) {
        memcpy(device_array_host(&f->sample_tokens), sampling->tokens, tokens_bytes);
    }
    return device_array_send(&f->sample_tokens, backend, f->parts.stream, tokens_bytes);
}

/* Part of a recording: its sizes are those of the recording, its tokens the most there can be. */
status_t forward_sample(struct forward *f, int32_t n_rows)
{
    const struct sample_args args = {
        .logits = f->logits,
        .rows = f->sample_rows.device,
        .tokens = f->sample_tokens.device,
        .n_tokens = f->limits.max_sample_tokens,
        .results = f->results,
        .n_rows = n_rows,
        .n_vocab = f->parts.spec->n_vocab,
        .drawn = f->drawn,
        .n_drawn = f->limits.max_seqs,
    };
    return f->parts.backend->sample(f->parts.stream, &args);
}

bool forward_draws(const struct forward *f)
{
    return f->parts.comm->rank == 0 && (f->parts.stages == NULL || stages_is_last(f->parts.stages));
}

/* With several stages the results go with the ids: their host is rank 0. */
status_t forward_share_drawn(struct forward *f, int32_t n_results)
{
    struct comm *comm = f->parts.comm;
    if (f->parts.stages != NULL) {
        return comm->rank == 0 ? stages_send_drawn(f->parts.stages, f->drawn, f->results,
                                                   (size_t)n_results * sizeof *f->results)
                               : status_ok();
    }
    return comm->size == 1 ? status_ok()
                           : comm->ops->broadcast_device(
                                 comm, f->drawn, f->limits.max_seqs * (int64_t)sizeof *f->drawn, 0);
}

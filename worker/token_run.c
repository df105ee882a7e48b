#include "worker/token_run.h"

#include <stdlib.h>
#include <string.h>

status_t token_run_init(struct token_run *run, const struct token_run_request *request)
{
    struct token_run made = {
        .plan = request->plan,
        .run = request->run,
        .unit_base = request->unit_base,
        .lane_units = plan_run_units(request->plan, &request->run, request->blocks_per_lane),
        .first_block = calloc((size_t)request->max_seqs + 1, sizeof *made.first_block),
        .row_ends = calloc((size_t)request->max_rows + 1, sizeof *made.row_ends),
    };
    status_t s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for the tables of a KV run");
    if (made.first_block == NULL || made.row_ends == NULL) {
        goto undo;
    }
    TRY_GOTO(s,
             device_array_init(&made.units, request->backend, request->stream,
                               (size_t)request->max_rows * sizeof(int64_t), request->max_steps),
             undo);
    TRY_GOTO(s,
             device_array_init(&made.blocks, request->backend, request->stream,
                               (size_t)request->max_blocks * sizeof(int32_t), request->max_steps),
             undo);
    *run = made;
    return status_ok();

undo:
    token_run_destroy(&made, request->backend, request->stream);
    return s;
}

void token_run_destroy(struct token_run *run, const struct backend *backend,
                       struct backend_stream *stream)
{
    device_array_destroy(&run->units, backend, stream);
    device_array_destroy(&run->blocks, backend, stream);
    free(run->first_block);
    free(run->row_ends);
    memset(run, 0, sizeof *run);
}

/* Blocks in order, each with the rows that stand in it; returns how many of the blocks are here. */
static int32_t place_seq(struct token_run *run, const struct step_plan *step,
                         const struct step_seq *seq, int64_t *units, int32_t *blocks)
{
    const int32_t n_heads = run->run.head_end - run->run.head_begin;
    const int64_t base = run->unit_base + seq->lane * run->lane_units;
    int32_t n_here = 0;
    int32_t position = seq->n_computed;
    const int32_t end = seq->n_computed + seq->n_tokens;
    for (int32_t i = 0; i < seq->n_blocks; i++) {
        const int64_t own =
            plan_run_block(run->plan, &run->run, step->blocks[seq->first_block + i]);
        const int32_t next = (i + 1) * PLAN_BLOCK_TOKENS;
        for (; position < end && position < next; position++) {
            const int32_t row = seq->first_row + position - seq->n_computed;
            const int32_t seen = own >= 0 ? position % PLAN_BLOCK_TOKENS + 1 : 0;
            units[row] = own >= 0 ? base + own * n_heads : -1;
            run->row_ends[row] = n_here * PLAN_BLOCK_TOKENS + seen;
        }
        if (own >= 0) {
            blocks[n_here++] = (int32_t)own;
        }
    }
    return n_here;
}

status_t token_run_place(struct token_run *run, const struct step_plan *step, int32_t n_rows,
                         const struct backend *backend, struct backend_stream *stream)
{
    int64_t *units = device_array_host(&run->units);
    int32_t *blocks = device_array_host(&run->blocks);
    int32_t n_blocks = 0;
    for (int32_t i = 0; i < step->n_seqs; i++) {
        run->first_block[i] = n_blocks;
        n_blocks += place_seq(run, step, &step->seqs[i], units, blocks + n_blocks);
    }
    for (int32_t row = step->n_rows; row < n_rows; row++) {
        units[row] = -1;
    }
    TRY(device_array_send(&run->units, backend, stream, (size_t)n_rows * sizeof *units));
    return device_array_send(&run->blocks, backend, stream, (size_t)n_blocks * sizeof *blocks);
}

void token_run_attend(const struct token_run *run, const struct step_plan *step, int32_t i,
                      struct attention_seq *seq_out)
{
    const struct step_seq *seq = &step->seqs[i];
    *seq_out = (struct attention_seq){
        .n_queries = seq->n_tokens,
        .kv_tokens = run->row_ends[seq->first_row + seq->n_tokens - 1],
        .first_block = run->first_block[i],
        .n_kv_heads = run->run.head_end - run->run.head_begin,
        .unit_base = run->unit_base + seq->lane * run->lane_units,
        .row_ends = run->row_ends + seq->first_row,
    };
}

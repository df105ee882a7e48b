/*
 * token_run.h - a run of KV heads split by token: which blocks and rows of a step this rank has of it
 *
 * What:      under placement token a rank keeps the blocks of a sequence whose place in the stripe is in the run's (plan.h). Each
 *            step says which of its blocks these are, where the rows whose keys and values belong to them go, and how many
 *            of the rank's own tokens each row may see.
 *
 *              stripe 3, places [0, 1)     blocks of a sequence   6   4   9   3  |5        row at block 5, offset 2
 *                                          here                   0       1   2            table: 2, 3, 1
 *                                                                 6/3     9/3 3/3          sees 3 blocks, 48 tokens
 *
 * Layout:    the run's own part of the plane: [lanes][blocks it has of a lane][heads] units from unit_base.
 * Ownership: owns its arrays; plan is borrowed.
 * Thread:    owner:the rank's main thread.
 */
#pragma once

#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/plan.h"
#include "worker/device_array.h"
#include "worker/step_plan.h"

struct token_run_request {
    const struct backend *backend;
    struct backend_stream *stream;
    const struct plan *plan;
    plan_run_t run;
    int64_t unit_base;
    int64_t blocks_per_lane;
    int32_t max_seqs, max_rows, max_blocks; /* of a step */
    int32_t max_steps;
};

struct token_run {
    const struct plan *plan;
    plan_run_t run;
    int64_t unit_base;
    int64_t lane_units; /* from one lane's units to the next */

    /* Of the step. */
    struct device_array
        units; /* int64 [max_rows]: unit of the run's first head; -1: another rank has the row's block */
    struct device_array
        blocks; /* int32 [max_blocks]: of the sequences, one behind the other, among the run's own */
    int32_t *first_block; /* [max_seqs]: in blocks */
    int32_t *row_ends;    /* [max_rows]: tokens of the run's blocks up to the row's own position */
};

MUST_USE status_t token_run_init(struct token_run *run, const struct token_run_request *request);
void token_run_destroy(struct token_run *run, const struct backend *backend,
                       struct backend_stream *stream); /* accepts a zeroed one */

/* Works the step out and tells the device; rows from step->n_rows to n_rows are nowhere. */
MUST_USE status_t token_run_place(struct token_run *run, const struct step_plan *step,
                                  int32_t n_rows, const struct backend *backend,
                                  struct backend_stream *stream);

/* Fills in what attention must know of the step's i-th sequence but for where queries and outputs lie. */
void token_run_attend(const struct token_run *run, const struct step_plan *step, int32_t i,
                      struct attention_seq *seq_out);

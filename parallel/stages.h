/*
 * stages.h - what the stages of a pipeline say to each other
 *
 * What:      the ranks of a group stand in stages of tp, rank = stage * tp + tp_rank. The residual stream of a step goes from
 *            each rank to the one with its tp_rank in the next stage; what the first rank of the last stage draws goes to the
 *            ranks of the first stage, and the results of drawing to rank 0. The leader is not in between.
 *
 *              stage 0        stage 1             last stage
 *              rank 0 --x-->  rank tp   --x-->  rank (P-1)tp --+  ids: to ranks 0 .. tp-1
 *              rank 1 --x-->  rank tp+1 --x-->  rank (P-1)tp+1 |  results: to rank 0
 *                 ^                                            |
 *                 +--------------------------------------------+
 *
 * Order:     every rank calls stages_begin for every step, in order. Ids drawn in step n are on the first stage when it begins
 *            step n + P at the latest: it waits for them there, so that it is never more than P steps ahead.
 * Memory:    x, drawn and results are the backend's; messages go by way of host memory (pinned where the device has its own).
 *            What is sent is copied first, so that the sender goes on at once; there is room for SENDS_AHEAD messages. They
 *            move when this rank calls MPI: whatever it waits for after that, MPI must be called now and then (comm_shm.c).
 * Ownership: owns its buffers; group, backend and stream are borrowed and must outlive it.
 * Thread:    owner:the rank's main thread.
 * Collective: stages_new is not, but every rank makes one with the same options; messages match as drawn above.
 * Errors:    UNAVAILABLE naming the message and the rank; after one the group is finished.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/backend.h"
#include "parallel/group.h"

struct stages;

struct stages_options {
    int32_t tp, pp; /* pp >= 2 */
    const struct backend *backend;
    struct backend_stream *stream;
    int32_t n_steps;                            /* under way at once, at least pp */
    size_t x_bytes, drawn_bytes, results_bytes; /* of the largest messages */
};

MUST_USE status_t stages_new(struct group *group, const struct stages_options *options,
                             struct stages **stages_out);

/* Takes what is still to come of steps that have begun; gives up after a second. Accepts NULL. */
void stages_free(struct stages *stages);

bool stages_is_first(const struct stages *stages);
bool stages_is_last(const struct stages *stages);

/* The next step begins; draws: it has logits. On the first stage, ids of steps that are pp steps back come into `drawn`. */
MUST_USE status_t stages_begin(struct stages *stages, bool draws, void *drawn);

/* All but the first stage; all but the last. Of a step with rows, in the order of steps. */
MUST_USE status_t stages_recv_x(struct stages *stages, void *x, size_t size);
MUST_USE status_t stages_send_x(struct stages *stages, const void *x, size_t size);

/* What was sent goes on its way: to be called now and then while a step is computed. */
void stages_progress(struct stages *stages);

/* The first rank of the last stage, at the end of a step that draws: all ids, and results_size bytes of results. */
MUST_USE status_t stages_send_drawn(struct stages *stages, const void *drawn, const void *results,
                                    size_t results_size);

/* Rank 0: results of the oldest step that draws and was not taken; waits for them. */
bool stages_results_are_here(struct stages *stages);
MUST_USE status_t stages_take_results(struct stages *stages, void *results_out, size_t size);

/*
 * swap_cost.h - what the scheduler weighs when it preempts: a block there and back, and a token computed again
 *
 * What:      both are measured on the group itself before it serves: steps of prompts, larger ones as long as they are quick, and
 *            steps with moves beside the same without. They read and write KV blocks and slots that nobody has yet.
 * Units:     seconds.
 * Thread:    owner:the rank's main thread.
 * Collective: yes; every rank gets rank 0's figures. The engine computes nothing else meanwhile.
 * Errors:    those of a step; the group is finished then.
 */
#pragma once

#include "parallel/group.h"
#include "worker/engine.h"

struct swap_cost {
    double block_s; /* out and in again */
    double token_s;
};

MUST_USE status_t swap_cost_measure(struct group *group, struct engine *engine,
                                    int32_t max_model_len, struct swap_cost *cost_out);

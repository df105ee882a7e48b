/*
 * engine_parts.h - what the engine's files share
 *
 * engine.c         what it is made of, and its steps
 * engine_memory.c  how many KV blocks and slots of host memory there are
 */
#pragma once

#include "parallel/stages.h"
#include "worker/engine.h"
#include "worker/forward.h"
#include "worker/kv_moves.h"
#include "worker/kv_pool.h"
#include "worker/step_queue.h"
#include "worker/weights.h"

struct engine {
    struct group *group;
    const struct model_spec *spec;
    const struct plan *plan;
    struct engine_options options;
    int32_t rank;            /* of all stages */
    struct comm *stage_comm; /* of the ranks of this stage, over host memory; the group owns it */
    struct stages *stages;   /* NULL: there is one */
    struct step_limits limits;

    struct backend_stream *stream;
    struct comm *comm; /* over the backend's memory; stage_comm where that is the host's */
    struct weights weights;
    struct kv_pool pool;
    struct kv_moves moves;
    struct forward forward;
    struct step_queue steps;
    uint64_t bytes_read;
};

static inline int64_t engine_blocks_per_seq(const struct engine *e)
{
    return plan_blocks_for(e->options.max_model_len);
}

/* Blocks of a lane that every rank has memory for. FAILED_PRECONDITION where one sequence does not fit. Collective. */
MUST_USE status_t engine_size_pool(const struct engine *e, int64_t *blocks_out);

/* Slots of a lane in host memory, beside a pool of so many blocks. Collective. */
MUST_USE status_t engine_size_slots(const struct engine *e, int64_t blocks, int64_t *slots_out);

/* What the plan says this rank needs, and what it has. */
void engine_log_memory(const struct engine *e, int64_t blocks_per_lane);

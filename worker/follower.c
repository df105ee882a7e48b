#include "worker/follower.h"

#include <string.h>

#include "worker/member.h"

/* The payload of an ASSIGN frame is a CoordinatorMessage. Its failure must be agreed on, so that the leader hears it. */
static status_t obey_assign(struct group *group, const struct member_options *options,
                            struct bytes_reader *frame, struct member *member)
{
    struct arena arena;
    arena_init(&arena, CONTROL_MAX_BYTES);
    struct wire_coordinator_message message;
    status_t s = wire_coordinator_message_unpack(frame->data + frame->at, frame->size - frame->at,
                                                 &arena, &message);
    s = group_agree(group, s);
    if (s.code == STATUS_OK) {
        s = member_open(group, &message.assign, options, member);
    }
    if (s.code == STATUS_OK) {
        const uint64_t sizes[2] = {engine_weight_bytes(member->engine),
                                   engine_kv_bytes(member->engine)};
        struct comm *comm = group_comm(group);
        s = comm->ops->send(comm, sizes, sizeof sizes, 0, 0);
    }
    arena_destroy(&arena);
    return s;
}

static status_t obey_step(struct member *member, struct bytes_reader *frame)
{
    TRY(step_draw_unpack(&member->draw, frame));
    TRY(step_plan_unpack(&member->step, frame->data + frame->at, frame->size - frame->at));
    if (engine_full(member->engine)) {
        TRY(engine_collect(member->engine, NULL));
    }
    const struct step_sampling sampling = {
        .rows = member->draw.rows,
        .tokens = member->draw.tokens,
        .n_tokens = member->draw.n_tokens,
    };
    const bool draws = member->draw.n_rows > 0 && member->draw.n_rows == member->step.n_logits;
    return engine_submit(member->engine, &member->step, draws ? &sampling : NULL);
}

static status_t obey(struct group *group, const struct member_options *options,
                     struct member *member, struct bytes *frame)
{
    for (;;) {
        TRY(group_broadcast(group, frame, (uint32_t)options->config->max_idle_sleep_us));
        struct bytes_reader reader;
        bytes_reader_init(&reader, frame->data, frame->size);
        switch (bytes_read_u32(&reader)) {
        case CONTROL_ASSIGN:
            TRY(obey_assign(group, options, &reader, member));
            break;
        case CONTROL_STEP:
            TRY(obey_step(member, &reader));
            break;
        case CONTROL_STOP:
            return status_ok();
        default:
            return status_errorf(STATUS_INTERNAL, "unknown control frame of %zu bytes",
                                 frame->size);
        }
    }
}

status_t follower_run(struct group *group, const struct member_options *options, bool *broken_out)
{
    struct member member;
    memset(&member, 0, sizeof member);
    struct bytes frame;
    bytes_init(&frame, CONTROL_MAX_BYTES);
    const status_t s = obey(group, options, &member, &frame);
    *broken_out = s.code != STATUS_OK && member.engine != NULL;
    bytes_destroy(&frame);
    member_close(&member);
    return s;
}

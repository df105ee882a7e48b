#include "proto/wire/cluster.h"

#include "kvasir/v1/cluster.pb-c.h"
#include "proto/wire/wire_internal.h"

const char *wire_group_state_name(int state)
{
    static const char *const names[] = {
        [WIRE_GROUP_STARTING] = "starting", [WIRE_GROUP_LOADING] = "loading",
        [WIRE_GROUP_READY] = "ready",       [WIRE_GROUP_DRAINING] = "draining",
        [WIRE_GROUP_LOST] = "lost",
    };
    const bool known = state >= 0 && (size_t)state < sizeof names / sizeof names[0];
    return known ? names[state] : "unknown";
}

_Static_assert(WIRE_GROUP_STARTING == (int)KVASIR__V1__GROUP_STATUS__STATE__STARTING &&
                   WIRE_GROUP_LOADING == (int)KVASIR__V1__GROUP_STATUS__STATE__LOADING &&
                   WIRE_GROUP_READY == (int)KVASIR__V1__GROUP_STATUS__STATE__READY &&
                   WIRE_GROUP_DRAINING == (int)KVASIR__V1__GROUP_STATUS__STATE__DRAINING &&
                   WIRE_GROUP_LOST == (int)KVASIR__V1__GROUP_STATUS__STATE__LOST,
               "states are copied as integers");

static Kvasir__V1__GroupStatus **pack_groups(struct wire_packer *p,
                                             const struct wire_group_status *from, size_t n)
{
    Kvasir__V1__GroupStatus **to = wire_pack_messages(p, &kvasir__v1__group_status__descriptor, n);
    for (size_t i = 0; to != NULL && i < n; i++) {
        to[i]->group_id = from[i].group_id;
        to[i]->state = (Kvasir__V1__GroupStatus__State)from[i].state;
        to[i]->generation = from[i].generation;
        to[i]->n_ranks = from[i].n_ranks;
        to[i]->host = wire_pack_text(from[i].host);
        to[i]->device = wire_pack_text(from[i].device);
        to[i]->running = from[i].running;
        to[i]->waiting = from[i].waiting;
        to[i]->kv_blocks_used = from[i].kv_blocks_used;
        to[i]->kv_blocks_total = from[i].kv_blocks_total;
        to[i]->tokens_per_second = from[i].tokens_per_second;
        to[i]->restarts = from[i].restarts;
        to[i]->heartbeat_age_seconds = from[i].heartbeat_age_seconds;
    }
    return to;
}

status_t wire_cluster_status_pack(const struct wire_cluster_status *m, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__GetStatusResponse status = KVASIR__V1__GET_STATUS_RESPONSE__INIT;
    status.model = wire_pack_text(m->model);
    status.version = wire_pack_text(m->version);
    status.serving = m->serving;
    status.draining = m->draining;
    status.uptime_seconds = m->uptime_seconds;
    status.n_groups = m->n_groups;
    status.groups = pack_groups(&p, m->groups, m->n_groups);
    status.requests_running = m->requests_running;
    status.requests_waiting = m->requests_waiting;
    status.requests_total = m->requests_total;
    status.prompt_tokens_total = m->prompt_tokens_total;
    status.generation_tokens_total = m->generation_tokens_total;
    status.kv_replication_factor = m->kv_replication_factor;
    status.kv_bytes_per_token = m->kv_bytes_per_token;
    return wire_pack_finish(&p, &status.base, out);
}

static struct wire_group_status unpack_group(const Kvasir__V1__GroupStatus *from)
{
    return (struct wire_group_status){
        .group_id = from->group_id,
        .state = (int)from->state,
        .generation = from->generation,
        .n_ranks = from->n_ranks,
        .host = from->host,
        .device = from->device,
        .running = from->running,
        .waiting = from->waiting,
        .kv_blocks_used = from->kv_blocks_used,
        .kv_blocks_total = from->kv_blocks_total,
        .tokens_per_second = from->tokens_per_second,
        .restarts = from->restarts,
        .heartbeat_age_seconds = from->heartbeat_age_seconds,
    };
}

status_t wire_cluster_status_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                    struct wire_cluster_status *out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__get_status_response__descriptor, &message));
    const Kvasir__V1__GetStatusResponse *from = (const Kvasir__V1__GetStatusResponse *)message;

    void *array;
    TRY(wire_unpack_array(arena, from->n_groups, sizeof *out->groups, &array));
    struct wire_group_status *groups = array;
    for (size_t i = 0; i < from->n_groups; i++) {
        groups[i] = unpack_group(from->groups[i]);
    }
    *out = (struct wire_cluster_status){
        .model = from->model,
        .version = from->version,
        .serving = from->serving,
        .draining = from->draining,
        .uptime_seconds = from->uptime_seconds,
        .groups = groups,
        .n_groups = from->n_groups,
        .requests_running = from->requests_running,
        .requests_waiting = from->requests_waiting,
        .requests_total = from->requests_total,
        .prompt_tokens_total = from->prompt_tokens_total,
        .generation_tokens_total = from->generation_tokens_total,
        .kv_replication_factor = from->kv_replication_factor,
        .kv_bytes_per_token = from->kv_bytes_per_token,
    };
    return status_ok();
}

status_t wire_plan_response_pack(const char *json, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__GetPlanResponse response = KVASIR__V1__GET_PLAN_RESPONSE__INIT;
    response.json = wire_pack_text(json);
    return wire_pack_finish(&p, &response.base, out);
}

status_t wire_plan_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                   const char **json_out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__get_plan_response__descriptor, &message));
    *json_out = ((const Kvasir__V1__GetPlanResponse *)message)->json;
    return status_ok();
}

status_t wire_watch_request_pack(uint32_t interval_ms, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__WatchStatusRequest message = KVASIR__V1__WATCH_STATUS_REQUEST__INIT;
    message.interval_ms = interval_ms;
    return wire_pack_finish(&p, &message.base, out);
}

status_t wire_watch_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                   uint32_t *interval_ms_out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__watch_status_request__descriptor, &message));
    *interval_ms_out = ((const Kvasir__V1__WatchStatusRequest *)message)->interval_ms;
    return status_ok();
}

status_t wire_drain_request_pack(double grace_seconds, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__DrainRequest message = KVASIR__V1__DRAIN_REQUEST__INIT;
    message.grace_seconds = grace_seconds;
    return wire_pack_finish(&p, &message.base, out);
}

status_t wire_drain_request_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                   double *grace_seconds_out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__drain_request__descriptor, &message));
    *grace_seconds_out = ((const Kvasir__V1__DrainRequest *)message)->grace_seconds;
    return status_ok();
}

status_t wire_drain_response_pack(uint32_t requests_ended, struct bytes *out)
{
    struct wire_packer p;
    wire_pack_begin(&p);
    Kvasir__V1__DrainResponse message = KVASIR__V1__DRAIN_RESPONSE__INIT;
    message.requests_ended = requests_ended;
    return wire_pack_finish(&p, &message.base, out);
}

status_t wire_drain_response_unpack(const uint8_t *data, size_t size, struct arena *arena,
                                    uint32_t *requests_ended_out)
{
    const struct wire_input in = {data, size, arena, WIRE_AMPLIFICATION};
    ProtobufCMessage *message;
    TRY(wire_unpack(&in, &kvasir__v1__drain_response__descriptor, &message));
    *requests_ended_out = ((const Kvasir__V1__DrainResponse *)message)->requests_ended;
    return status_ok();
}

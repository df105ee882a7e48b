/*
 * core_status.c - how things stand, for kvasir.v1.Cluster and for the gauges
 */
#include <string.h>

#include "base/version.h"
#include "coordinator/core_parts.h"

static double seconds_since(const struct core *core, uint64_t then_ns)
{
    return core->now_ns > then_ns ? (double)(core->now_ns - then_ns) * 1e-9 : 0;
}

static void describe_group(const struct core *core, int index, struct wire_group_status *out)
{
    const struct core_group *group = &core->groups[index];
    *out = (struct wire_group_status){
        .group_id = (uint32_t)index,
        .state = group->state,
        .generation = group->generation,
        .n_ranks = (uint32_t)(core->model->plan.tp * core->model->plan.pp),
        .host = group->host,
        .device = group->device,
        .running = group->load.running,
        .waiting = group->load.waiting,
        .kv_blocks_used = group->load.kv_blocks_used,
        .kv_blocks_total = group->load.kv_blocks_total,
        .tokens_per_second = group->tokens_per_second,
        .restarts = group->restarts,
        .heartbeat_age_seconds = group->generation > 0 ? seconds_since(core, group->heard_ns) : 0,
    };
}

static status_t pack_status(struct core *core, struct bytes *out)
{
    struct wire_group_status groups[CORE_MAX_GROUPS];
    for (int i = 0; i < core->n_groups; i++) {
        describe_group(core, i, &groups[i]);
    }
    const struct metrics *metrics = core->metrics;
    const struct wire_cluster_status m = {
        .model = core->model->name,
        .version = version_number(),
        .serving = atomic_load(&core->gate->mode) == GATE_OPEN,
        .draining = core->phase != CORE_SERVING,
        .uptime_seconds = seconds_since(core, core->started_ns),
        .groups = groups,
        .n_groups = (size_t)core->n_groups,
        .requests_running = core->n_running,
        .requests_waiting = (uint32_t)core->router.n_queued,
        .requests_total = metrics_counter_value(metrics, METRICS_REQUESTS),
        .prompt_tokens_total = metrics_counter_value(metrics, METRICS_PROMPT_TOKENS),
        .generation_tokens_total = metrics_counter_value(metrics, METRICS_GENERATION_TOKENS),
        .kv_replication_factor = core->model->kv_replication,
        .kv_bytes_per_token = core->model->kv_bytes_per_token,
    };
    bytes_clear(out);
    return wire_cluster_status_pack(&m, out);
}

static void answer_status(struct core *core, struct rpc_call *call)
{
    const status_t s = pack_status(core, &core->packed);
    if (status_is_ok(&s)) {
        rpc_reply(call, &core->packed);
    } else {
        rpc_finish(call, &s, NULL, 0);
    }
}

/* Keeps the call in the first free place; NULL when there is none, and the call has ended. */
static struct core_caller *keep(struct core_caller callers[CORE_MAX_WATCHERS],
                                struct rpc_call *call)
{
    for (int i = 0; i < CORE_MAX_WATCHERS; i++) {
        if (callers[i].call == NULL) {
            callers[i].call = rpc_call_acquire(call);
            return &callers[i];
        }
    }
    const status_t full = status_errorf(STATUS_RESOURCE_EXHAUSTED, "%d callers are waiting already",
                                        CORE_MAX_WATCHERS);
    rpc_finish(call, &full, NULL, 0);
    return NULL;
}

static void drop(struct core_caller *caller)
{
    rpc_call_release(caller->call);
    caller->call = NULL;
}

static void tell_watcher(struct core *core, struct core_caller *watcher)
{
    status_t s = pack_status(core, &core->packed);
    if (status_is_ok(&s)) {
        s = rpc_send(watcher->call, core->packed.data, core->packed.size);
    }
    watcher->next_ns = core->now_ns + watcher->interval_ns;
    if (!status_is_ok(&s)) { // over, or not reading
        rpc_finish(watcher->call, &s, NULL, 0);
        drop(watcher);
    }
}

static void begin_watch(struct core *core, const struct core_message *message)
{
    struct core_caller *watcher = keep(core->watchers, message->call);
    if (watcher != NULL) {
        watcher->interval_ns = message->patience_ns > 0 ? message->patience_ns : NS_PER_S;
        tell_watcher(core, watcher);
    }
}

static void begin_drain(struct core *core, const struct core_message *message)
{
    if (keep(core->drainers, message->call) == NULL) {
        return;
    }
    if (message->patience_ns > 0) {
        core_drain(core, message->patience_ns);
    } else {
        core_end(core, CORE_DRAIN);
    }
}

void core_status_call(struct core *core, const struct core_message *message)
{
    switch (message->what) {
    case CORE_CALL_STATUS:
        answer_status(core, message->call);
        break;
    case CORE_CALL_WATCH:
        begin_watch(core, message);
        break;
    default:
        begin_drain(core, message);
        break;
    }
}

void core_status_tell_watchers(struct core *core)
{
    for (int i = 0; i < CORE_MAX_WATCHERS; i++) {
        if (core->watchers[i].call != NULL) {
            tell_watcher(core, &core->watchers[i]);
        }
    }
}

void core_status_tick(struct core *core)
{
    for (int i = 0; i < CORE_MAX_WATCHERS; i++) {
        if (core->watchers[i].call != NULL && core->now_ns >= core->watchers[i].next_ns) {
            tell_watcher(core, &core->watchers[i]);
        }
    }
}

void core_status_tell_drained(struct core *core, uint32_t requests_ended)
{
    bytes_clear(&core->packed);
    const status_t s = wire_drain_response_pack(requests_ended, &core->packed);
    for (int i = 0; i < CORE_MAX_WATCHERS; i++) {
        struct core_caller *drainer = &core->drainers[i];
        if (drainer->call == NULL) {
            continue;
        }
        if (status_is_ok(&s)) {
            rpc_reply(drainer->call, &core->packed);
        } else {
            rpc_finish(drainer->call, &s, NULL, 0);
        }
        drop(drainer);
    }
}

static void end_all(struct core_caller callers[CORE_MAX_WATCHERS], const status_t *status)
{
    for (int i = 0; i < CORE_MAX_WATCHERS; i++) {
        if (callers[i].call != NULL) {
            rpc_finish(callers[i].call, status, NULL, 0);
            drop(&callers[i]);
        }
    }
}

void core_status_close(struct core *core)
{
    const status_t s = status_errorf(STATUS_UNAVAILABLE, "the server is shutting down");
    end_all(core->drainers, &s);
    end_all(core->watchers, &s);
}

void core_status_gauges(struct core *core)
{
    uint64_t running = 0;
    uint64_t waiting = core->router.n_queued;
    for (int i = 0; i < core->n_groups; i++) {
        if (core->groups[i].state == WIRE_GROUP_READY) {
            running += core->groups[i].load.running;
            waiting += core->groups[i].load.waiting;
        }
    }
    metrics_set(core->metrics, METRICS_REQUESTS_RUNNING, (double)running);
    metrics_set(core->metrics, METRICS_REQUESTS_WAITING, (double)waiting);
    metrics_set(core->metrics, METRICS_KV_REPLICATION, core->model->kv_replication);
    metrics_set(core->metrics, METRICS_KV_BYTES_PER_TOKEN, core->model->kv_bytes_per_token);
}

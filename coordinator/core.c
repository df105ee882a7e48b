#include "coordinator/core.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/core_parts.h"

/* Each live call has one request message and one end under way, a group a few results. */
#define INBOX_CAPACITY 65536

#define MAX_SCRATCH_BYTES ((size_t)256 * 1024 * 1024)
#define MAX_PACKED_BYTES  ((size_t)512 * 1024 * 1024)

/* Groups and processes that are not gone by then are left to the kernel. */
#define STOP_LIMIT_NS (15 * NS_PER_S)

// ---- messages ----

status_t core_post(struct core *core, struct core_message *message)
{
    return mailbox_post(&core->inbox, message);
}

void core_sweep(struct core *core)
{
    atomic_store(&core->sweep_wanted, true);
    mailbox_wake(&core->inbox);
}

void core_end(struct core *core, int kind)
{
    atomic_store(kind == CORE_DRAIN ? &core->drain_wanted : &core->stop_wanted, true);
    mailbox_wake(&core->inbox);
}

status_t core_result(const struct core *core)
{
    return core->result;
}

uint64_t core_silence_ns(const struct core *core)
{
    const uint64_t ticked = atomic_load(&core->ticked_ns);
    const uint64_t now = clock_now_ns(core->clock);
    return now > ticked ? now - ticked : 0;
}

/* A message that is part of its request or link may be gone once that was handled. */
static void handle(struct core *core, struct core_message *message)
{
    struct core_message *owned = message->owned ? message : NULL;
    switch (message->kind) {
    case CORE_REQUEST:
        core_requests_admit(core, message->request);
        break;
    case CORE_REQUEST_GONE:
        core_requests_gone(core, message->request);
        break;
    case CORE_LINK_MESSAGE:
        core_groups_message(core, message->link, message->data, message->size);
        link_release(message->link);
        break;
    case CORE_LINK_GONE:
        core_groups_gone(core, message->link);
        break;
    case CORE_CALL:
        core_status_call(core, message);
        rpc_call_release(message->call);
        break;
    default:
        break;
    }
    if (owned != NULL) {
        free(owned->data);
        free(owned);
    }
}

// ---- serving or not ----

static int gate_mode_of(const struct core *core)
{
    if (core->phase != CORE_SERVING) {
        return GATE_DRAINING;
    }
    if (router_any_ready(&core->router)) {
        return GATE_OPEN;
    }
    bool lost = false;
    for (int i = 0; i < core->n_groups; i++) {
        lost = lost || core->groups[i].was_ready;
    }
    if (core_groups_are_expected(core)) {
        return lost ? GATE_LOST : GATE_LOADING;
    }
    return GATE_NO_WORKERS;
}

void core_update_serving(struct core *core)
{
    unsigned n_ready = 0;
    for (int i = 0; i < core->n_groups; i++) {
        n_ready += core->groups[i].state == WIRE_GROUP_READY ? 1 : 0;
    }
    const int mode = gate_mode_of(core);
    const bool serving = mode == GATE_OPEN;
    atomic_store(&core->gate->max_live, (unsigned)core->config->max_num_queued_reqs +
                                            n_ready * core->router.max_in_flight);
    atomic_store(&core->gate->mode, mode);
    rpc_server_set_health(core->options.server, "kvasir.v1.Inference", serving);
    metrics_set(core->metrics, METRICS_SERVING, serving ? 1 : 0);
    if (serving && !core->said_ready) {
        core->said_ready = true;
        log_write(&core->log, LOG_INFO, "ready", "address=%s",
                  rpc_server_address(core->options.server));
        if (core->options.on_ready != NULL) {
            core->options.on_ready(core->options.user);
        }
    }
}

// ---- ending ----

static void begin_stop(struct core *core)
{
    static const char shutting_down[] = "the server is shutting down";
    const status_t why = status_errorf(STATUS_UNAVAILABLE, shutting_down);
    core->phase = CORE_STOPPING;
    core->stop_until_ns = core->now_ns + STOP_LIMIT_NS;
    const uint32_t n = core_requests_fail(core, -1, &why);
    log_write(&core->log, LOG_INFO, "stopping", "requests_ended=%u", n);
    core_status_tell_drained(core, n);
    core_groups_shutdown(core);
    core_update_serving(core);
}

void core_drain(struct core *core, uint64_t grace_ns)
{
    const uint64_t until_ns = core->now_ns + grace_ns;
    if (core->phase == CORE_SERVING) {
        core->phase = CORE_DRAINING;
        core->drain_until_ns = until_ns;
        log_write(&core->log, LOG_INFO, "draining", "live=%u", core->n_live);
        core_update_serving(core);
    } else if (core->phase == CORE_DRAINING && until_ns < core->drain_until_ns) {
        core->drain_until_ns = until_ns;
    }
}

void core_fail(struct core *core, const status_t *status)
{
    if (core->phase == CORE_STOPPING || core->phase == CORE_STOPPED) {
        return;
    }
    core->result = *status;
    begin_stop(core);
}

static void take_orders(struct core *core)
{
    if (atomic_exchange(&core->drain_wanted, false)) {
        core_drain(core, (uint64_t)(core->config->shutdown_timeout_s * (double)NS_PER_S));
    }
    if (atomic_exchange(&core->stop_wanted, false) && core->phase < CORE_STOPPED) {
        core->hurried = true;
        if (core->phase < CORE_STOPPING) {
            begin_stop(core);
        }
        core_groups_hurry(core);
    }
}

static void advance_phase(struct core *core)
{
    if (core->phase == CORE_DRAINING) {
        const bool idle = core->n_live == 0 && atomic_load(&core->gate->live) == 0;
        if (idle || core->now_ns >= core->drain_until_ns) {
            begin_stop(core);
        }
    }
    if (core->phase == CORE_STOPPING) {
        const bool late = core->now_ns >= core->stop_until_ns;
        if (late || core_groups_are_gone(core)) {
            core->phase = CORE_STOPPED;
        }
    }
}

// ---- the thread ----

static void tick(struct core *core)
{
    atomic_store(&core->ticked_ns, core->now_ns);
    take_orders(core);
    if (atomic_exchange(&core->sweep_wanted, false)) {
        core_requests_sweep(core);
        core_groups_sweep(core);
    }
    core_groups_tick(core);
    core_requests_tick(core);
    core_requests_dispatch(core);
    advance_phase(core);
    core_status_gauges(core);
    core_status_tick(core);
}

static void *core_main(void *arg)
{
    struct core *core = arg;
    uint64_t next_tick_ns = 0;
    while (core->phase != CORE_STOPPED) {
        core->now_ns = clock_now_ns(core->clock);
        const bool orders = atomic_load(&core->stop_wanted) || atomic_load(&core->drain_wanted) ||
                            atomic_load(&core->sweep_wanted);
        if (core->now_ns >= next_tick_ns || orders) {
            tick(core);
            next_tick_ns = core->now_ns + CORE_TICK_NS;
        }
        const uint64_t wake_ns =
            core->next_deadline_ns < next_tick_ns ? core->next_deadline_ns : next_tick_ns;
        struct core_message *message =
            mailbox_take(&core->inbox, wake_ns > core->now_ns ? wake_ns - core->now_ns : 0);
        core->now_ns = clock_now_ns(core->clock);
        if (message != NULL) {
            handle(core, message);
        }
        if (core->now_ns >= core->next_deadline_ns) {
            core_requests_expire(core);
            core_requests_dispatch(core);
        }
    }
    // Here, not in core_free: children die with the thread that forked them.
    supervisor_destroy(&core->supervisor);
    if (core->options.on_stopped != NULL) {
        core->options.on_stopped(core->options.user);
    }
    return NULL;
}

// ---- life ----

static void init_supervisor(struct core *core)
{
    static const char *const levels[] = {"error", "warn", "info", "debug", "trace"};
    static const char *const devices[] = {
        [CONFIG_TABLE_DEVICE_AUTO] = "auto",
        [CONFIG_TABLE_DEVICE_CPU] = "cpu",
        [CONFIG_TABLE_DEVICE_CUDA] = "cuda",
    };
    const struct supervisor_options options = {
        .mpirun = core->config->mpirun,
        .mpirun_args = core->config->mpirun_args,
        .worker = core->options.worker,
        .address = rpc_server_address(core->options.server),
        .join_token_file = core->config->join_token_file,
        .device = devices[core->config->device],
        .log_level = levels[core->config->log_level],
        .n_ranks = core->model->plan.tp * core->model->plan.pp,
        .n_groups = (int32_t)core->config->replicas,
        .log = log_module(&core->options.log, "supervisor"),
    };
    supervisor_init(&core->supervisor, &options);
    core->supervises = core->config->launcher == CONFIG_TABLE_LAUNCHER_MPIRUN;
}

status_t core_new(const struct core_options *options, struct core **core_out)
{
    struct core *core = calloc(1, sizeof *core);
    if (core == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for the core");
    }
    core->options = *options;
    core->config = options->config;
    core->model = options->model;
    core->metrics = options->metrics;
    core->gate = options->gate;
    core->log = log_module(&options->log, "core");
    core->clock = clock_system();
    core->result = status_ok();
    core->next_seq_id = 1;
    core->next_deadline_ns = RPC_NO_DEADLINE;
    core->started_ns = clock_now_ns(core->clock);
    core->interval_ns = 100 * NS_PER_MS;
    atomic_init(&core->ticked_ns, core->started_ns);
    arena_init(&core->scratch, MAX_SCRATCH_BYTES);
    bytes_init(&core->packed, MAX_PACKED_BYTES);
    status_t s;
    TRY_GOTO(s, mailbox_init(&core->inbox, INBOX_CAPACITY), undo_core);
    TRY_GOTO(s,
             router_init(&core->router, (uint32_t)core->config->max_num_queued_reqs,
                         (uint64_t)core->config->max_num_queued_tokens,
                         4 * (uint32_t)core->config->max_num_seqs),
             undo_inbox);
    *core_out = core;
    return status_ok();

undo_inbox:
    mailbox_destroy(&core->inbox);
undo_core:
    free(core);
    return s;
}

status_t core_start(struct core *core)
{
    init_supervisor(core);
    core->now_ns = clock_now_ns(core->clock);
    core_groups_init(core);
    core_update_serving(core);
    rpc_server_set_health(core->options.server, "", true);
    rpc_server_set_health(core->options.server, "kvasir.v1.Batch", false);
    if (pthread_create(&core->thread, NULL, core_main, core) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "cannot start the core thread");
    }
    core->thread_started = true;
    return status_ok();
}

/* What was posted too late to be handled. */
static void drop(struct core_message *message)
{
    struct core_message copy = *message;
    if (copy.owned) {
        free(copy.data);
        free(message);
    }
    if (copy.request != NULL) {
        request_release(copy.request);
    }
    if (copy.link != NULL) {
        link_release(copy.link);
    }
    if (copy.call != NULL) {
        rpc_call_release(copy.call);
    }
}

void core_join(struct core *core)
{
    if (core->thread_started) {
        core_end(core, CORE_STOP);
        pthread_join(core->thread, NULL);
        core->thread_started = false;
    }
    core_status_close(core);
}

void core_free(struct core *core)
{
    if (core == NULL) {
        return;
    }
    core_join(core);
    mailbox_close(&core->inbox);
    for (struct core_message *m; (m = mailbox_take(&core->inbox, 0)) != NULL;) {
        drop(m);
    }
    core_requests_close(core);
    for (int i = 0; i < core->n_groups; i++) {
        if (core->groups[i].link != NULL) {
            link_release(core->groups[i].link);
        }
    }
    router_destroy(&core->router);
    mailbox_destroy(&core->inbox);
    arena_destroy(&core->scratch);
    bytes_destroy(&core->packed);
    free(core);
}

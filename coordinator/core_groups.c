/*
 * core_groups.c - worker groups: who may attach, what they say, and when one is lost
 *
 * Everything that ends a group's generation comes through core_groups_lost, which leaves the group LOST without link,
 * its requests ended and its process, if any, told to end. The next generation starts only when that process is
 * gone: two of them would fight over the host's memory.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/version.h"
#include "coordinator/core_parts.h"

#define MIN_BACKOFF_NS (NS_PER_S / 2)
#define MAX_BACKOFF_NS (10 * NS_PER_S)

/* Starts in a row, without any success, after which it is a mistake and not bad luck. */
#define MAX_FAILURES 3

/* Loading may wait for a disk, and a launched group for its host: patience is a multiple of the heartbeat's. */
#define LOADING_PATIENCE 10

#define KILL_AFTER_TERM_NS (3 * NS_PER_S)
#define HURRIED_KILL_NS    (2 * NS_PER_S)

/* What groups get to end by themselves: after their link broke, when the coordinator stops, and in a hurry. */
#define LOST_GRACE_NS    (2 * NS_PER_S)
#define STOP_GRACE_NS    (5 * NS_PER_S)
#define HURRIED_GRACE_NS (NS_PER_S / 2)

#define NEVER UINT64_MAX

static struct metrics_group *metrics_of(struct core *core, int group)
{
    return &core->metrics->groups[group];
}

static void set_state(struct core *core, int index, int state)
{
    struct core_group *group = &core->groups[index];
    if (group->state == state) {
        return;
    }
    progress_end(&group->loading);
    log_write(&core->log, LOG_INFO, "group state", "group=%d generation=%u from=%s to=%s", index,
              group->generation, wire_group_state_name(group->state), wire_group_state_name(state));
    group->state = state;
    router_set_ready(&core->router, index, state == WIRE_GROUP_READY);
    core_update_serving(core);
    core_status_tell_watchers(core);
}

static void begin_generation(struct core *core, int index)
{
    struct core_group *group = &core->groups[index];
    group->exists = true;
    group->restarts += group->generation > 0 ? 1 : 0;
    group->generation++;
    group->heard_ns = core->now_ns;
    group->load = (struct wire_load){0};
    group->failure = status_ok();
    group->term_at_ns = group->kill_at_ns = group->start_at_ns = NEVER;
    progress_begin(&group->loading, stderr, core->now_ns);
    core->n_groups = index >= core->n_groups ? index + 1 : core->n_groups;
    struct metrics_group *metrics = metrics_of(core, index);
    atomic_store(&metrics->generation, group->generation);
    atomic_store(&metrics->heard_ns, core->now_ns);
    atomic_store(&metrics->present, true);
}

// ---- processes ----

static void start_process(struct core *core, int index)
{
    struct core_group *group = &core->groups[index];
    begin_generation(core, index);
    group->supervised = true;
    const status_t s = supervisor_start(&core->supervisor, index, group->generation);
    if (!status_is_ok(&s)) {
        core_fail(core, &s);
        return;
    }
    set_state(core, index, WIRE_GROUP_STARTING);
}

static void schedule_start(struct core *core, struct core_group *group)
{
    if (group->backoff_ns < MIN_BACKOFF_NS) {
        group->backoff_ns = MIN_BACKOFF_NS;
    }
    group->start_at_ns = core->now_ns + group->backoff_ns;
    group->backoff_ns =
        2 * group->backoff_ns < MAX_BACKOFF_NS ? 2 * group->backoff_ns : MAX_BACKOFF_NS;
}

/* A failure that the next start would meet again: a bad model, a bad configuration, too little memory. */
static bool is_permanent(int code)
{
    switch (code) {
    case STATUS_INVALID_ARGUMENT:
    case STATUS_NOT_FOUND:
    case STATUS_PERMISSION_DENIED:
    case STATUS_UNAUTHENTICATED:
    case STATUS_RESOURCE_EXHAUSTED:
    case STATUS_FAILED_PRECONDITION:
    case STATUS_OUT_OF_RANGE:
    case STATUS_UNIMPLEMENTED:
    case STATUS_INTERNAL:
    case STATUS_DATA_LOSS:
        return true;
    default:
        return false;
    }
}

/* A supervised group's process is gone: start it again, or give up when that is no use. */
static void after_exit(struct core *core, int index, int wait_status)
{
    struct core_group *group = &core->groups[index];
    char how[96];
    supervisor_describe(wait_status, how, sizeof how);
    int code = STATUS_UNAVAILABLE;
    const bool refused = supervisor_is_permanent(wait_status, &code);
    status_t why = group->failure;
    if (status_is_ok(&why)) {
        why = status_errorf(code, "worker group %d: %s", index, how);
    }
    if (group->state != WIRE_GROUP_LOST) {
        core_groups_lost(core, index, METRICS_RESTART_EXIT, &why);
    }
    if (core->phase != CORE_SERVING && core->phase != CORE_DRAINING) {
        return;
    }
    const bool permanent = refused || (group->failure.code != STATUS_OK && is_permanent(why.code));
    if (!group->was_ready && permanent) {
        core_fail(core, &why);
        return;
    }
    if (!group->was_ready && ++group->n_failures >= MAX_FAILURES) {
        const status_t s = status_errorf(STATUS_UNAVAILABLE,
                                         "%s, %d times in a row" STATUS_FIX "see its output above",
                                         why.msg, group->n_failures);
        core_fail(core, &s);
        return;
    }
    log_write(&core->log, LOG_WARN, "group ended, starting it again",
              "group=%d generation=%u how=\"%s\"", index, group->generation, how);
    schedule_start(core, group);
}

/* Asks the process to end, and remembers when to insist. */
static void end_process(struct core *core, int index)
{
    struct core_group *group = &core->groups[index];
    if (!supervisor_is_running(&core->supervisor, index) || group->kill_at_ns != NEVER) {
        return;
    }
    supervisor_signal(&core->supervisor, index, SIGTERM);
    group->term_at_ns = NEVER;
    group->kill_at_ns = core->now_ns + (core->hurried ? HURRIED_KILL_NS : KILL_AFTER_TERM_NS);
}

// ---- losing a group ----

void core_groups_lost(struct core *core, int index, int reason, const status_t *why)
{
    struct core_group *group = &core->groups[index];
    struct link *link = group->link;
    group->link = NULL;
    if (link != NULL) {
        link->group = LINK_NO_GROUP;
        link_end(link, why);
        link_release(link);
    }
    const bool expected = group->state == WIRE_GROUP_DRAINING || core->phase == CORE_STOPPING;
    set_state(core, index, WIRE_GROUP_LOST);
    if (expected) {
        return; // its process has time until term_at_ns
    }
    atomic_fetch_add(&metrics_of(core, index)->restarts[reason], 1);
    const status_t lost =
        status_errorf(STATUS_UNAVAILABLE, "worker group %d was lost (%s)", index, why->msg);
    const uint32_t n = core_requests_fail(core, index, &lost);
    // A failed start is told by what follows it: another start, or the end of the program.
    const bool quiet = group->supervised && !group->was_ready;
    char quoted[STATUS_MSG_BYTES];
    log_write(&core->log, quiet ? LOG_INFO : LOG_WARN, "group lost",
              "group=%d generation=%u requests_ended=%u err=%s", index, group->generation, n,
              log_quote(why->msg, quoted, sizeof quoted));
    if (reason == METRICS_RESTART_HANG) {
        end_process(core, index);
    } else if (supervisor_is_running(&core->supervisor, index)) {
        // It ends by itself, or mpirun ends it: one that is told to end while it does so has crashed.
        group->term_at_ns = core->now_ns + LOST_GRACE_NS;
    }
}

void core_groups_gone(struct core *core, struct link *link)
{
    if (link->group != LINK_NO_GROUP && core->groups[link->group].link == link) {
        struct core_group *group = &core->groups[link->group];
        const status_t why = group->failure.code != STATUS_OK
                                 ? group->failure
                                 : status_errorf(STATUS_UNAVAILABLE, "its connection ended");
        core_groups_lost(core, link->group, METRICS_RESTART_EXIT, &why);
    }
    link_release(link);
}

void core_groups_sweep(struct core *core)
{
    for (int i = 0; i < core->n_groups; i++) {
        const struct link *link = core->groups[i].link;
        if (link != NULL && atomic_load(&link->closed) != 0) {
            const status_t why = status_errorf(STATUS_UNAVAILABLE, "its connection ended");
            core_groups_lost(core, i, METRICS_RESTART_EXIT, &why);
        }
    }
}

// ---- attaching ----

/* Compares without telling by its duration where the first difference is. */
static bool is_same_secret(const char *a, const char *b)
{
    const size_t size = strlen(b);
    unsigned difference = strlen(a) == size ? 0 : 1;
    for (size_t i = 0; i < size && difference == 0; i++) {
        difference |= (unsigned)((unsigned char)a[i] ^ (unsigned char)b[i]) << 1;
    }
    return difference == 0;
}

static status_t check_supervised(const struct core *core, const struct wire_hello *hello)
{
    if (!core->supervises || hello->group_id >= (uint32_t)core->n_groups) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "worker group %u was not started by this "
                             "coordinator",
                             hello->group_id);
    }
    const struct core_group *group = &core->groups[hello->group_id];
    if (hello->generation != group->generation || group->state != WIRE_GROUP_STARTING) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "worker group %u, generation %u: stale, now is generation %u",
                             hello->group_id, hello->generation, group->generation);
    }
    return status_ok();
}

static status_t check_hello(const struct core *core, const struct wire_hello *hello)
{
    const uint32_t world = (uint32_t)(core->model->plan.tp * core->model->plan.pp);
    if (hello->link_version != WIRE_LINK_VERSION) {
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "worker %s speaks link version %u, the coordinator %s speaks %d",
                             hello->version, hello->link_version, version_number(),
                             WIRE_LINK_VERSION);
    }
    if (core->options.join_token != NULL &&
        !is_same_secret(hello->join_token, core->options.join_token)) {
        return status_errorf(STATUS_UNAUTHENTICATED, "the join token is wrong" STATUS_FIX
                                                     "give workers the same --join-token-file");
    }
    if (hello->world_size != world) {
        return status_errorf(
            STATUS_FAILED_PRECONDITION,
            "the worker group has %u ranks, the coordinator expects %u (tp %d x pp %d)" STATUS_FIX
            "start it with mpirun -n %u",
            hello->world_size, world, core->model->plan.tp, core->model->plan.pp, world);
    }
    if (core->phase != CORE_SERVING) {
        return status_errorf(STATUS_UNAVAILABLE, "the coordinator is shutting down");
    }
    return hello->has_group ? check_supervised(core, hello) : status_ok();
}

/* A place for a group that was started by hand: one that a lost group left, or a new one. */
static int free_place(const struct core *core)
{
    for (int i = 0; i < core->n_groups; i++) {
        if (!core->groups[i].supervised && core->groups[i].state == WIRE_GROUP_LOST) {
            return i;
        }
    }
    return core->n_groups < CORE_MAX_GROUPS ? core->n_groups : -1;
}

static status_t place(struct core *core, const struct wire_hello *hello, int *index_out)
{
    if (hello->has_group) {
        *index_out = (int)hello->group_id;
        return status_ok();
    }
    const int index = free_place(core);
    if (index < 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "%d worker groups are attached, at most %d",
                             core->n_groups, CORE_MAX_GROUPS);
    }
    begin_generation(core, index);
    *index_out = index;
    return status_ok();
}

static status_t send_assignment(struct core *core, int index, struct link *link)
{
    const struct coordinator_config *config = core->config;
    const struct wire_coordinator_message m = {
        .kind = WIRE_COORDINATOR_ASSIGN,
        .assign = {.group_id = (uint32_t)index,
                   .generation = core->groups[index].generation,
                   .model_dir = core->model->dir,
                   .dtype = core->model->dtype,
                   .quantization = core->model->quantization,
                   .kv_dtype = core->model->kv_dtype,
                   .max_model_len = core->model->context_tokens,
                   .max_num_seqs = (uint32_t)config->max_num_seqs,
                   .max_num_batched_tokens = (uint32_t)config->max_num_batched_tokens,
                   .kv_cache_bytes = (uint64_t)config->kv_cache_memory_bytes,
                   .swap_space_bytes = (uint64_t)config->swap_space_bytes,
                   .dummy_weights = config->load_format == CONFIG_TABLE_LOAD_DUMMY,
                   .weights_seed = (uint64_t)config->seed,
                   .gpu_memory_utilization = config->gpu_memory_utilization,
                   .prefix_caching = config->enable_prefix_caching,
                   .determinism = config->determinism,
                   .comm = config->comm,
                   .collective_timeout_s = config->collective_timeout_s,
                   .threads = (uint32_t)config->threads,
                   .plan = core->model->packed_plan.data,
                   .plan_bytes = core->model->packed_plan.size}};
    return link_send(link, &m);
}

static status_t attach(struct core *core, struct link *link, const struct wire_hello *hello)
{
    int index = -1;
    TRY(check_hello(core, hello));
    TRY(place(core, hello, &index));
    struct core_group *group = &core->groups[index];
    link_acquire(link);
    link->group = index;
    group->link = link;
    group->heard_ns = core->now_ns;
    snprintf(group->host, sizeof group->host, "%s", hello->host);
    snprintf(group->device, sizeof group->device, "%s", hello->device);
    char host[160];
    log_write(&core->log, LOG_INFO, "group attached",
              "group=%d generation=%u ranks=%u pid=%u host=%s", index, group->generation,
              hello->world_size, hello->pid, log_quote(hello->host, host, sizeof host));
    set_state(core, index, WIRE_GROUP_LOADING);
    const status_t s = send_assignment(core, index, link);
    if (!status_is_ok(&s)) {
        core_groups_lost(core, index, METRICS_RESTART_LOST, &s);
    }
    return status_ok();
}

// ---- messages ----

static status_t on_ready(struct core *core, int index, const struct wire_ready *ready)
{
    struct core_group *group = &core->groups[index];
    if (group->state != WIRE_GROUP_LOADING) {
        return status_errorf(STATUS_INTERNAL, "it said ready while %s",
                             wire_group_state_name(group->state));
    }
    if (ready->n_lanes != (uint32_t)core->model->plan.n_lanes || ready->kv_blocks_per_lane == 0) {
        return status_errorf(STATUS_INTERNAL,
                             "it has %u lanes of %llu KV blocks, the plan has %d lanes",
                             ready->n_lanes, (unsigned long long)ready->kv_blocks_per_lane,
                             core->model->plan.n_lanes);
    }
    group->n_lanes = ready->n_lanes;
    group->n_blocks_per_lane = ready->kv_blocks_per_lane;
    group->load.kv_blocks_total = ready->kv_blocks_per_lane * ready->n_lanes;
    group->was_ready = true;
    group->n_failures = 0;
    group->backoff_ns = 0;
    group->tokens_window = 0;
    group->window_start_ns = core->now_ns;
    const uint64_t tokens = ready->kv_blocks_per_lane * PLAN_BLOCK_TOKENS;
    log_write(&core->log, LOG_INFO, "group loaded",
              "group=%d seconds=%.2f weight_bytes=%llu kv_bytes=%llu kv_tokens_per_lane=%llu",
              index, ready->load_seconds, (unsigned long long)ready->weight_bytes,
              (unsigned long long)ready->kv_bytes, (unsigned long long)tokens);
    if (tokens < core->model->context_tokens) {
        log_write(&core->log, LOG_WARN, "KV cache is smaller than the context",
                  "group=%d kv_tokens_per_lane=%llu context=%u", index, (unsigned long long)tokens,
                  core->model->context_tokens);
    }
    set_state(core, index, WIRE_GROUP_READY);
    core_requests_dispatch(core);
    return status_ok();
}

/* Of a count that a group keeps since it started. */
static void add_growth(struct core *core, int counter, uint64_t before, uint64_t now)
{
    if (now > before) {
        metrics_add(core->metrics, counter, now - before);
    }
}

static void take_load(struct core *core, int index, const struct wire_load *load)
{
    struct core_group *group = &core->groups[index];
    add_growth(core, METRICS_PREEMPTIONS, group->load.preemptions_total, load->preemptions_total);
    add_growth(core, METRICS_PREFIX_CACHE_QUERIES, group->load.prefix_queries_total,
               load->prefix_queries_total);
    add_growth(core, METRICS_PREFIX_CACHE_HITS, group->load.prefix_hits_total,
               load->prefix_hits_total);
    add_growth(core, METRICS_RECOMPUTE_TOKENS, group->load.recompute_tokens_total,
               load->recompute_tokens_total);
    add_growth(core, METRICS_SWAPPED_OUT_BLOCKS, group->load.swapped_out_blocks_total,
               load->swapped_out_blocks_total);
    add_growth(core, METRICS_SWAPPED_IN_BLOCKS, group->load.swapped_in_blocks_total,
               load->swapped_in_blocks_total);
    if (load->prompt_tokens_total > group->load.prompt_tokens_total) {
        const uint64_t found = load->prefix_hits_total - group->load.prefix_hits_total;
        pace_prompt(&core->pace,
                    found + load->prompt_tokens_total - group->load.prompt_tokens_total,
                    load->prompt_ns_total - group->load.prompt_ns_total, core->now_ns);
    }
    const uint64_t total =
        load->kv_blocks_total > 0 ? load->kv_blocks_total : group->load.kv_blocks_total;
    group->load = *load;
    group->load.kv_blocks_total = total;
    atomic_store(&metrics_of(core, index)->kv_blocks_used, load->kv_blocks_used);
    atomic_store(&metrics_of(core, index)->kv_blocks_total, total);
}

static status_t on_step_result(struct core *core, int index, const struct wire_step_result *result)
{
    const uint32_t generation = core->groups[index].generation;
    if (core->groups[index].state != WIRE_GROUP_READY) {
        return core->groups[index].state == WIRE_GROUP_DRAINING
                   ? status_ok()
                   : status_errorf(STATUS_INTERNAL, "it sent a result while %s",
                                   wire_group_state_name(core->groups[index].state));
    }
    take_load(core, index, &result->load);
    for (size_t i = 0; i < result->n_outputs; i++) {
        core->groups[index].tokens_window += result->outputs[i].n_tokens;
        core_requests_output(core, index, &result->outputs[i]);
        if (core->groups[index].state != WIRE_GROUP_READY ||
            core->groups[index].generation != generation) {
            return status_ok(); // lost over an answer to it
        }
    }
    core_requests_dispatch(core);
    return status_ok();
}

static status_t on_failed(struct core *core, int index, const status_t *failed)
{
    struct core_group *group = &core->groups[index];
    group->failure = failed->code != STATUS_OK
                         ? *failed
                         : status_errorf(STATUS_UNKNOWN, "it failed and did not say why");
    core_groups_lost(core, index, METRICS_RESTART_EXIT, &group->failure);
    return status_ok();
}

static status_t on_group_message(struct core *core, int index, const struct wire_worker_message *m)
{
    switch (m->kind) {
    case WIRE_WORKER_LOADING:
        progress_show(&core->groups[index].loading, index, m->loading.bytes_done,
                      m->loading.bytes_total, core->now_ns);
        return status_ok();
    case WIRE_WORKER_READY:
        return on_ready(core, index, &m->ready);
    case WIRE_WORKER_STEP_RESULT:
        return on_step_result(core, index, &m->step_result);
    case WIRE_WORKER_HEARTBEAT:
        take_load(core, index, &m->heartbeat);
        return status_ok();
    case WIRE_WORKER_FAILED:
        return on_failed(core, index, &m->failed);
    default:
        return status_errorf(STATUS_INTERNAL, "it sent an unexpected message of kind %d", m->kind);
    }
}

static status_t on_first_message(struct core *core, struct link *link,
                                 const struct wire_worker_message *m)
{
    if (m->kind != WIRE_WORKER_HELLO) {
        return status_errorf(STATUS_FAILED_PRECONDITION, "the first message must be hello");
    }
    return attach(core, link, &m->hello);
}

void core_groups_message(struct core *core, struct link *link, const uint8_t *data, size_t size)
{
    if (link->refused) {
        return;
    }
    arena_reset(&core->scratch);
    struct wire_worker_message m;
    status_t s = wire_worker_message_unpack(data, size, &core->scratch, &m);
    const int index = link->group;
    if (index == LINK_NO_GROUP) {
        if (status_is_ok(&s)) {
            s = on_first_message(core, link, &m);
        }
        if (!status_is_ok(&s)) {
            log_status(&core->log, LOG_WARN, "worker refused", &s);
            link_end(link, &s);
        }
        return;
    }
    core->groups[index].heard_ns = core->now_ns;
    atomic_store(&metrics_of(core, index)->heard_ns, core->now_ns);
    if (status_is_ok(&s)) {
        s = on_group_message(core, index, &m);
    }
    if (!status_is_ok(&s) && core->groups[index].link == link) {
        core_groups_lost(core, index, METRICS_RESTART_LOST, &s);
    }
}

// ---- time ----

static void check_silence(struct core *core, int index)
{
    struct core_group *group = &core->groups[index];
    double patience_s = core->config->heartbeat_timeout_s;
    if (group->state == WIRE_GROUP_STARTING || group->state == WIRE_GROUP_LOADING) {
        patience_s *= LOADING_PATIENCE;
    } else if (group->state != WIRE_GROUP_READY) {
        return;
    }
    const double step_s = (double)group->load.step_age_ns * 1e-9;
    if (step_s > core->config->step_timeout_s) {
        const status_t why =
            status_errorf(STATUS_UNAVAILABLE, "a step has run for %.1f s, --step-timeout is %.1f s",
                          step_s, core->config->step_timeout_s);
        core_groups_lost(core, index, METRICS_RESTART_HANG, &why);
        return;
    }
    const double silence_s = (double)(core->now_ns - group->heard_ns) * 1e-9;
    if (core->now_ns > group->heard_ns && silence_s > patience_s) {
        const status_t why =
            status_errorf(STATUS_UNAVAILABLE, "not heard of for %.1f s", silence_s);
        core_groups_lost(core, index, METRICS_RESTART_HANG, &why);
    }
}

static void tend_process(struct core *core, int index)
{
    struct core_group *group = &core->groups[index];
    int wait_status;
    if (supervisor_reap(&core->supervisor, index, &wait_status)) {
        group->term_at_ns = group->kill_at_ns = NEVER;
        after_exit(core, index, wait_status);
    } else if (core->now_ns >= group->kill_at_ns) {
        supervisor_signal(&core->supervisor, index, SIGKILL);
    } else if (core->now_ns >= group->term_at_ns) {
        end_process(core, index);
    } else if (core->now_ns >= group->start_at_ns && core->phase == CORE_SERVING) {
        start_process(core, index);
    }
}

static void update_rate(struct core *core, struct core_group *group)
{
    const uint64_t window_ns = core->now_ns - group->window_start_ns;
    if (window_ns >= 2 * NS_PER_S) {
        group->tokens_per_second = (double)group->tokens_window * 1e9 / (double)window_ns;
        group->tokens_window = 0;
        group->window_start_ns = core->now_ns;
    }
}

void core_groups_tick(struct core *core)
{
    for (int i = 0; i < core->n_groups; i++) {
        check_silence(core, i);
        if (core->groups[i].supervised) {
            tend_process(core, i);
        }
        update_rate(core, &core->groups[i]);
    }
}

// ---- start and end of all ----

void core_groups_init(struct core *core)
{
    for (int i = 0; core->supervises && i < core->config->replicas; i++) {
        struct core_group *group = &core->groups[i];
        group->exists = true;
        group->supervised = true;
        group->state = WIRE_GROUP_STARTING;
        group->heard_ns = core->now_ns;
        group->term_at_ns = group->kill_at_ns = NEVER;
        group->start_at_ns =
            core->now_ns; // the core thread starts it: children die with their parent
        core->n_groups = i + 1;
    }
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

void core_groups_hurry(struct core *core)
{
    for (int i = 0; i < core->n_groups; i++) {
        struct core_group *group = &core->groups[i];
        const uint64_t term_at_ns = core->now_ns + HURRIED_GRACE_NS;
        if (group->kill_at_ns == NEVER) {
            group->term_at_ns = earlier(group->term_at_ns, term_at_ns);
        } else {
            group->kill_at_ns = earlier(group->kill_at_ns, core->now_ns + HURRIED_KILL_NS);
        }
    }
}

void core_groups_shutdown(struct core *core)
{
    const struct wire_coordinator_message m = {.kind = WIRE_COORDINATOR_SHUTDOWN};
    for (int i = 0; i < core->n_groups; i++) {
        struct core_group *group = &core->groups[i];
        group->start_at_ns = NEVER;
        group->term_at_ns = core->now_ns + STOP_GRACE_NS;
        if (group->link != NULL) {
            set_state(core, i, WIRE_GROUP_DRAINING);
            const status_t s = link_send(group->link, &m);
            if (!status_is_ok(&s)) {
                core_groups_lost(core, i, METRICS_RESTART_LOST, &s);
            }
        }
    }
}

bool core_groups_are_gone(const struct core *core)
{
    for (int i = 0; i < core->n_groups; i++) {
        if (core->groups[i].link != NULL || supervisor_is_running(&core->supervisor, i)) {
            return false;
        }
    }
    return true;
}

bool core_groups_are_expected(const struct core *core)
{
    for (int i = 0; i < core->n_groups; i++) {
        const struct core_group *group = &core->groups[i];
        if (group->supervised || group->state == WIRE_GROUP_LOADING) {
            return true;
        }
    }
    return false;
}

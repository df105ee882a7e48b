/*
 * core_admission.c - whether a request is taken: not twice, not too long, and not when it would wait or take too long
 *
 * Time is estimated from measured rates (pace.h) and from what is ahead; what was not measured lately refuses nothing.
 */
#include <string.h>

#include "coordinator/core_parts.h"
#include "coordinator/validate.h"

/* A refused client is not told to come back sooner. */
#define MIN_RETRY_MS 20
#define MAX_RETRY_MS 10000

#define SECONDS(ns) ((double)(ns)*1e-9)

/* A prompt is computed for each sample, but once for all beams. */
static uint32_t waiting_tokens(const struct request *request)
{
    const uint32_t n_prompts = request_is_beam_search(request) ? 1 : request->wire.sampling.n;
    const uint64_t n = (uint64_t)request->prompt.n * n_prompts;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

// ---- time ----

/* Tokens that are computed whatever they turn out to be: any other may be the last. */
static uint64_t sure_tokens(const struct request *request)
{
    const struct wire_stopping *stopping = &request->wire.stopping;
    const bool stops =
        !stopping->ignore_eos || stopping->n_stop > 0 || stopping->stop_token_ids.n > 0;
    if (!stops) {
        return stopping->max_tokens;
    }
    return stopping->min_tokens > 0 ? stopping->min_tokens : 1;
}

static bool goes_before(const struct request *other, const struct request *request)
{
    return other != request && other->wire.priority <= request->wire.priority;
}

/* Sequences that the group can compute side by side. */
static uint32_t places_of(const struct core *core, const struct core_group *group)
{
    const struct wire_load *load = &group->load;
    const bool blocks_are_taken = load->kv_blocks_used >= load->kv_blocks_total / 10 * 9;
    const bool by_blocks = load->waiting > 0 && load->running > 0 && blocks_are_taken;
    const uint32_t most = (uint32_t)core->config->max_num_seqs;
    return by_blocks && load->running < most ? load->running : most;
}

static uint32_t places_of_all(const struct core *core)
{
    uint32_t n = 0;
    for (int i = 0; i < core->n_groups; i++) {
        n += core->groups[i].state == WIRE_GROUP_READY ? places_of(core, &core->groups[i]) : 0;
    }
    return n;
}

static struct pace_work work_of(const struct core *core, const struct request *request)
{
    const uint32_t n = request_n_seqs(request);
    uint32_t n_groups = 0;
    for (int i = 0; i < core->n_groups; i++) {
        n_groups += core->groups[i].state == WIRE_GROUP_READY ? 1 : 0;
    }
    n_groups = n_groups > 0 ? n_groups : 1;
    uint64_t tokens_ahead = 0, seqs = n;
    for (const struct request *other = core->live; other != NULL; other = other->next_live) {
        if (other->answer.n_tokens > 0) {
            seqs += request_n_seqs(other);
        } else if (goes_before(other, request)) {
            seqs += request_n_seqs(other);
            tokens_ahead += other->prompt.n;
        }
    }
    const uint64_t places = places_of_all(core);
    const uint64_t side_by_side = seqs < places ? seqs : places;
    return (struct pace_work){.prompt_tokens = request->prompt.n,
                              .tokens = sure_tokens(request),
                              .tokens_ahead = tokens_ahead / n_groups,
                              .without_place = seqs > places ? seqs - places : 0,
                              .places = places,
                              .batch = (uint32_t)((side_by_side + n_groups - 1) / n_groups)};
}

static void set_retry(struct request *request, uint64_t wait_ns)
{
    const uint64_t ms = wait_ns / NS_PER_MS;
    request->retry_ms = (uint32_t)(ms < MIN_RETRY_MS   ? MIN_RETRY_MS
                                   : ms > MAX_RETRY_MS ? MAX_RETRY_MS
                                                       : ms);
}

/* One that could make it alone is told to come back, one that could not is late already. */
static status_t check_deadline(struct core *core, struct request *request,
                               const struct pace_work *work, const struct pace_estimate *estimate)
{
    if (request->deadline_ns == RPC_NO_DEADLINE) {
        return status_ok();
    }
    const uint64_t left_ns =
        request->deadline_ns > core->now_ns ? request->deadline_ns - core->now_ns : 0;
    const uint64_t alone_ns = estimate->prefill_ns + estimate->decode_ns;
    if (left_ns > 0 && pace_total_ns(estimate) <= left_ns) {
        return status_ok();
    }
    metrics_reject(core->metrics, METRICS_REJECTED_DEADLINE);
    if (alone_ns < left_ns) {
        set_retry(request, pace_total_ns(estimate) - left_ns);
    }
    return status_errorf(
        alone_ns < left_ns ? STATUS_RESOURCE_EXHAUSTED : STATUS_DEADLINE_EXCEEDED,
        "estimated %.3f s, the deadline leaves %.3f s: waiting %.3f s (%llu prompt tokens ahead, %llu "
        "sequences without a place), prompt of %llu tokens %.3f s, %llu tokens %.3f s",
        SECONDS(pace_total_ns(estimate)), SECONDS(left_ns), SECONDS(estimate->wait_ns),
        (unsigned long long)work->tokens_ahead, (unsigned long long)work->without_place,
        (unsigned long long)work->prompt_tokens, SECONDS(estimate->prefill_ns),
        (unsigned long long)work->tokens, SECONDS(estimate->decode_ns));
}

static status_t check_wait(struct core *core, struct request *request, const struct pace_work *work,
                           const struct pace_estimate *estimate)
{
    const double max_s = core->config->max_queue_time_s;
    if (max_s <= 0 || SECONDS(estimate->wait_ns) <= max_s) {
        return status_ok();
    }
    metrics_reject(core->metrics, METRICS_REJECTED_OVERLOAD);
    set_retry(request, estimate->wait_ns - (uint64_t)(max_s * (double)NS_PER_S));
    return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                         "it would wait %.3f s behind %llu prompt tokens and with %llu sequences "
                         "without a place, at most %g s (--max-queue-time)",
                         SECONDS(estimate->wait_ns), (unsigned long long)work->tokens_ahead,
                         (unsigned long long)work->without_place, max_s);
}

static status_t check_time(struct core *core, struct request *request)
{
    if (request->deadline_ns == RPC_NO_DEADLINE && core->config->max_queue_time_s <= 0) {
        return status_ok();
    }
    const struct pace_work work = work_of(core, request);
    const struct pace_estimate estimate = pace_estimate(&core->pace, &work, core->now_ns);
    TRY(check_wait(core, request, &work, &estimate));
    return check_deadline(core, request, &work, &estimate);
}

// ---- the rest ----

static status_t check_length(const struct core *core, const struct request *request)
{
    // What a group can hold may be less than the model's context: better said now than never finished.
    uint64_t most = 0;
    for (int i = 0; i < core->n_groups; i++) {
        const uint64_t tokens = core->groups[i].n_blocks_per_lane * PLAN_BLOCK_TOKENS;
        most = core->groups[i].state == WIRE_GROUP_READY && tokens > most ? tokens : most;
    }
    const struct validate_limits limits = {.context_tokens = most < core->model->context_tokens
                                                                 ? (uint32_t)most
                                                                 : core->model->context_tokens};
    return validate_length(request->prompt.n, request->wire.stopping.max_tokens, &limits);
}

static status_t check_serving(struct core *core)
{
    const int mode = atomic_load(&core->gate->mode);
    if (mode == GATE_OPEN) {
        return status_ok();
    }
    metrics_reject(core->metrics,
                   mode == GATE_DRAINING ? METRICS_REJECTED_DRAINING : METRICS_REJECTED_NOT_READY);
    return status_errorf(STATUS_UNAVAILABLE, "%s", gate_reason(mode));
}

static status_t counted(struct core *core, int rejection, status_t s)
{
    if (!status_is_ok(&s)) {
        metrics_reject(core->metrics, rejection);
    }
    return s;
}

static status_t check_new(struct core *core, const struct request *request)
{
    if (core_requests_are_live(core, request->wire.request_id)) {
        return status_errorf(STATUS_ALREADY_EXISTS, "request_id: %s is live",
                             request->wire.request_id);
    }
    return check_length(core, request);
}

status_t core_admission_enter(struct core *core, struct request *request)
{
    request->queue.priority = request->wire.priority;
    request->queue.n_seqs = request_n_seqs(request);
    request->queue.n_tokens = waiting_tokens(request);
    TRY(check_serving(core));
    TRY(counted(core, METRICS_REJECTED_INVALID, check_new(core, request)));
    TRY(check_time(core, request));
    return counted(core, METRICS_REJECTED_OVERLOAD, router_admit(&core->router, &request->queue));
}

status_t core_admission_recheck(struct core *core, struct request *request)
{
    if (request->deadline_ns == RPC_NO_DEADLINE) {
        return status_ok();
    }
    const struct pace_work work = {
        .prompt_tokens = request->prompt.n, .tokens = sure_tokens(request), .batch = 1};
    const struct pace_estimate estimate = pace_estimate(&core->pace, &work, core->now_ns);
    return check_deadline(core, request, &work, &estimate);
}

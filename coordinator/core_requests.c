/*
 * core_requests.c - requests from admission to their end
 *
 * A request that is QUEUED or RUNNING is in three places: the list `live` and the tables by id and by sequence. It is
 * put into them by admit alone, and taken out by end alone, which every way out leads through. Until its call is over
 * too it is in the list `ended`: a client that does not read must not keep what it was sent for ever.
 */
#include <stdio.h>
#include <string.h>

#include "coordinator/core_parts.h"
#include "coordinator/validate.h"

/* Refused clients are told to come back after the queue ahead of them, within reason. */
#define MIN_RETRY_MS 20
#define MAX_RETRY_MS 10000

/* What a client gets to read the rest of its answer in. */
#define LINGER_NS (30 * NS_PER_S)

/* Groups that a request may lose before it fails with the next one. */
#define MAX_RESTARTS 2

// ---- the tables ----

static struct request_sample **seq_bucket(struct core *core, uint64_t seq_id)
{
    return &core->by_seq[seq_id & (CORE_HASH_BUCKETS - 1)];
}

/* FNV-1a. Ids are short, and collisions only cost a comparison. */
static struct request **id_bucket(struct core *core, const char *id)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *c = id; *c != '\0'; c++) {
        hash = (hash ^ (uint8_t)*c) * 0x100000001b3u;
    }
    return &core->by_id[(hash ^ (hash >> 32)) & (CORE_HASH_BUCKETS - 1)];
}

static struct request_sample *find_seq(struct core *core, uint64_t seq_id)
{
    struct request_sample *sample = *seq_bucket(core, seq_id);
    while (sample != NULL && sample->seq_id != seq_id) {
        sample = sample->next_by_seq;
    }
    return sample;
}

static struct request *find_id(struct core *core, const char *id)
{
    struct request *request = *id_bucket(core, id);
    while (request != NULL && strcmp(request->wire.request_id, id) != 0) {
        request = request->next_by_id;
    }
    return request;
}

bool core_requests_are_live(struct core *core, const char *request_id)
{
    return find_id(core, request_id) != NULL;
}

static void enter_list(struct request **list, struct request *request)
{
    request->next_live = *list;
    request->previous_live = list;
    if (*list != NULL) {
        (*list)->previous_live = &request->next_live;
    }
    *list = request;
}

static void leave_list(struct request *request)
{
    *request->previous_live = request->next_live;
    if (request->next_live != NULL) {
        request->next_live->previous_live = request->previous_live;
    }
}

static void enter_tables(struct core *core, struct request *request)
{
    for (uint32_t i = 0; i < request->wire.sampling.n; i++) {
        struct request_sample *sample = &request->samples[i];
        struct request_sample **by_seq = seq_bucket(core, sample->seq_id);
        sample->next_by_seq = *by_seq;
        *by_seq = sample;
    }
    struct request **by_id = id_bucket(core, request->wire.request_id);
    request->next_by_id = *by_id;
    *by_id = request;
    enter_list(&core->live, request);
    core->n_live++;
}

static void leave_tables(struct core *core, struct request *request)
{
    for (uint32_t i = 0; i < request->wire.sampling.n; i++) {
        struct request_sample *sample = &request->samples[i];
        struct request_sample **by_seq = seq_bucket(core, sample->seq_id);
        while (*by_seq != sample) {
            by_seq = &(*by_seq)->next_by_seq;
        }
        *by_seq = sample->next_by_seq;
    }
    struct request **by_id = id_bucket(core, request->wire.request_id);
    while (*by_id != request) {
        by_id = &(*by_id)->next_by_id;
    }
    *by_id = request->next_by_id;
    leave_list(request);
    core->n_live--;
}

/* What names the request in logs beside its id: the first of its sequences. */
static unsigned long long first_seq(const struct request *request)
{
    return (unsigned long long)request->samples[0].seq_id;
}

// ---- the end ----

static void update_retry(struct core *core)
{
    // Smoothed over some eight ends; the wait is the queue times that.
    const uint64_t gap = core->now_ns - core->ended_ns;
    const uint64_t bounded = gap < NS_PER_S ? gap : NS_PER_S;
    core->interval_ns += (bounded >> 3);
    core->interval_ns -= (core->interval_ns >> 3);
    core->ended_ns = core->now_ns;
    const uint64_t wait_ms = (core->router.n_queued + 1) * core->interval_ns / NS_PER_MS;
    const uint64_t at_least = wait_ms < MIN_RETRY_MS ? MIN_RETRY_MS : wait_ms;
    atomic_store(&core->gate->retry_ms,
                 (unsigned)(at_least > MAX_RETRY_MS ? MAX_RETRY_MS : at_least));
}

/* Drops the pipeline's reference to a request that has ended. */
static void forget(struct request *request)
{
    leave_list(request);
    request->state = REQUEST_DONE;
    request_release(request);
}

/* Takes the request out of everything but the list of those that have ended. The call has been answered. */
static void end(struct core *core, struct request *request)
{
    if (request->state == REQUEST_QUEUED) {
        router_remove(&core->router, &request->queue);
    } else if (core->groups[request->group].state == WIRE_GROUP_READY) {
        router_done(&core->router, request->group, request_n_seqs(request));
    }
    core->n_running -= request->state == REQUEST_RUNNING ? 1 : 0;
    request->state = REQUEST_ENDED;
    request->ended_ns = core->now_ns;
    leave_tables(core, request);
    enter_list(&core->ended, request);
    update_retry(core);
    if (request_is_closed(request)) {
        forget(request);
    }
}

static void end_badly(struct core *core, struct request *request, const status_t *status)
{
    log_write(&core->log, LOG_DEBUG, "request failed", "req=%s seq=%llu code=%s",
              request->wire.request_id, first_seq(request), status_code_name(status->code));
    request_refuse(request, status);
    end(core, request);
}

/* The worker must not compute what nobody waits for. Losing the group over it ends the request. */
static void cancel_sample(struct core *core, const struct request_sample *sample)
{
    const struct request *request = sample->request;
    struct core_group *group = &core->groups[request->group];
    const bool submitted = sample < request->samples + request->n_submitted;
    if (request->state != REQUEST_RUNNING || !submitted || sample->ended || group->link == NULL) {
        return;
    }
    const struct wire_coordinator_message m = {.kind = WIRE_COORDINATOR_CANCEL,
                                               .cancel_seq_id = sample->seq_id};
    const status_t s = link_send(group->link, &m);
    if (!status_is_ok(&s)) {
        core_groups_lost(core, request->group, METRICS_RESTART_LOST, &s);
    }
}

/* Every sample of the request. The caller holds a reference. */
static void cancel_at_worker(struct core *core, const struct request *request)
{
    for (uint32_t i = 0; i < request->wire.sampling.n; i++) {
        cancel_sample(core, &request->samples[i]);
    }
}

static void count_end(struct core *core, struct request *request, int reason)
{
    metrics_finish(core->metrics, reason);
    metrics_observe(core->metrics, METRICS_E2E_LATENCY, core->now_ns - request->received_ns);
    metrics_observe(core->metrics, METRICS_REQUEST_GENERATION_TOKENS, request->answer.n_tokens);
}

/* Nothing more is computed for the request; the client, if it still listens, is told the status. */
static void end_early(struct core *core, struct request *request, int reason,
                      const status_t *status)
{
    count_end(core, request, reason);
    log_write(&core->log, LOG_DEBUG, "request cancelled", "req=%s seq=%llu tokens=%u code=%s",
              request->wire.request_id, first_seq(request), request->answer.n_tokens,
              status_code_name(status->code));
    // Losing the group over the cancel ends its requests, this one included: hold on to it.
    request_acquire(request);
    cancel_at_worker(core, request);
    if (request->state == REQUEST_QUEUED || request->state == REQUEST_RUNNING) {
        request_refuse(request, status);
        end(core, request);
    }
    request_release(request);
}

/* Why nobody listens any more. */
static int unheard_reason(const struct request *request)
{
    const int code = atomic_load(&request->closed) - 1;
    return code == STATUS_DEADLINE_EXCEEDED ? WIRE_FINISH_DEADLINE : WIRE_FINISH_CANCELLED;
}

/* The client is gone or out of time. */
static void end_unheard(struct core *core, struct request *request)
{
    const status_t s = status_errorf(STATUS_CANCELLED, "the call is over");
    end_early(core, request, unheard_reason(request), &s);
}

void core_requests_gone(struct core *core, struct request *request)
{
    if (request->state == REQUEST_QUEUED || request->state == REQUEST_RUNNING) {
        end_unheard(core, request);
    } else if (request->state == REQUEST_ENDED) {
        forget(request);
    }
    request_release(request);
}

void core_requests_tick(struct core *core)
{
    struct request *next = NULL;
    for (struct request *request = core->ended; request != NULL; request = next) {
        next = request->next_live;
        if (core->now_ns - request->ended_ns > LINGER_NS) {
            rpc_cancel(request->call);
            forget(request);
        }
    }
}

void core_requests_close(struct core *core)
{
    while (core->ended != NULL) {
        forget(core->ended);
    }
}

void core_requests_sweep(struct core *core)
{
    struct request *next = NULL;
    for (struct request *request = core->live; request != NULL; request = next) {
        next = request->next_live;
        if (request_is_closed(request)) {
            end_unheard(core, request);
            next = core->live; // a lost group may have taken others with it: from the start
        }
    }
    for (struct request *request = core->ended; request != NULL; request = next) {
        next = request->next_live;
        if (request_is_closed(request)) {
            forget(request);
        }
    }
}

/* Of a beam search nothing has been said before its end. It waits for a group again, but not for ever: it may be what ends them. */
static bool starts_again(struct core *core, struct request *request)
{
    if (!request_is_beam_search(request) || request->answer.n_tokens > 0 ||
        request->n_restarts >= MAX_RESTARTS || !router_return(&core->router, &request->queue)) {
        return false;
    }
    if (!request->prompt_sent) {
        answer_forget_prompt_logprobs(&request->answer);
    }
    request->n_restarts++;
    request->n_submitted = 0;
    request->state = REQUEST_QUEUED;
    core->n_running--;
    log_write(&core->log, LOG_DEBUG, "request starts again", "req=%s seq=%llu restarts=%u",
              request->wire.request_id, first_seq(request), request->n_restarts);
    return true;
}

uint32_t core_requests_fail(struct core *core, int group, const status_t *status)
{
    uint32_t n = 0;
    struct request *next = NULL;
    for (struct request *request = core->live; request != NULL; request = next) {
        next = request->next_live;
        const bool theirs = request->state == REQUEST_RUNNING && request->group == group;
        if (group < 0 || (theirs && !starts_again(core, request))) {
            metrics_finish(core->metrics, WIRE_FINISH_ERROR);
            end_badly(core, request, status);
            n++;
        }
    }
    return n;
}

// ---- admission ----

void core_requests_admit(struct core *core, struct request *request)
{
    if (request_is_closed(request)) {
        metrics_finish(core->metrics, unheard_reason(request));
        const status_t s = status_errorf(STATUS_CANCELLED, "the call is over");
        request_refuse(request, &s);
        request_release(request);
        return;
    }
    const status_t s = core_admission_enter(core, request);
    if (!status_is_ok(&s)) {
        request_refuse(request, &s);
        request_release(request);
        return;
    }
    request->state = REQUEST_QUEUED;
    for (uint32_t i = 0; i < request->wire.sampling.n; i++) {
        request->samples[i].seq_id = core->next_seq_id++;
    }
    enter_tables(core, request);
    core->next_deadline_ns = request->deadline_ns < core->next_deadline_ns ? request->deadline_ns
                                                                           : core->next_deadline_ns;
    metrics_add(core->metrics, METRICS_PROMPT_TOKENS, request->prompt.n);
    metrics_observe(core->metrics, METRICS_REQUEST_PROMPT_TOKENS, request->prompt.n);
    log_write(&core->log, LOG_DEBUG, "request admitted", "req=%s seq=%llu prompt_tokens=%zu",
              request->wire.request_id, first_seq(request), request->prompt.n);
    core_requests_dispatch(core);
}

// ---- dispatch ----

/* Stop tokens of the request, and the model's unless they are to be ignored. */
static struct wire_token_ids gather_stop_tokens(const struct core *core,
                                                const struct request *request,
                                                uint32_t ids[CORE_MAX_STOP_TOKENS])
{
    const struct model_spec *spec = &core->model->spec;
    const struct wire_stopping *stopping = &request->wire.stopping;
    size_t n = 0;
    for (int32_t i = 0; i < spec->n_eos && !stopping->ignore_eos; i++) {
        ids[n++] = (uint32_t)spec->eos_ids[i];
    }
    for (size_t i = 0; i < stopping->stop_token_ids.n && n < CORE_MAX_STOP_TOKENS; i++) {
        ids[n++] = stopping->stop_token_ids.ids[i];
    }
    return (struct wire_token_ids){.ids = ids, .n = n};
}

/* End tokens that are ignored cannot be drawn before min_tokens either, as in vLLM. */
static struct wire_token_ids gather_held_tokens(const struct core *core,
                                                const struct request *request,
                                                uint32_t ids[SPEC_MAX_EOS])
{
    const struct model_spec *spec = &core->model->spec;
    const struct wire_stopping *stopping = &request->wire.stopping;
    size_t n = 0;
    for (int32_t i = 0; i < spec->n_eos && stopping->ignore_eos && stopping->min_tokens > 0; i++) {
        ids[n++] = (uint32_t)spec->eos_ids[i];
    }
    return (struct wire_token_ids){.ids = ids, .n = n};
}

/* Clocks of hosts differ: what travels is how long it is from now. 0: for ever. */
static uint64_t time_left_ns(const struct core *core, const struct request *request)
{
    if (request->deadline_ns == RPC_NO_DEADLINE) {
        return 0;
    }
    return request->deadline_ns > core->now_ns ? request->deadline_ns - core->now_ns : 1;
}

static status_t submit(struct core *core, struct request *request, uint32_t index)
{
    const struct wire_sampling *sampling = &request->wire.sampling;
    const struct wire_stopping *stopping = &request->wire.stopping;
    const struct wire_output_options *output = &request->wire.output;
    const bool scores_prompt = output->has_prompt_logprobs && index == 0 && !request->prompt_sent;
    uint32_t stop_ids[CORE_MAX_STOP_TOKENS], held_ids[SPEC_MAX_EOS];
    const struct wire_coordinator_message m = {
        .kind = WIRE_COORDINATOR_SUBMIT,
        .submit = {.seq_id = request->samples[index].seq_id,
                   .tokens = {.ids = (const uint32_t *)request->prompt.ids, .n = request->prompt.n},
                   .temperature = sampling->temperature,
                   .top_p = sampling->top_p,
                   .min_p = sampling->min_p,
                   .top_k = sampling->top_k > 0 ? sampling->top_k : 0,
                   .seed = sampling->seed,
                   .sample = index,
                   .max_tokens = stopping->max_tokens,
                   .min_tokens = stopping->min_tokens,
                   .stop_token_ids = gather_stop_tokens(core, request, stop_ids),
                   .n_top = output->has_logprobs ? (int32_t)output->logprobs : -1,
                   .priority = request->wire.priority,
                   .repetition_penalty = sampling->repetition_penalty,
                   .presence_penalty = sampling->presence_penalty,
                   .frequency_penalty = sampling->frequency_penalty,
                   .logit_bias = sampling->logit_bias,
                   .n_logit_bias = sampling->n_logit_bias,
                   .allowed_token_ids = sampling->allowed_token_ids,
                   .held_token_ids = gather_held_tokens(core, request, held_ids),
                   .n_prompt_top = scores_prompt ? (int32_t)output->prompt_logprobs : -1,
                   .cache_salt = request->wire.cache_salt,
                   .time_left_ns = time_left_ns(core, request),
                   .beam_width = sampling->beam_width,
                   .n_best = request_is_beam_search(request) ? sampling->n : 0,
                   .length_penalty = sampling->length_penalty,
                   .early_stopping = sampling->early_stopping}};
    return link_send(core->groups[request->group].link, &m);
}

/* What was packed goes to the client; one that does not read loses its request. */
static status_t send_packed(struct core *core, const struct request *request)
{
    if (core->packed.size == 0) {
        return status_ok();
    }
    // One message of any size may wait, for there are prompts of any size; not a second behind it. A beam search comes all at
    // once, which says nothing of its reader.
    const bool behind = !request_is_beam_search(request) &&
                        rpc_queued_bytes(request->call) > (size_t)core->config->max_unread_bytes;
    const status_t s = behind ? status_errorf(STATUS_RESOURCE_EXHAUSTED, "behind")
                              : rpc_send(request->call, core->packed.data, core->packed.size);
    if (s.code == STATUS_RESOURCE_EXHAUSTED) {
        metrics_add(core->metrics, METRICS_SLOW_READERS, 1);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "the client reads too slowly: %zu bytes wait to be sent",
                             rpc_queued_bytes(request->call));
    }
    // A call that is over ends its request by on_closed, which is on its way.
    return status_ok();
}

/* What was packed goes out with the first token, or before it. */
static status_t send_prompt(struct core *core, struct request *request)
{
    bytes_clear(&core->packed);
    TRY(answer_prompt(&request->answer, &core->packed));
    request->prompt_sent = true;
    return send_packed(core, request);
}

/* The request ends with this failure, and nothing more is computed for it. */
static void fail_running(struct core *core, struct request *request, const status_t *status)
{
    // Losing the group over the cancel would end the request a second time: hold on to it.
    request_acquire(request);
    cancel_at_worker(core, request);
    if (request->state == REQUEST_QUEUED || request->state == REQUEST_RUNNING) {
        metrics_finish(core->metrics, WIRE_FINISH_ERROR);
        end_badly(core, request, status);
    }
    request_release(request);
}

// ---- out of time ----

/* The end of each sample that has not ended, for a client whose own clock is not there yet. */
static status_t tell_late(struct core *core, struct request *request)
{
    for (uint32_t i = 0; i < request->wire.sampling.n; i++) {
        const struct wire_finished finished = {.index = i, .reason = WIRE_FINISH_DEADLINE};
        int reason = WIRE_FINISH_NONE;
        if (request->samples[i].ended) {
            continue;
        }
        bytes_clear(&core->packed);
        TRY(answer_finish(&request->answer, &finished, SESSION_NO_STOP, &core->packed, &reason));
        TRY(send_packed(core, request));
    }
    return status_ok();
}

static void end_late(struct core *core, struct request *request)
{
    const status_t late = status_errorf(
        STATUS_DEADLINE_EXCEEDED, "the deadline passed after %.3f s and %u tokens",
        (double)(core->now_ns - request->received_ns) * 1e-9, request->answer.n_tokens);
    status_t s = status_ok();
    if (request->shape == ANSWER_STREAM && request->prompt_sent) {
        s = tell_late(core, request);
    }
    end_early(core, request, WIRE_FINISH_DEADLINE, status_is_ok(&s) ? &late : &s);
}

void core_requests_expire(struct core *core)
{
    struct request *next = NULL;
    core->next_deadline_ns = RPC_NO_DEADLINE;
    for (struct request *request = core->live; request != NULL; request = next) {
        next = request->next_live;
        if (request->deadline_ns <= core->now_ns) {
            end_late(core, request);
            next = core->live; // a lost group may have taken others with it: from the start
            core->next_deadline_ns = RPC_NO_DEADLINE;
        } else if (request->deadline_ns < core->next_deadline_ns) {
            core->next_deadline_ns = request->deadline_ns;
        }
    }
}

/*
 * Hands the samples out. While log probabilities of the prompt are awaited the first one goes alone: the prompt comes first
 * in a stream, and the others' tokens could be here before it. False when the group was lost over it, and the request too.
 * A beam search goes out as one.
 */
static bool submit_samples(struct core *core, struct request *request)
{
    const bool alone = !answer_knows_prompt(&request->answer) || request_is_beam_search(request);
    const uint32_t n = alone ? 1 : request->wire.sampling.n;
    while (request->n_submitted < n) {
        const status_t s = submit(core, request, request->n_submitted++);
        if (!status_is_ok(&s)) {
            const status_t lost = status_wrapf(s, "submit");
            core_groups_lost(core, request->group, METRICS_RESTART_LOST, &lost);
            return false;
        }
    }
    return true;
}

void core_requests_dispatch(struct core *core)
{
    int group;
    struct router_item *item;
    while ((item = router_next(&core->router, &group)) != NULL) {
        struct request *request =
            (struct request *)((char *)item - offsetof(struct request, queue));
        if (link_is_backlogged(core->groups[group].link)) {
            router_put_back(&core->router, item, group);
            return; // the next tick tries again
        }
        const status_t s = core_admission_recheck(core, request);
        if (!status_is_ok(&s)) {
            router_done(&core->router, group, item->n_seqs);
            end_badly(core, request, &s);
            continue;
        }
        request->state = REQUEST_RUNNING;
        request->group = group;
        request->submitted_ns = core->now_ns;
        core->n_running++;
        metrics_observe(core->metrics, METRICS_QUEUE_TIME, core->now_ns - request->received_ns);
        (void)submit_samples(core, request);
    }
}

// ---- output ----

static uint32_t index_of(const struct request_sample *sample)
{
    return (uint32_t)(sample - sample->request->samples);
}

static status_t deliver_prompt(struct core *core, struct request *request,
                               const struct wire_seq_output *output)
{
    TRY(answer_prompt_logprobs(&request->answer, output->prompt_logprobs, output->n_prompt_logprobs,
                               output->first_prompt_position));
    return answer_knows_prompt(&request->answer) ? send_prompt(core, request) : status_ok();
}

static status_t deliver_token(struct core *core, struct request_sample *sample,
                              const struct wire_token_info *token, int flags, int *stop_out)
{
    struct request *request = sample->request;
    const uint32_t index = index_of(sample);
    const bool first_of_all = request->answer.n_tokens == 0;
    const bool first = request->answer.choices[index].n_tokens == 0;
    bytes_clear(&core->packed);
    TRY(answer_token(&request->answer, index, token, flags, &core->packed, stop_out));
    TRY(send_packed(core, request));
    metrics_add(core->metrics, METRICS_GENERATION_TOKENS, 1);
    if (first_of_all) {
        metrics_observe(core->metrics, METRICS_TIME_TO_FIRST_TOKEN,
                        core->now_ns - request->received_ns);
    } else if (!first && !request_is_beam_search(request)) { // whose tokens come together
        const uint64_t gap_ns = core->now_ns - sample->last_token_ns;
        metrics_observe(core->metrics, METRICS_INTER_TOKEN_LATENCY, gap_ns);
        pace_step(&core->pace, core->groups[request->group].load.running, gap_ns, core->now_ns);
    }
    sample->first_token_ns = first ? core->now_ns : sample->first_token_ns;
    sample->last_token_ns = core->now_ns;
    return status_ok();
}

static status_t deliver_end(struct core *core, struct request *request,
                            const struct wire_finished *finished, int stop)
{
    int reason = WIRE_FINISH_NONE;
    bytes_clear(&core->packed);
    TRY(answer_finish(&request->answer, finished, stop, &core->packed, &reason));
    TRY(send_packed(core, request));
    if (!answer_is_finished(&request->answer)) {
        return status_ok();
    }
    count_end(core, request, reason);
    log_write(&core->log, LOG_DEBUG, "request finished", "req=%s seq=%llu tokens=%u reason=%s",
              request->wire.request_id, first_seq(request), request->answer.n_tokens,
              wire_finish_reason_name(reason));
    request_complete(request);
    return status_ok();
}

/* True when the token ended the completion at the worker, and so is not text. */
static bool is_last(const struct wire_seq_output *output, size_t i)
{
    return output->finish == WIRE_FINISH_STOP && output->has_stop_token_id &&
           i + 1 == output->n_tokens && output->tokens[i].id == output->stop_token_id;
}

/* Whether the worker may send these tokens now. */
static status_t check_output(const struct request_sample *sample,
                             const struct wire_seq_output *output)
{
    const struct request *request = sample->request;
    const uint32_t n_tokens = request->answer.choices[index_of(sample)].n_tokens;
    const uint32_t max_tokens = request->wire.stopping.max_tokens;
    if (output->n_tokens > 0 && output->first_position != n_tokens) {
        return status_errorf(STATUS_INTERNAL, "worker group %d sent token %u, expected %u",
                             request->group, output->first_position, n_tokens);
    }
    if (output->n_tokens > max_tokens - n_tokens) {
        return status_errorf(STATUS_INTERNAL,
                             "worker group %d sent more than the %u tokens asked for",
                             request->group, max_tokens);
    }
    return status_ok();
}

/* Tokens and end of one output. *ended_out: the sample is complete; what the worker still sends of it is dropped. */
static status_t deliver(struct core *core, struct request_sample *sample,
                        const struct wire_seq_output *output, bool *ended_out)
{
    struct request *request = sample->request;
    *ended_out = false;
    TRY(check_output(sample, output));
    if (!request->prompt_sent) { // what was found of it is known by now
        request->answer.cached_tokens = output->cached_tokens;
    }
    if (!request->prompt_sent && answer_knows_prompt(&request->answer)) {
        TRY(send_prompt(core, request));
    }
    if (output->n_prompt_logprobs > 0) {
        TRY(deliver_prompt(core, request, output));
    }
    if (output->n_tokens > 0 && !request->prompt_sent) {
        return status_errorf(STATUS_INTERNAL,
                             "worker group %d sent a token before the prompt's log probabilities",
                             request->group);
    }
    struct wire_finished finished = {.index = index_of(sample),
                                     .has_cumulative_logprob = output->has_cumulative_logprob,
                                     .cumulative_logprob = output->cumulative_logprob,
                                     .reason = output->finish,
                                     .has_stop_token_id = output->has_stop_token_id,
                                     .stop_token_id = output->stop_token_id};
    int stop = SESSION_NO_STOP;
    size_t i = 0;
    for (; i < output->n_tokens && stop == SESSION_NO_STOP; i++) {
        const bool more = request_is_beam_search(request) && i + 1 < output->n_tokens;
        const int flags = (is_last(output, i) ? ANSWER_LAST : 0) | (more ? ANSWER_MORE : 0);
        TRY(deliver_token(core, sample, &output->tokens[i], flags, &stop));
    }
    if (stop != SESSION_NO_STOP) {
        finished.reason = WIRE_FINISH_STOP;
    } else if (output->finish == WIRE_FINISH_ERROR) {
        return output->error.code != STATUS_OK
                   ? output->error
                   : status_errorf(STATUS_INTERNAL, "the worker gave no reason");
    } else if (output->finish == WIRE_FINISH_NONE) {
        return status_ok();
    }
    TRY(deliver_end(core, request, &finished, stop));
    *ended_out = true;
    return status_ok();
}

/* The sample has been answered, and with the last one the request. */
static void end_sample(struct core *core, struct request_sample *sample,
                       const struct wire_seq_output *output)
{
    struct request *request = sample->request;
    if (output->finish == WIRE_FINISH_NONE) {
        cancel_sample(core, sample); // ended by a stop string: the worker does not know yet
    }
    if (request->state != REQUEST_RUNNING) {
        return; // the group was lost over it
    }
    sample->ended = true;
    request->n_unended--;
    const uint64_t since_ns =
        request_is_beam_search(request) ? request->submitted_ns : sample->first_token_ns;
    pace_stay(&core->pace, core->now_ns - since_ns, core->now_ns);
    if (core->groups[request->group].state == WIRE_GROUP_READY &&
        !request_is_beam_search(request)) {
        router_done(&core->router, request->group, 1);
    }
    if (request->n_unended == 0) {
        end(core, request);
    }
}

void core_requests_output(struct core *core, int group, const struct wire_seq_output *output)
{
    struct request_sample *sample = find_seq(core, output->seq_id);
    if (sample == NULL || sample->ended || sample->request->group != group ||
        sample->request->state != REQUEST_RUNNING) {
        return; // it was cancelled meanwhile
    }
    struct request *request = sample->request;
    if (output->finish == WIRE_FINISH_DEADLINE) {
        end_late(core, request);
        return;
    }
    request_acquire(request);
    bool ended = false;
    const status_t s = deliver(core, sample, output, &ended);
    if (!status_is_ok(&s)) {
        fail_running(core, request, &s);
    } else if (ended) {
        end_sample(core, sample, output);
    }
    if (request->state == REQUEST_RUNNING) {
        (void)submit_samples(core, request); // those that waited for the prompt
    }
    request_release(request);
}

#include "worker/leader.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/version.h"
#include "worker/leader_beams.h"
#include "worker/leader_link.h"
#include "worker/member.h"
#include "worker/scheduler.h"
#include "worker/step_runner.h"

#define FLUSH_NS (2 * NS_PER_S)

/* More may wait here than the coordinator ever sends ahead. */
#define MAX_WAITING 65536

struct leader {
    struct group *group;
    const struct member_options *options;
    const struct worker_config *config; /* of the options */
    const struct clock *clock;
    log_t log;
    struct leader_link *link;
    struct member member;
    struct step_runner runner;
    struct bytes frame; /* the control frame being made */
    bool dissolved; /* the group has agreed on a failure: the followers wait for no further frame */
    bool broken;    /* a step failed: they are inside a collective */
    struct host_cores_mask anywhere; /* where the leader's thread may run: the main one is pinned */

    /* What follows belongs to the leader's thread while the group serves, and so does the link. */
    struct scheduler *scheduler;
    status_t served;                   /* how serving ended */
    bool stop;                         /* told to stop */
    bool resting;                      /* nothing was left to do when the last step ended */
    uint64_t step_began_ns;            /* the oldest step under way; 0: none is */
    uint64_t prompt_tokens, prompt_ns; /* computed so far, and the time of the steps with some */
    struct step_job **free_jobs;       /* [n_jobs] */
    int32_t n_free;

    /* Of one step: outputs [max_seqs], tokens [max_logits], tops [max_logits][SAMPLE_MAX_TOP]. */
    struct scheduler_output *outputs;
    struct wire_seq_output *wire_outputs;
    struct wire_token_info *tokens;
    struct wire_top_logprob *tops;
};

/* ---- talking ------------------------------------------------------------------------------------ */

static status_t say(struct leader *l, const struct wire_worker_message *message)
{
    return leader_link_send(l->link, message);
}

static struct wire_load current_load(const struct leader *l)
{
    const struct scheduler_load load = scheduler_load(l->scheduler);
    return (struct wire_load){.running = (uint32_t)load.n_running,
                              .waiting = (uint32_t)load.n_waiting,
                              .kv_blocks_used = (uint64_t)load.blocks_used,
                              .kv_blocks_total = (uint64_t)load.blocks_total,
                              .preemptions_total = load.n_preemptions,
                              .prefix_queries_total = load.n_prefix_queries,
                              .prefix_hits_total = load.n_prefix_hits,
                              .recompute_tokens_total = load.n_recomputed,
                              .swapped_out_blocks_total = load.n_swapped_out,
                              .swapped_in_blocks_total = load.n_swapped_in,
                              .prompt_tokens_total = l->prompt_tokens,
                              .prompt_ns_total = l->prompt_ns};
}

static status_t read_token(const char *path, char *buf, size_t buf_bytes)
{
    buf[0] = '\0';
    if (path == NULL) {
        return status_ok();
    }
    struct bytes content;
    bytes_init(&content, buf_bytes - 1);
    const status_t s = file_read(path, buf_bytes - 1, &content);
    if (s.code == STATUS_OK) {
        memcpy(buf, content.data, content.size);
        buf[content.size] = '\0';
        buf[strcspn(buf, "\r\n")] = '\0';
    }
    bytes_destroy(&content);
    return s;
}

static uint32_t usable_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

static status_t say_hello(struct leader *l)
{
    char token[1024], host[256] = "";
    TRY(read_token(l->config->join_token_file, token, sizeof token));
    (void)gethostname(host, sizeof host - 1);
    struct sysinfo info = {0};
    (void)sysinfo(&info);
    const struct wire_worker_message m = {
        .kind = WIRE_WORKER_HELLO,
        .hello = {.link_version = WIRE_LINK_VERSION,
                  .version = version_number(),
                  .join_token = token,
                  .has_group = l->config->group >= 0,
                  .group_id = l->config->group >= 0 ? (uint32_t)l->config->group : 0,
                  .generation = (uint32_t)l->config->generation,
                  .world_size = (uint32_t)group_size(l->group),
                  .host = host,
                  .device = l->options->device->backend->name,
                  .pid = (uint32_t)getpid(),
                  .n_cores = usable_cores(),
                  .memory_bytes = (uint64_t)info.totalram * info.mem_unit},
    };
    return say(l, &m);
}

static void on_progress(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    struct leader *l = user;
    const struct wire_worker_message m = {
        .kind = WIRE_WORKER_LOADING,
        .loading = {.bytes_done = bytes_done, .bytes_total = bytes_total}};
    const status_t s = say(l, &m);
    if (s.code != STATUS_OK) { // the coordinator is gone: found out for good after loading
        log_status(&l->log, LOG_DEBUG, "loading report", &s);
    }
}

/* ---- leading ------------------------------------------------------------------------------------ */

static status_t command(struct leader *l, uint32_t kind)
{
    bytes_clear(&l->frame);
    return bytes_append_u32(&l->frame, kind);
}

static status_t broadcast_frame(struct leader *l)
{
    return group_broadcast(l->group, &l->frame, 0);
}

/* Waits for the first message of the wanted kind; the call's end, a signal or time end the wait with a status. */
static status_t await_assignment(struct leader *l, struct leader_event **event_out)
{
    const uint64_t wait_ns = (uint64_t)(l->config->connect_timeout_s * 1e9);
    struct leader_event *event = leader_link_take(l->link, wait_ns);
    if (event == NULL) {
        return status_errorf(STATUS_UNAVAILABLE,
                             "no answer from a coordinator at %s within %.1f s" STATUS_FIX
                             "start it first, or check --coordinator",
                             l->config->coordinator, l->config->connect_timeout_s);
    }
    const bool message = event->kind == LEADER_EVENT_MESSAGE;
    if (message && event->message.kind == WIRE_COORDINATOR_ASSIGN) {
        *event_out = event;
        return status_ok();
    }
    status_t s = status_ok();
    if (event->kind == LEADER_EVENT_CLOSED) {
        s = event->status.code == STATUS_OK
                ? status_errorf(STATUS_UNAVAILABLE, "the coordinator at %s wants no worker now",
                                l->config->coordinator)
                : status_wrapf(event->status, "coordinator at %s", l->config->coordinator);
    } else if (message && event->message.kind != WIRE_COORDINATOR_SHUTDOWN) {
        s = status_errorf(STATUS_INTERNAL, "the coordinator's first message is of kind %d",
                          event->message.kind);
    } else { // a signal, or told to go
        l->stop = true;
    }
    leader_event_free(event);
    return s;
}

static status_t allocate_step_arrays(struct leader *l, const struct step_limits *limits)
{
    const size_t n_seqs = (size_t)limits->max_seqs, n_tokens = (size_t)limits->max_logits;
    l->outputs = calloc(n_seqs, sizeof *l->outputs);
    l->wire_outputs = calloc(n_seqs, sizeof *l->wire_outputs);
    l->tokens = calloc(n_tokens, sizeof *l->tokens);
    l->tops = calloc(n_tokens * SAMPLE_MAX_TOP, sizeof *l->tops);
    if (l->outputs == NULL || l->wire_outputs == NULL || l->tokens == NULL || l->tops == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader: no memory for %zu sequences",
                             n_seqs);
    }
    return status_ok();
}

static status_t say_ready(struct leader *l, double load_seconds)
{
    struct comm *comm = group_comm(l->group);
    const int32_t n = group_size(l->group);
    uint64_t *kv_bytes = calloc((size_t)n, sizeof *kv_bytes);
    if (kv_bytes == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader: out of memory");
    }
    uint64_t weight_sum = engine_weight_bytes(l->member.engine);
    uint64_t kv_sum = kv_bytes[0] = engine_kv_bytes(l->member.engine);
    status_t s = status_ok();
    for (int32_t rank = 1; rank < n && s.code == STATUS_OK; rank++) {
        uint64_t sizes[2] = {0, 0};
        s = comm->ops->recv(comm, sizes, sizeof sizes, rank, 0);
        weight_sum += sizes[0];
        kv_sum += kv_bytes[rank] = sizes[1];
    }
    if (s.code == STATUS_OK) {
        const struct step_limits *limits = engine_limits(l->member.engine);
        const struct wire_worker_message m = {
            .kind = WIRE_WORKER_READY,
            .ready = {.n_lanes = (uint32_t)limits->n_lanes,
                      .kv_blocks_per_lane = (uint64_t)limits->blocks_per_lane,
                      .weight_bytes = weight_sum,
                      .kv_bytes = kv_sum,
                      .rank_kv_bytes = kv_bytes,
                      .n_rank_kv_bytes = (size_t)n,
                      .load_seconds = load_seconds}};
        s = say(l, &m);
    }
    free(kv_bytes);
    return s;
}

static void wake_leader(void *user)
{
    const struct leader *l = user;
    leader_link_wake(l->link);
}

static status_t make_runner(struct leader *l, int32_t n_jobs)
{
    const struct step_runner_parts parts = {
        .group = l->group,
        .engine = l->member.engine,
        .frame = &l->frame,
        .n_jobs = n_jobs,
        .log = l->log,
        .wake = wake_leader,
        .user = l,
    };
    l->free_jobs = calloc((size_t)n_jobs, sizeof(struct step_job *));
    if (l->free_jobs == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader: out of memory");
    }
    TRY(step_runner_init(&l->runner, &parts));
    while (l->n_free < n_jobs) {
        l->free_jobs[l->n_free] = &l->runner.jobs[l->n_free];
        l->n_free++;
    }
    return status_ok();
}

static status_t open_group(struct leader *l, const struct wire_coordinator_message *message)
{
    const uint64_t begin_ns = clock_now_ns(l->clock);
    TRY(command(l, CONTROL_ASSIGN));
    TRY(wire_coordinator_message_pack(message, &l->frame));
    TRY(broadcast_frame(l));
    struct member_options options = *l->options;
    options.progress = on_progress;
    options.user = l;
    status_t s = group_agree(l->group, status_ok()); // whether the followers could read it
    if (s.code == STATUS_OK) {
        s = member_open(l->group, &message->assign, &options, &l->member);
    }
    if (s.code != STATUS_OK) { // every rank holds this status and leaves with it
        l->dissolved = true;
        return s;
    }
    const struct step_limits *limits = engine_limits(l->member.engine);
    const struct scheduler_config config = {
        .max_seqs = (int32_t)message->assign.max_num_seqs,
        .max_rows = (int32_t)message->assign.max_num_batched_tokens,
        .max_model_len = (int32_t)message->assign.max_model_len,
        .max_waiting = MAX_WAITING,
        .n_lanes = limits->n_lanes,
        .blocks_per_lane = limits->blocks_per_lane,
        .stripe = l->member.plan.stripe,
        .n_vocab = limits->n_vocab,
        .max_logits = limits->max_logits,
        .max_sample_tokens = limits->max_sample_tokens,
        .max_steps = member_max_steps(&l->member.plan, l->config),
        .n_stages = l->member.plan.pp,
        .prefix_caching = message->assign.prefix_caching,
        .host_blocks_per_lane = limits->host_blocks_per_lane,
        .max_moves = limits->max_moves,
        .swap_block_s = l->member.swap_cost.block_s,
        .recompute_token_s = l->member.swap_cost.token_s,
    };
    if (config.host_blocks_per_lane > 0) {
        log_write(&l->log, LOG_INFO, "swapping",
                  "host_blocks_per_lane=%lld block_us=%.1f token_us=%.1f",
                  (long long)config.host_blocks_per_lane, config.swap_block_s * 1e6,
                  config.recompute_token_s * 1e6);
    }
    TRY(scheduler_new(&config, &l->scheduler));
    TRY(make_runner(l, config.max_steps));
    TRY(allocate_step_arrays(l, limits));
    return say_ready(l, (double)(clock_now_ns(l->clock) - begin_ns) / 1e9);
}

/* ---- serving ------------------------------------------------------------------------------------ */

/* A result of one sequence that did not come out of a step. */
static status_t say_finished(struct leader *l, uint64_t seq_id, int finish, status_t error)
{
    const struct wire_seq_output output = {.seq_id = seq_id, .finish = finish, .error = error};
    const struct wire_worker_message m = {
        .kind = WIRE_WORKER_STEP_RESULT,
        .step_result = {.outputs = &output, .n_outputs = 1, .load = current_load(l)}};
    return say(l, &m);
}

static uint64_t deadline_of(const struct leader *l, const struct wire_submit *submit)
{
    const uint64_t now_ns = clock_now_ns(l->clock);
    const bool ever = submit->time_left_ns > 0 && submit->time_left_ns < UINT64_MAX - now_ns;
    return ever ? now_ns + submit->time_left_ns : 0;
}

static const int beam_stops[] = {
    [WIRE_EARLY_STOPPING_HEURISTIC] = BEAM_STOP_HEURISTIC,
    [WIRE_EARLY_STOPPING_FIRST] = BEAM_STOP_FIRST,
    [WIRE_EARLY_STOPPING_NEVER] = BEAM_STOP_NEVER,
};

static status_t submit(struct leader *l, const struct wire_submit *submit)
{
    struct sample_bias bias[SCHEDULER_MAX_BIAS];
    if (submit->n_logit_bias > SCHEDULER_MAX_BIAS) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%zu biased ids, the limit is %d",
                             submit->n_logit_bias, SCHEDULER_MAX_BIAS);
    }
    for (size_t i = 0; i < submit->n_logit_bias; i++) {
        bias[i] = (struct sample_bias){.id = (int32_t)submit->logit_bias[i].token_id,
                                       .bias = submit->logit_bias[i].bias};
    }
    // Ids above INT32_MAX become negative: refused.
    const struct scheduler_request request = {
        .seq_id = submit->seq_id,
        .tokens = (const int32_t *)submit->tokens.ids,
        .n_tokens = (int32_t)submit->tokens.n,
        .n_generated = (int32_t)submit->n_generated,
        .max_tokens = (int32_t)submit->max_tokens,
        .min_tokens = (int32_t)submit->min_tokens,
        .stop_ids = (const int32_t *)submit->stop_token_ids.ids,
        .n_stop_ids = (int32_t)submit->stop_token_ids.n,
        .priority = submit->priority,
        .temperature = submit->temperature,
        .top_p = submit->top_p,
        .min_p = submit->min_p,
        .top_k = submit->top_k,
        .seed = submit->seed,
        .sample = submit->sample,
        .n_top = submit->n_top,
        .repetition = submit->repetition_penalty,
        .presence = submit->presence_penalty,
        .frequency = submit->frequency_penalty,
        .bias = bias,
        .n_bias = (int32_t)submit->n_logit_bias,
        .allowed = (const int32_t *)submit->allowed_token_ids.ids,
        .n_allowed = (int32_t)submit->allowed_token_ids.n,
        .held_ids = (const int32_t *)submit->held_token_ids.ids,
        .n_held_ids = (int32_t)submit->held_token_ids.n,
        .n_prompt_top = submit->n_prompt_top,
        .salt = submit->cache_salt,
        .deadline_ns = deadline_of(l, submit),
        .beam_width = (int32_t)submit->beam_width,
        .n_best = (int32_t)submit->n_best,
        .length_penalty = submit->length_penalty,
        .early_stopping = beam_stops[submit->early_stopping],
    };
    return scheduler_submit(l->scheduler, &request);
}

static status_t on_submit(struct leader *l, const struct wire_submit *message)
{
    const status_t s = submit(l, message);
    return s.code == STATUS_OK ? s : say_finished(l, message->seq_id, WIRE_FINISH_ERROR, s);
}

static status_t on_event(struct leader *l, const struct leader_event *event)
{
    if (event->kind == LEADER_EVENT_SIGNAL) {
        log_write(&l->log, LOG_INFO, "signal: leaving", "");
        l->stop = true;
        return status_ok();
    }
    if (event->kind == LEADER_EVENT_CLOSED) {
        l->stop = true;
        return status_errorf(
            STATUS_UNAVAILABLE, "the coordinator at %s is gone: %s", l->config->coordinator,
            event->status.code == STATUS_OK ? "it closed the link" : event->status.msg);
    }
    const struct wire_coordinator_message *message = &event->message;
    switch (message->kind) {
    case WIRE_COORDINATOR_SUBMIT:
        return on_submit(l, &message->submit);
    case WIRE_COORDINATOR_CANCEL:
        return scheduler_cancel(l->scheduler, message->cancel_seq_id)
                   ? say_finished(l, message->cancel_seq_id, WIRE_FINISH_CANCELLED, status_ok())
                   : status_ok();
    case WIRE_COORDINATOR_SHUTDOWN:
        l->stop = true;
        return status_ok();
    default:
        return status_errorf(STATUS_INTERNAL, "unexpected message of kind %d from the coordinator",
                             message->kind);
    }
}

/* Waits for an event, or until a step is done, and takes in everything that has arrived. */
static status_t take_events(struct leader *l)
{
    status_t s = status_ok();
    struct leader_event *event = leader_link_take(l->link, UINT64_MAX);
    while (event != NULL && s.code == STATUS_OK && !l->stop) {
        s = on_event(l, event);
        leader_event_free(event);
        event = l->stop ? NULL : leader_link_take(l->link, 0);
    }
    leader_event_free(event);
    return s;
}

static const int wire_finish[] = {
    [SCHEDULER_GOES_ON] = WIRE_FINISH_NONE,
    [SCHEDULER_STOP] = WIRE_FINISH_STOP,
    [SCHEDULER_LENGTH] = WIRE_FINISH_LENGTH,
    [SCHEDULER_ERROR] = WIRE_FINISH_ERROR,
};

/* n_top: -1: no log probabilities are wanted. */
static void describe_token(const struct sample_result *result, int32_t n_top,
                           struct wire_token_info *token, struct wire_top_logprob *tops)
{
    *token = (struct wire_token_info){.id = (uint32_t)result->id,
                                      .has_logprob = n_top >= 0,
                                      .logprob = result->logprob,
                                      .rank = (uint32_t)result->rank,
                                      .top = tops,
                                      .n_top = n_top > 0 ? (size_t)n_top : 0};
    for (int32_t i = 0; i < n_top; i++) {
        tops[i] = (struct wire_top_logprob){.id = (uint32_t)result->top_ids[i],
                                            .logprob = result->top_logprobs[i]};
    }
}

/* Describes n results in a row, from place *at of the leader's arrays on. */
static const struct wire_token_info *describe_tokens(struct leader *l,
                                                     const struct sample_result *results, int32_t n,
                                                     int32_t n_top, int32_t *at)
{
    const struct wire_token_info *first = &l->tokens[*at];
    for (int32_t i = 0; i < n; i++, (*at)++) {
        describe_token(&results[i], n_top, &l->tokens[*at],
                       l->tops + (ptrdiff_t)*at * SAMPLE_MAX_TOP);
    }
    return first;
}

static struct wire_seq_output describe_output(struct leader *l,
                                              const struct scheduler_output *output, int32_t *at)
{
    const bool failed = output->finish == SCHEDULER_ERROR;
    const bool drawn = output->result != NULL;
    struct wire_seq_output out = {
        .seq_id = output->seq_id,
        .n_tokens = drawn ? 1 : 0,
        .first_position = (uint32_t)output->position,
        .cached_tokens = output->n_cached > 0 ? (uint32_t)output->n_cached : 0,
        .finish = output->beams != NULL ? WIRE_FINISH_NONE : wire_finish[output->finish],
        .has_stop_token_id = drawn && output->finish == SCHEDULER_STOP,
        .stop_token_id = drawn ? (uint32_t)output->result->id : 0,
        .n_prompt_logprobs = (size_t)output->n_scored,
        .first_prompt_position = (uint32_t)output->first_scored,
        .error = failed
                     ? status_errorf(STATUS_DATA_LOSS,
                                     "no token can be drawn: the model gave NaN or only -inf, or "
                                     "the request leaves no token that it gives")
                     : status_ok(),
    };
    out.prompt_logprobs =
        describe_tokens(l, output->scored, output->n_scored, output->n_prompt_top, at);
    out.tokens = describe_tokens(l, output->result, drawn ? 1 : 0, output->n_top, at);
    return out;
}

static status_t say_step(struct leader *l, const struct step_job *job, int32_t n_outputs)
{
    int32_t at = 0;
    for (int32_t i = 0; i < n_outputs; i++) {
        l->wire_outputs[i] = describe_output(l, &l->outputs[i], &at);
    }
    const struct wire_worker_message m = {.kind = WIRE_WORKER_STEP_RESULT,
                                          .step_result = {.step = job->plan.step,
                                                          .step_ns = job->step_ns,
                                                          .outputs = l->wire_outputs,
                                                          .n_outputs = (size_t)n_outputs,
                                                          .load = current_load(l)}};
    TRY(say(l, &m));
    for (int32_t i = 0; i < n_outputs; i++) {
        if (l->outputs[i].beams != NULL) {
            TRY(leader_beams_say(l->link, &l->outputs[i], &m.step_result.load));
        }
    }
    return status_ok();
}

static int32_t n_under_way(const struct leader *l)
{
    return l->runner.parts.n_jobs - l->n_free;
}

/* What the prompts' part of a step tells of how fast they are. Steps under way overlap: what counts is the time between two. */
static void count_prompts(struct leader *l, const struct step_plan *plan)
{
    int32_t n = 0;
    for (int32_t i = 0; i < plan->n_seqs; i++) {
        n += plan->seqs[i].n_tokens > 1 ? plan->seqs[i].n_tokens : 0;
    }
    if (n > 0) {
        l->prompt_tokens += (uint64_t)n;
        l->prompt_ns += clock_now_ns(l->clock) - l->step_began_ns;
    }
}

static status_t take_step(struct leader *l, struct step_job *job)
{
    TRY(job->status);
    count_prompts(l, &job->plan);
    const int32_t n = scheduler_apply(l->scheduler, &job->plan, job->results, l->outputs);
    log_write(&l->log, LOG_TRACE, "step", "step=%llu seqs=%d rows=%d us=%llu",
              (unsigned long long)job->plan.step, job->plan.n_seqs, job->plan.n_rows,
              (unsigned long long)(job->step_ns / 1000));
    const status_t s = n > 0 ? say_step(l, job, n) : status_ok();
    l->free_jobs[l->n_free++] = job;
    l->step_began_ns = n_under_way(l) > 0 ? clock_now_ns(l->clock) : 0;
    return s;
}

static status_t take_steps(struct leader *l)
{
    for (struct step_job *job; (job = step_runner_take(&l->runner)) != NULL;) {
        TRY(take_step(l, job));
    }
    return status_ok();
}

#define EXPIRED_AT_ONCE 64

/* Nothing out of time is computed, whether or not the coordinator says so. */
static status_t expire(struct leader *l)
{
    const uint64_t now_ns = clock_now_ns(l->clock);
    uint64_t seq_ids[EXPIRED_AT_ONCE];
    int32_t n;
    do {
        n = scheduler_expire(l->scheduler, now_ns, seq_ids, EXPIRED_AT_ONCE);
        for (int32_t i = 0; i < n; i++) {
            TRY(say_finished(l, seq_ids[i], WIRE_FINISH_DEADLINE, status_ok()));
        }
    } while (n == EXPIRED_AT_ONCE);
    return status_ok();
}

/* As many as there are jobs for. */
static status_t make_steps(struct leader *l)
{
    while (l->n_free > 0) {
        struct step_job *job = l->free_jobs[l->n_free - 1];
        if (scheduler_schedule(l->scheduler, &job->plan) == 0) {
            l->resting = n_under_way(l) == 0;
            break;
        }
        job->n_tokens = scheduler_sample_rows(l->scheduler, &job->plan, job->rows, job->tokens);
        job->after_rest = l->resting;
        l->resting = false;
        if (n_under_way(l) == 0) {
            l->step_began_ns = clock_now_ns(l->clock);
        }
        l->n_free--;
        TRY(step_runner_post(&l->runner, job));
    }
    const struct wire_load load = current_load(l);
    leader_link_set_load(l->link, &load, l->step_began_ns);
    return status_ok();
}

static status_t lead_steps(struct leader *l)
{
    while (!l->stop) {
        TRY(take_events(l));
        TRY(take_steps(l));
        if (!l->stop) {
            TRY(expire(l));
            TRY(make_steps(l));
        }
    }
    return status_ok();
}

static void *leader_main(void *arg)
{
    struct leader *l = arg;
    host_cores_set_mask(&l->anywhere);
    l->served = lead_steps(l);
    step_runner_close(&l->runner);
    return NULL;
}

static status_t serve(struct leader *l)
{
    pthread_t thread;
    l->resting = true;
    if (pthread_create(&thread, NULL, leader_main, l) != 0) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader: cannot start a thread");
    }
    const status_t computed = step_runner_run(&l->runner);
    pthread_join(thread, NULL);
    l->broken = computed.code != STATUS_OK;
    return l->broken ? computed : l->served;
}

/* ---- life --------------------------------------------------------------------------------------- */

static status_t lead(struct leader *l)
{
    struct leader_event *assignment = NULL;
    host_cores_get_mask(&l->anywhere);
    TRY(leader_link_open(l->config->coordinator, log_module(&l->log, "link"), &l->link));
    TRY(say_hello(l));
    const struct wire_load no_load = {0};
    leader_link_set_load(l->link, &no_load, 0);
    TRY(await_assignment(l, &assignment));
    if (assignment == NULL) {
        return status_ok();
    }
    const status_t s = open_group(l, &assignment->message);
    leader_event_free(assignment);
    TRY(s);
    return serve(l);
}

static void leader_destroy(struct leader *l)
{
    leader_link_close(l->link);
    scheduler_free(l->scheduler);
    step_runner_destroy(&l->runner);
    member_close(&l->member);
    bytes_destroy(&l->frame);
    free(l->free_jobs);
    free(l->outputs);
    free(l->wire_outputs);
    free(l->tokens);
    free(l->tops);
}

static bool tell_failure(struct leader *l, const status_t *s)
{
    const struct wire_worker_message m = {.kind = WIRE_WORKER_FAILED, .failed = *s};
    if (l->link == NULL || say(l, &m).code != STATUS_OK) {
        return false;
    }
    leader_link_flush(l->link, FLUSH_NS);
    return true;
}

status_t leader_run(struct group *group, const struct member_options *options,
                    struct leader_exit *exit_out)
{
    struct leader l;
    memset(&l, 0, sizeof l);
    l.group = group;
    l.options = options;
    l.config = options->config;
    l.clock = clock_system();
    l.log = options->log;
    bytes_init(&l.frame, CONTROL_MAX_BYTES);
    const status_t s = lead(&l);
    const bool told = s.code != STATUS_OK && tell_failure(&l, &s);
    if (!l.dissolved && !l.broken) {
        status_t stopped = command(&l, CONTROL_STOP);
        if (stopped.code == STATUS_OK) {
            stopped = broadcast_frame(&l);
        }
        l.broken = stopped.code != STATUS_OK;
    }
    *exit_out = (struct leader_exit){.broken = l.broken, .told = told};
    leader_destroy(&l);
    return s;
}

#include "worker/leader.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/version.h"
#include "worker/leader_link.h"
#include "worker/member.h"
#include "worker/scheduler.h"

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
    struct scheduler *scheduler;
    struct bytes frame; /* the control frame being made */
    bool stop;          /* told to stop */
    bool dissolved; /* the group has agreed on a failure: the followers wait for no further frame */
    bool broken;    /* a step failed: they are inside a collective */

    /* Of one step, [max_num_seqs] each; tops: [max_num_seqs][SAMPLE_MAX_TOP]. */
    struct sample_row *rows;
    struct sample_token *row_tokens;
    struct sample_result *results;
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
                              .preemptions_total = load.n_preemptions};
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

static status_t allocate_step_arrays(struct leader *l, size_t n)
{
    l->rows = calloc(n, sizeof *l->rows);
    l->row_tokens = calloc(n * SCHEDULER_MAX_STOP_IDS, sizeof *l->row_tokens);
    l->results = calloc(n, sizeof *l->results);
    l->outputs = calloc(n, sizeof *l->outputs);
    l->wire_outputs = calloc(n, sizeof *l->wire_outputs);
    l->tokens = calloc(n, sizeof *l->tokens);
    l->tops = calloc(n * SAMPLE_MAX_TOP, sizeof *l->tops);
    if (l->rows == NULL || l->row_tokens == NULL || l->results == NULL || l->outputs == NULL ||
        l->wire_outputs == NULL || l->tokens == NULL || l->tops == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "leader: no memory for %zu sequences", n);
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
        .n_vocab = limits->n_vocab,
    };
    TRY(scheduler_new(&config, &l->scheduler));
    TRY(allocate_step_arrays(l, (size_t)config.max_seqs));
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

static status_t on_submit(struct leader *l, const struct wire_submit *submit)
{
    const struct scheduler_request request = {
        .seq_id = submit->seq_id,
        .tokens =
            (const int32_t *)submit->tokens.ids, // ids above INT32_MAX become negative: refused
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
    };
    const status_t s = scheduler_submit(l->scheduler, &request);
    return s.code == STATUS_OK ? s : say_finished(l, submit->seq_id, WIRE_FINISH_ERROR, s);
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

/* Takes in everything that has arrived; waits for something when there is no work. */
static status_t take_events(struct leader *l, bool idle)
{
    status_t s = status_ok();
    struct leader_event *event = leader_link_take(l->link, idle ? UINT64_MAX : 0);
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

static void describe_token(const struct scheduler_output *output, struct wire_token_info *token,
                           struct wire_top_logprob *tops)
{
    const struct sample_result *result = output->result;
    *token = (struct wire_token_info){.id = (uint32_t)result->id,
                                      .has_logprob = output->n_top >= 0,
                                      .logprob = result->logprob,
                                      .rank = (uint32_t)result->rank,
                                      .top = tops,
                                      .n_top = output->n_top > 0 ? (size_t)output->n_top : 0};
    for (int32_t i = 0; i < output->n_top; i++) {
        tops[i] = (struct wire_top_logprob){.id = (uint32_t)result->top_ids[i],
                                            .logprob = result->top_logprobs[i]};
    }
}

static status_t say_step(struct leader *l, int32_t n_outputs, uint64_t step_ns)
{
    for (int32_t i = 0; i < n_outputs; i++) {
        const struct scheduler_output *output = &l->outputs[i];
        const bool failed = output->finish == SCHEDULER_ERROR;
        describe_token(output, &l->tokens[i], l->tops + (ptrdiff_t)i * SAMPLE_MAX_TOP);
        l->wire_outputs[i] = (struct wire_seq_output){
            .seq_id = output->seq_id,
            .tokens = &l->tokens[i],
            .n_tokens = failed ? 0 : 1,
            .first_position = (uint32_t)output->position,
            .finish = wire_finish[output->finish],
            .has_stop_token_id = output->finish == SCHEDULER_STOP,
            .stop_token_id = (uint32_t)output->result->id,
            .error = failed ? status_errorf(STATUS_DATA_LOSS,
                                            "the model gave no usable logits (NaN or all -inf)")
                            : status_ok()};
    }
    const struct wire_worker_message m = {.kind = WIRE_WORKER_STEP_RESULT,
                                          .step_result = {.step = l->member.step.step,
                                                          .step_ns = step_ns,
                                                          .outputs = l->wire_outputs,
                                                          .n_outputs = (size_t)n_outputs,
                                                          .load = current_load(l)}};
    return say(l, &m);
}

/* The step everyone computes. A failure here leaves the group inside a collective. */
static status_t compute(struct leader *l)
{
    const float *logits; // sampled where they are
    TRY(command(l, CONTROL_STEP));
    TRY(step_plan_pack(&l->member.step, &l->frame));
    TRY(broadcast_frame(l));
    return engine_step(l->member.engine, &l->member.step, &logits);
}

static status_t sample(struct leader *l)
{
    const struct step_plan *step = &l->member.step;
    const int32_t n_tokens = scheduler_sample_rows(l->scheduler, step, l->rows, l->row_tokens);
    const struct sample_args args = {
        .rows = l->rows,
        .tokens = l->row_tokens,
        .n_tokens = n_tokens,
        .results = l->results,
        .n_rows = step->n_logits,
    };
    return engine_sample(l->member.engine, &args);
}

static status_t run_step(struct leader *l)
{
    const uint64_t begin_ns = clock_now_ns(l->clock);
    status_t s = compute(l);
    if (s.code == STATUS_OK) {
        s = sample(l);
    }
    if (s.code != STATUS_OK) {
        l->broken = true;
        return s;
    }
    const int32_t n = scheduler_apply(l->scheduler, &l->member.step, l->results, l->outputs);
    log_write(&l->log, LOG_TRACE, "step", "step=%llu seqs=%d rows=%d us=%llu",
              (unsigned long long)l->member.step.step, l->member.step.n_seqs, l->member.step.n_rows,
              (unsigned long long)((clock_now_ns(l->clock) - begin_ns) / 1000));
    return n > 0 ? say_step(l, n, clock_now_ns(l->clock) - begin_ns) : status_ok();
}

static status_t serve(struct leader *l)
{
    bool idle = true;
    while (!l->stop) {
        TRY(take_events(l, idle));
        if (l->stop) {
            break;
        }
        idle = scheduler_schedule(l->scheduler, &l->member.step) == 0;
        const struct wire_load load = current_load(l);
        leader_link_set_load(l->link, &load, idle ? 0 : clock_now_ns(l->clock));
        if (!idle) {
            TRY(run_step(l));
        }
    }
    return status_ok();
}

/* ---- life --------------------------------------------------------------------------------------- */

static status_t lead(struct leader *l)
{
    struct leader_event *assignment = NULL;
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
    member_close(&l->member);
    bytes_destroy(&l->frame);
    free(l->rows);
    free(l->row_tokens);
    free(l->results);
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

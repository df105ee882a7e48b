#include "tests/coordinator/fake_worker.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "proto/rpc/rpc.h"
#include "proto/wire/link.h"
#include "tests/coordinator/tiny_model.h"
#include "tests/support/test.h"

#define MAX_SEQS   4096
#define MAX_PROMPT 4096
#define WAIT_NS    (10 * NS_PER_S)

struct fake_seq {
    uint64_t id, seed;
    uint32_t prompt[MAX_PROMPT];
    size_t n_prompt;
    uint32_t n_done, max_tokens, min_tokens;
    uint32_t stop_ids[64];
    size_t n_stop_ids;
    int32_t n_top;
    bool scores_prompt, has_deadline;
    size_t
        n_scored; /* prompt tokens whose log probabilities have been sent, the first one included */
};

struct fake_worker {
    struct fake_worker_options options;
    struct rpc_channel *channel;
    struct rpc_call *call;
    pthread_t thread;
    bool joined;

    pthread_mutex_t mutex; /* all below */
    bool assigned, shut_down, stopping, ended;
    status_t end;
    uint32_t n_lanes;
    struct fake_seq *seqs[MAX_SEQS];
    size_t n_seqs;
    size_t n_submits, n_cancels;
    uint64_t time_left_ns; /* of the last one submitted */
    uint64_t prompt_tokens;
};

uint32_t fake_token(uint64_t seed, uint32_t index)
{
    uint64_t z = seed * 0x9e3779b97f4a7c15u + index;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return 'a' + (uint32_t)((z ^ (z >> 27)) % 26);
}

static void say(struct fake_worker *w, const struct wire_worker_message *m)
{
    struct bytes packed;
    bytes_init(&packed, 1 << 26);
    status_t s = wire_worker_message_pack(m, &packed);
    if (s.code == STATUS_OK) {
        s = rpc_send(w->call, packed.data, packed.size);
    }
    (void)s; // a broken stream is seen by its end
    bytes_destroy(&packed);
}

// ---- what the coordinator says (poller thread) ----

static void take_submit(struct fake_worker *w, const struct wire_submit *submit)
{
    struct fake_seq *seq = calloc(1, sizeof *seq);
    if (seq == NULL || w->n_seqs == MAX_SEQS || submit->tokens.n > MAX_PROMPT) {
        abort();
    }
    *seq = (struct fake_seq){.id = submit->seq_id,
                             .seed = submit->seed + submit->sample,
                             .n_prompt = submit->tokens.n,
                             .max_tokens = submit->max_tokens,
                             .min_tokens = submit->min_tokens,
                             .n_stop_ids = submit->stop_token_ids.n,
                             .n_top = submit->n_top,
                             .scores_prompt = submit->n_prompt_top >= 0,
                             .n_scored = 1,
                             .has_deadline = submit->time_left_ns > 0};
    memcpy(seq->prompt, submit->tokens.ids, submit->tokens.n * sizeof seq->prompt[0]);
    for (size_t i = 0; i < submit->stop_token_ids.n; i++) {
        seq->stop_ids[i] = submit->stop_token_ids.ids[i];
    }
    w->seqs[w->n_seqs++] = seq;
    w->n_submits++;
    w->time_left_ns = submit->time_left_ns;
    w->prompt_tokens += submit->tokens.n;
}

static void remove_seq(struct fake_worker *w, size_t i)
{
    free(w->seqs[i]);
    w->seqs[i] = w->seqs[--w->n_seqs];
}

static void take_cancel(struct fake_worker *w, uint64_t id)
{
    w->n_cancels++;
    for (size_t i = 0; i < w->n_seqs; i++) {
        if (w->seqs[i]->id == id) {
            remove_seq(w, i);
            return;
        }
    }
}

static uint32_t lanes_of(const struct wire_assign *assign)
{
    // The plan's bytes are the plan's business; tests of this folder use one rank, which has one lane.
    return assign->plan_bytes > 0 ? 1 : 0;
}

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct fake_worker *w = rpc_call_user(call);
    struct arena arena;
    struct wire_coordinator_message m;
    arena_init(&arena, 1 << 26);
    const status_t s = wire_coordinator_message_unpack(data, size, &arena, &m);
    if (s.code != STATUS_OK) {
        abort();
    }
    pthread_mutex_lock(&w->mutex);
    switch (m.kind) {
    case WIRE_COORDINATOR_ASSIGN:
        w->assigned = true;
        w->n_lanes = lanes_of(&m.assign);
        break;
    case WIRE_COORDINATOR_SUBMIT:
        take_submit(w, &m.submit);
        break;
    case WIRE_COORDINATOR_CANCEL:
        take_cancel(w, m.cancel_seq_id);
        break;
    default:
        w->shut_down = true;
        break;
    }
    pthread_mutex_unlock(&w->mutex);
    arena_destroy(&arena);
}

static void on_closed(struct rpc_call *call, const status_t *status)
{
    struct fake_worker *w = rpc_call_user(call);
    pthread_mutex_lock(&w->mutex);
    w->ended = true;
    w->end = *status;
    pthread_mutex_unlock(&w->mutex);
}

static const struct rpc_handlers handlers = {.on_message = on_message, .on_closed = on_closed};

// ---- steps (the worker's thread, with the mutex) ----

static bool is_stop(const struct fake_seq *seq, uint32_t id)
{
    for (size_t i = 0; i < seq->n_stop_ids; i++) {
        if (seq->stop_ids[i] == id && seq->n_done >= seq->min_tokens) {
            return true;
        }
    }
    return false;
}

static uint32_t next_token(const struct fake_seq *seq)
{
    return seq->seed == FAKE_ECHO ? seq->prompt[seq->n_done % seq->n_prompt]
                                  : fake_token(seq->seed, seq->n_done);
}

/* Half of what is missing, then the rest. */
static void score_prompt(struct fake_seq *seq, struct wire_seq_output *output)
{
    static struct wire_token_info infos[MAX_PROMPT];
    const size_t missing = seq->n_prompt - seq->n_scored;
    const size_t n = seq->n_scored == 1 ? (missing + 1) / 2 : missing;
    *output = (struct wire_seq_output){.seq_id = seq->id,
                                       .prompt_logprobs = infos + seq->n_scored,
                                       .n_prompt_logprobs = n,
                                       .first_prompt_position = (uint32_t)seq->n_scored,
                                       .error = status_ok()};
    for (size_t i = seq->n_scored; i < seq->n_scored + n; i++) {
        infos[i] = (struct wire_token_info){
            .id = seq->prompt[i], .has_logprob = true, .logprob = -(float)i, .rank = 1};
    }
    seq->n_scored += n;
}

static void step_seq(struct fake_worker *w, struct fake_seq *seq, struct wire_token_info *token,
                     struct wire_seq_output *output)
{
    static const struct wire_top_logprob alternatives[20] = {{.id = TINY_VOCAB - 1, .logprob = -1}};
    struct wire_seq_output scored = {0};
    if (seq->scores_prompt && seq->n_scored < seq->n_prompt) {
        score_prompt(seq, &scored);
        if (seq->n_scored < seq->n_prompt) {
            *output = scored;
            return;
        }
    }
    if (seq->has_deadline && w->options.late_after > 0 && seq->n_done == w->options.late_after) {
        *output = (struct wire_seq_output){
            .seq_id = seq->id, .finish = WIRE_FINISH_DEADLINE, .error = status_ok()};
        return;
    }
    const uint32_t id = next_token(seq);
    *token = (struct wire_token_info){
        .id = id, .has_logprob = seq->n_top >= 0, .logprob = -0.5F, .rank = 1};
    if (seq->n_top > 0) {
        token->top = alternatives;
        token->n_top = (size_t)seq->n_top;
    }
    *output = (struct wire_seq_output){.seq_id = seq->id,
                                       .tokens = token,
                                       .n_tokens = 1,
                                       .first_position = seq->n_done,
                                       .prompt_logprobs = scored.prompt_logprobs,
                                       .n_prompt_logprobs = scored.n_prompt_logprobs,
                                       .first_prompt_position = scored.first_prompt_position,
                                       .error = status_ok()};
    if (w->options.skip_position && seq->n_done == 1) {
        output->first_position = 2;
    }
    if (is_stop(seq, id)) {
        output->finish = WIRE_FINISH_STOP;
        output->has_stop_token_id = true;
        output->stop_token_id = id;
    } else if (seq->n_done + 1 == seq->max_tokens) {
        output->finish = WIRE_FINISH_LENGTH;
    }
    seq->n_done++;
}

static struct wire_load load_of(const struct fake_worker *w)
{
    return (struct wire_load){.running = (uint32_t)w->n_seqs,
                              .kv_blocks_used = w->n_seqs,
                              .kv_blocks_total = w->options.kv_blocks_per_lane,
                              .prompt_tokens_total =
                                  w->options.prompt_token_ns > 0 ? w->prompt_tokens : 0,
                              .prompt_ns_total = w->options.prompt_token_ns * w->prompt_tokens};
}

static void step(struct fake_worker *w, struct wire_token_info *tokens,
                 struct wire_seq_output *outputs)
{
    size_t n = 0;
    if (!w->options.hold) {
        for (size_t i = 0; i < w->n_seqs; i++) {
            step_seq(w, w->seqs[i], &tokens[n], &outputs[n]);
            n++;
        }
    }
    for (size_t i = n; i-- > 0;) {
        if (outputs[i].finish != WIRE_FINISH_NONE) {
            remove_seq(w, i);
        }
    }
    if (n > 0) {
        const struct wire_worker_message m = {
            .kind = WIRE_WORKER_STEP_RESULT,
            .step_result = {.outputs = outputs, .n_outputs = n, .load = load_of(w)}};
        say(w, &m);
    }
}

static void say_hello(struct fake_worker *w)
{
    const struct fake_worker_options *o = &w->options;
    const struct wire_worker_message m = {
        .kind = WIRE_WORKER_HELLO,
        .hello = {.link_version = o->link_version,
                  .version = "fake",
                  .join_token = o->join_token != NULL ? o->join_token : "",
                  .has_group = o->has_group,
                  .group_id = o->group_id,
                  .generation = o->generation,
                  .world_size = o->world_size,
                  .host = "nowhere",
                  .device = "fake"}};
    say(w, &m);
}

static void say_ready(struct fake_worker *w)
{
    static const uint64_t kv_bytes = 4096;
    struct wire_worker_message m = {.kind = WIRE_WORKER_LOADING,
                                    .loading = {.bytes_done = 1, .bytes_total = 2}};
    say(w, &m);
    if (w->options.fail.code != STATUS_OK) {
        m = (struct wire_worker_message){.kind = WIRE_WORKER_FAILED, .failed = w->options.fail};
    } else if (!w->options.stay_loading) {
        m = (struct wire_worker_message){
            .kind = WIRE_WORKER_READY,
            .ready = {.n_lanes = w->n_lanes,
                      .kv_blocks_per_lane = w->options.kv_blocks_per_lane,
                      .weight_bytes = 1000,
                      .kv_bytes = kv_bytes,
                      .rank_kv_bytes = &kv_bytes,
                      .n_rank_kv_bytes = 1}};
    }
    say(w, &m);
}

static void *worker_main(void *arg)
{
    struct fake_worker *w = arg;
    struct wire_token_info *tokens = calloc(MAX_SEQS, sizeof *tokens);
    struct wire_seq_output *outputs = calloc(MAX_SEQS, sizeof *outputs);
    bool ready = false;
    uint64_t heartbeat_ns = 0;
    pthread_mutex_lock(&w->mutex);
    while (!w->stopping && !w->ended && !w->shut_down) {
        if (w->assigned && !ready) {
            ready = true;
            say_ready(w);
        }
        const bool talks = ready && !w->options.stay_silent;
        if (talks && !w->options.stay_loading && w->options.fail.code == STATUS_OK) {
            step(w, tokens, outputs);
        }
        if (talks && clock_now_ns(clock_system()) > heartbeat_ns) {
            const struct wire_worker_message m = {.kind = WIRE_WORKER_HEARTBEAT,
                                                  .heartbeat = load_of(w)};
            say(w, &m);
            heartbeat_ns = clock_now_ns(clock_system()) + NS_PER_S / 20;
        }
        pthread_mutex_unlock(&w->mutex);
        usleep((useconds_t)(w->options.step_ns / 1000));
        pthread_mutex_lock(&w->mutex);
    }
    pthread_mutex_unlock(&w->mutex);
    rpc_half_close(w->call);
    free(tokens);
    free(outputs);
    return NULL;
}

// ---- life ----

struct fake_worker *fake_worker_new(const struct fake_worker_options *options)
{
    struct fake_worker *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->options = *options;
    w->options.world_size = options->world_size > 0 ? options->world_size : 1;
    w->options.link_version = options->link_version > 0 ? options->link_version : WIRE_LINK_VERSION;
    w->options.step_ns = options->step_ns > 0 ? options->step_ns : 200000;
    w->options.kv_blocks_per_lane =
        options->kv_blocks_per_lane > 0 ? options->kv_blocks_per_lane : 4096;
    pthread_mutex_init(&w->mutex, NULL);
    const struct rpc_channel_options channel = {.log = {.fd = -1, .module = "fake"}};
    assert_status_ok(rpc_channel_new(options->address, &channel, &w->channel));
    const struct rpc_start_args args = {.path = "/kvasir.v1.WorkerLink/Attach",
                                        .handlers = &handlers,
                                        .user = w,
                                        .timeout_ns = RPC_NO_DEADLINE,
                                        .flags = RPC_WAIT_FOR_READY};
    assert_status_ok(rpc_start(w->channel, &args, &w->call));
    say_hello(w);
    assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
    return w;
}

static void stop_thread(struct fake_worker *w)
{
    if (w->joined) {
        return;
    }
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    w->joined = true;
}

void fake_worker_kill(struct fake_worker *w)
{
    rpc_cancel(w->call);
    stop_thread(w);
}

void fake_worker_free(struct fake_worker *w)
{
    if (w == NULL) {
        return;
    }
    stop_thread(w);
    rpc_call_release(w->call);
    rpc_channel_free(w->channel);
    while (w->n_seqs > 0) {
        remove_seq(w, 0);
    }
    pthread_mutex_destroy(&w->mutex);
    free(w);
}

// ---- looking ----

enum counter { SUBMITS, CANCELS, ACTIVE, ENDED };

static size_t count(struct fake_worker *w, int counter)
{
    pthread_mutex_lock(&w->mutex);
    const size_t counts[] = {w->n_submits, w->n_cancels, w->n_seqs, w->ended ? 1 : 0};
    pthread_mutex_unlock(&w->mutex);
    return counts[counter];
}

uint64_t fake_worker_time_left_ns(struct fake_worker *w)
{
    pthread_mutex_lock(&w->mutex);
    const uint64_t left_ns = w->time_left_ns;
    pthread_mutex_unlock(&w->mutex);
    return left_ns;
}

bool fake_worker_computes(struct fake_worker *w, uint64_t seed)
{
    bool found = false;
    pthread_mutex_lock(&w->mutex);
    for (size_t i = 0; i < w->n_seqs; i++) {
        found = found || w->seqs[i]->seed == seed;
    }
    pthread_mutex_unlock(&w->mutex);
    return found;
}

static void wait_for(struct fake_worker *w, int counter, size_t n, bool exactly)
{
    const uint64_t until = clock_now_ns(clock_system()) + WAIT_NS;
    size_t now;
    while (now = count(w, counter), exactly ? now != n : now < n) {
        if (clock_now_ns(clock_system()) > until) {
            fail_msg("worker: counter %d is %zu, waited for %zu", counter, now, n);
        }
        usleep(1000);
    }
}

status_t fake_worker_wait_end(struct fake_worker *w)
{
    wait_for(w, ENDED, 1, true);
    pthread_mutex_lock(&w->mutex);
    const status_t end = w->end;
    pthread_mutex_unlock(&w->mutex);
    return end;
}

size_t fake_worker_n_submits(struct fake_worker *w)
{
    return count(w, SUBMITS);
}

size_t fake_worker_n_cancels(struct fake_worker *w)
{
    return count(w, CANCELS);
}

size_t fake_worker_n_active(struct fake_worker *w)
{
    return count(w, ACTIVE);
}

void fake_worker_wait_submits(struct fake_worker *w, size_t n)
{
    wait_for(w, SUBMITS, n, false);
}

void fake_worker_wait_cancels(struct fake_worker *w, size_t n)
{
    wait_for(w, CANCELS, n, false);
}

void fake_worker_wait_active(struct fake_worker *w, size_t n)
{
    wait_for(w, ACTIVE, n, true);
}

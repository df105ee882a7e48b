#include "worker/bench_speed.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/philox.h"
#include "base/stats.h"
#include "worker/host.h"
#include "worker/step_queue.h"

enum { MAX_BATCH = 8192 };

struct bench {
    struct bench_session session;
    int32_t prompt, generate, max_batch;
    int32_t max_rows; /* of a step */
    int32_t batches[BENCH_MAX_BATCHES], n_batches;
    int32_t max_steps; /* under way at once */
    int32_t *tokens;   /* [max_batch]: the last of each sequence's prompt, then its placeholder */
    int32_t *blocks;   /* of one sequence */
    int32_t *ids;      /* [prompt] */
    float *logits;     /* [n_vocab] */
    double *times;     /* [generate]: of the decode steps */
    struct sample_row *rows;
    uint32_t n_drawn;
    struct bench_floor floor;
};

static status_t must_calloc(size_t n, size_t size, void *memory_out)
{
    void *const memory = calloc(n, size);
    if (memory == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "bench: no memory for %zu times %zu bytes",
                             n, size);
    }
    memcpy(memory_out, &memory, sizeof memory);
    return status_ok();
}

// ---- steps ----

static int32_t draw_token(struct bench *b)
{
    const uint32_t counter[4] = {b->n_drawn++};
    const uint32_t key[2] = {(uint32_t)b->session.config->seed, 1};
    uint32_t bits[4];
    philox_4x32(counter, key, bits);
    return (int32_t)(((uint64_t)bits[0] * (uint64_t)b->session.spec.n_vocab) >> 32);
}

static int32_t blocks_of_seq(const struct bench *b)
{
    return (int32_t)plan_blocks_for(b->prompt + b->generate);
}

static int32_t seqs_of_lane(const struct bench *b, int32_t batch)
{
    const int32_t n_lanes = engine_limits(b->session.engine)->n_lanes;
    return (batch + n_lanes - 1) / n_lanes;
}

/* The same on every rank. */
static status_t check_batch(const struct bench *b, int32_t batch)
{
    const int64_t need = (int64_t)seqs_of_lane(b, batch) * blocks_of_seq(b);
    const int64_t have = engine_limits(b->session.engine)->blocks_per_lane;
    if (need > have) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "--batch %d of %d tokens needs %lld KV blocks of a lane, memory is "
                             "there for %lld" STATUS_FIX "a smaller --batch, or more ranks",
                             batch, b->prompt + b->generate, (long long)need, (long long)have);
    }
    return status_ok();
}

/* Sequence i of a batch: lanes take them in turn, in ascending order; its blocks are its own. */
static status_t add_seq(struct bench *b, int32_t batch, int32_t i, struct step_seq seq,
                        const int32_t *tokens)
{
    const int32_t per_lane = seqs_of_lane(b, batch);
    seq.seq_id = (uint64_t)i;
    seq.slot = i;
    seq.lane = i / per_lane;
    seq.n_blocks = (int32_t)plan_blocks_for(seq.n_computed + seq.n_tokens);
    for (int32_t block = 0; block < seq.n_blocks; block++) {
        b->blocks[block] = (i % per_lane) * blocks_of_seq(b) + block;
    }
    return step_plan_add(&b->session.step, &seq, tokens, b->blocks);
}

static status_t run_step(struct bench *b)
{
    const float *logits = NULL;
    TRY(engine_step(b->session.engine, &b->session.step, &logits));
    step_plan_clear(&b->session.step);
    return status_ok();
}

/* Whole prompts one after the other, cut where a step is full. */
static status_t fill_caches(struct bench *b, int32_t batch)
{
    struct step_plan *step = &b->session.step;
    step_plan_clear(step);
    for (int32_t i = 0; i < batch; i++) {
        for (int32_t at = 0; at < b->prompt; at++) {
            b->ids[at] = draw_token(b);
        }
        for (int32_t done = 0; done < b->prompt;) {
            const int32_t room = b->max_rows - step->n_rows;
            const int32_t left = b->prompt - done;
            const struct step_seq seq = {.n_computed = done,
                                         .n_tokens = left < room ? left : room,
                                         .n_logits = left <= room};
            TRY(add_seq(b, batch, i, seq, b->ids + done));
            done += seq.n_tokens;
            if (step->n_rows == b->max_rows) {
                TRY(run_step(b));
            }
        }
        b->tokens[i] = draw_token(b);
    }
    if (step->n_rows > 0) {
        TRY(run_step(b));
    }
    // The last prompt's: waits for the device.
    return group_rank(b->session.group) == 0 ? engine_read_logits(b->session.engine, 1, b->logits)
                                             : status_ok();
}

/* Its tokens are drawn on the device and stay there: nothing is waited for. */
static status_t submit_decode_step(struct bench *b, int32_t batch, int32_t n_computed)
{
    for (int32_t i = 0; i < batch; i++) {
        const struct step_seq seq = {.n_computed = n_computed, .n_tokens = 1, .n_logits = 1};
        TRY(add_seq(b, batch, i, seq, &b->tokens[i]));
        b->tokens[i] = step_placeholder(i); // what this step draws
        b->rows[i] = (struct sample_row){.logits = (int64_t)i * b->session.spec.n_vocab,
                                         .top_p = 1,
                                         .repetition = 1,
                                         .slot = i,
                                         .pending_slot = -1};
    }
    const struct step_sampling sampling = {.rows = b->rows};
    const bool leads = group_rank(b->session.group) == 0;
    TRY(engine_submit(b->session.engine, &b->session.step, leads ? &sampling : NULL));
    step_plan_clear(&b->session.step);
    return status_ok();
}

/* b->times: from the end of one step to the end of the next. */
static status_t decode(struct bench *b, int32_t batch)
{
    double begin = clock_now_s(clock_system());
    int32_t n_submitted = 0;
    for (int32_t step = 0; step < b->generate; step++) {
        for (; n_submitted < b->generate && n_submitted < step + b->max_steps; n_submitted++) {
            TRY(submit_decode_step(b, batch, b->prompt + n_submitted));
        }
        TRY(engine_collect(b->session.engine, NULL));
        const double end = clock_now_s(clock_system());
        b->times[step] = end - begin;
        begin = end;
    }
    return status_ok();
}

// ---- a batch ----

static status_t add_memory(struct bench *b, struct bench_speed_result *result)
{
    struct bench_session *s = &b->session;
    double peak = (double)host_memory_peak();
    if (!s->device.backend->host_memory) {
        enum { MAX_DEVICES = 64 };
        struct device_info devices[MAX_DEVICES];
        int n = 0;
        TRY(s->device.backend->devices(devices, MAX_DEVICES, &n));
        const struct device_info *device = &devices[s->device.index];
        peak = (double)(device->memory_bytes - device->free_bytes);
    }
    result->peak_bytes = peak;
    result->weight_bytes = (double)engine_weight_bytes(s->engine);
    result->kv_bytes = (double)engine_kv_bytes(s->engine);
    TRY(bench_session_most(s, &result->peak_bytes));
    TRY(bench_session_most(s, &result->weight_bytes));
    return bench_session_most(s, &result->kv_bytes);
}

static status_t run_batch(struct bench *b, int32_t batch, struct bench_speed_result *result)
{
    const double begin = clock_now_s(clock_system());
    TRY(fill_caches(b, batch));
    const double prefill_s = clock_now_s(clock_system()) - begin;
    if (b->session.trace != NULL) {
        bench_trace_reset(b->session.trace);
    }
    engine_rest(b->session.engine);
    const struct step_times before = *engine_times(b->session.engine);
    const double decoding = clock_now_s(clock_system());
    TRY(decode(b, batch));
    const double decode_s = clock_now_s(clock_system()) - decoding;
    const struct step_times *after = engine_times(b->session.engine);
    const double gap_ns = (double)(after->gap_ns - before.gap_ns);
    const double busy_ns = (double)(after->busy_ns - before.busy_ns);
    stats_sort(b->times, (size_t)b->generate);
    *result = (struct bench_speed_result){
        .n_ranks = group_size(b->session.group),
        .batch = batch,
        .prompt = b->prompt,
        .generate = b->generate,
        .prefill_s = prefill_s,
        .decode_s = decode_s,
        .median_step_s = b->times[b->generate / 2],
        .p99_step_s = b->times[(int32_t)((double)(b->generate - 1) * 0.99 + 0.5)],
        .gap_share = gap_ns / (gap_ns + busy_ns),
        .floor = b->floor,
    };
    if (b->session.trace != NULL) {
        result->ops = bench_trace_ops(b->session.trace, &result->n_ops);
    }
    return add_memory(b, result);
}

static status_t run_batches(struct bench *b, bench_speed_report_fn report, void *user)
{
    struct bench_speed_result result;
    TRY(run_batch(b, b->max_batch, &result));
    for (int32_t i = 0; i < b->n_batches; i++) {
        TRY(run_batch(b, b->batches[i], &result));
        if (group_rank(b->session.group) == 0) {
            report(user, &b->session, &result);
        }
    }
    return status_ok();
}

// ---- the whole ----

static status_t measure_floor(struct bench *b)
{
    struct bench_session *s = &b->session;
    if (!s->config->floor) {
        return status_ok();
    }
    const struct bench_floor_options options = {
        .backend = s->device.backend,
        .device = s->device.index,
        .cores = &s->cores,
    };
    TRY(bench_floor_measure(s->group, &options, &b->floor));
    host_memory_peak_reset(); // what this took is no part of the engine
    TRY(bench_session_sum(s, &b->floor.copy_bytes_s));
    return bench_session_sum(s, &b->floor.matmul_flops_s);
}

static status_t alloc(struct bench *b)
{
    const size_t n = (size_t)b->max_batch;
    TRY(must_calloc(n, sizeof *b->tokens, &b->tokens));
    TRY(must_calloc((size_t)b->session.spec.n_vocab, sizeof *b->logits, &b->logits));
    TRY(must_calloc(n, sizeof *b->rows, &b->rows));
    TRY(must_calloc((size_t)b->prompt, sizeof *b->ids, &b->ids));
    TRY(must_calloc((size_t)b->generate, sizeof *b->times, &b->times));
    return must_calloc((size_t)blocks_of_seq(b), sizeof *b->blocks, &b->blocks);
}

static void destroy(struct bench *b)
{
    bench_session_destroy(&b->session);
    free(b->tokens);
    free(b->logits);
    free(b->rows);
    free(b->ids);
    free(b->times);
    free(b->blocks);
}

static status_t set_up(struct bench *b, const struct bench_session_request *request)
{
    const struct bench_config *config = request->config;
    TRY(bench_config_batches(config, MAX_BATCH, b->batches, &b->n_batches));
    for (int32_t i = 0; i < b->n_batches; i++) {
        b->max_batch = b->batches[i] > b->max_batch ? b->batches[i] : b->max_batch;
    }
    b->prompt = (int32_t)config->prompt;
    b->generate = (int32_t)config->generate;
    b->max_steps = (int32_t)config->steps_ahead + 1;
    // A step holds every sequence once; prompts shorter than a step leave no more than theirs.
    const int64_t all = (int64_t)b->max_batch * b->prompt;
    const int64_t wanted = config->max_num_batched_tokens;
    b->max_rows = (int32_t)(all < wanted ? all : wanted);
    b->max_rows = b->max_rows > b->max_batch ? b->max_rows : b->max_batch;
    TRY(bench_session_init(request, &b->session));
    if (config->prompt + config->generate > b->session.spec.max_positions) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "--prompt %d and --generate %d are more than the model's %d positions",
                             b->prompt, b->generate, b->session.spec.max_positions);
    }
    TRY(measure_floor(b));
    const struct bench_session_limits limits = {.max_num_seqs = b->max_batch,
                                                .max_rows = b->max_rows,
                                                .max_model_len = b->prompt + b->generate,
                                                .max_steps = b->max_steps};
    return bench_session_open_engine(&b->session, request->model_dir, &limits);
}

status_t bench_speed_run(const struct bench_session_request *request, bench_speed_report_fn report,
                         void *user)
{
    struct bench b = {.n_batches = 0};
    status_t s = set_up(&b, request);
    if (s.code == STATUS_OK) {
        s = group_agree(request->group, alloc(&b));
    }
    if (s.code == STATUS_OK) {
        s = check_batch(&b, b.max_batch);
    }
    if (s.code == STATUS_OK) {
        s = run_batches(&b, report, user);
        *request->broken = s.code != STATUS_OK;
    }
    destroy(&b);
    return s;
}

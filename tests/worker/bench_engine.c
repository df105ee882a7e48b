/*
 * bench_engine.c - speed of prompts and of decoding, by the engine alone
 *
 * usage: bench_engine [--device NAME] [--under-way N] MODEL CONTEXT STEPS BATCH...
 *
 * What:  makes up the weights of the model whose config.json is in MODEL. For each batch fills the caches of so many
 *        sequences with CONTEXT random tokens, in steps of up to 2048 tokens, then decodes STEPS tokens of each, greedily, and
 *        prints a line of JSON: tokens a second of both, the median step, and how much of the time of decoding no step was
 *        under way. N steps (2) are submitted before the first of them is collected. No scheduler, no gRPC: what the
 *        engine and the device can do. Not a test: nothing fails but the engine itself.
 * Units: seconds; a step is everything from the tokens of the last one to those of this one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/reference/engine_backend.h"
#include "worker/engine.h"
#include "worker/step_queue.h"

enum { MAX_ROWS = 2048, MAX_BATCHES = 16 };

struct bench {
    const char *device, *model;
    int32_t context, steps, max_batch;
    int32_t max_rows;  /* of a step */
    int32_t max_steps; /* under way at once */
    struct group *group;
    struct model_spec spec;
    struct plan plan;
    struct engine *engine;
    struct step_plan step;
    int32_t *tokens; /* [max_batch]: the last of each sequence's prompt, then its placeholder */
    int32_t *blocks; /* of one sequence */
    int32_t *prompt; /* [context] */
    float *logits;   /* [n_vocab] */
    bool quiet;      /* a round that is not to be printed */
    struct sample_row *rows;
    uint64_t random;
};

static double now_s(void)
{
    return (double)clock_now_ns(clock_system()) * 1e-9;
}

static status_t must_calloc(size_t n, size_t size, void *memory_out)
{
    void *const memory = calloc(n, size);
    if (memory == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory");
    }
    memcpy(memory_out, &memory, sizeof memory);
    return status_ok();
}

static status_t open_bench(struct bench *b)
{
    const struct backend *backend = NULL;
    TRY(engine_backend(b->device, &backend));
    TRY(spec_load(b->model, &b->spec));
    const struct plan_request request = {
        .tp = group_size(b->group), .pp = 1, .placement = PLAN_SHARE};
    TRY(plan_make(&b->spec, &request, &b->plan));
    const struct engine_options options = {
        .model_dir = b->model,
        .load = ENGINE_LOAD_DUMMY,
        .weights_seed = 1,
        .backend = backend,
        .dtype = DTYPE_BF16,
        .kv_dtype = DTYPE_BF16,
        .max_num_seqs = b->max_batch,
        .max_num_batched_tokens = b->max_rows,
        .max_model_len = b->context + b->steps,
        .max_steps = b->max_steps,
        .device_memory_share = 0.9,
        .tune = true,
        .log = {.fd = 2, .level = LOG_WARN, .rank = group_rank(b->group), .module = "engine"},
    };
    TRY(engine_new(b->group, &b->spec, &b->plan, &options, &b->engine));
    TRY(step_plan_init(&b->step, engine_limits(b->engine)));
    const size_t n = (size_t)b->max_batch;
    TRY(must_calloc(n, sizeof *b->tokens, &b->tokens));
    TRY(must_calloc((size_t)b->spec.n_vocab, sizeof *b->logits, &b->logits));
    TRY(must_calloc(n, sizeof *b->rows, &b->rows));
    TRY(must_calloc((size_t)b->context, sizeof *b->prompt, &b->prompt));
    return must_calloc((size_t)b->context + (size_t)b->steps, sizeof *b->blocks, &b->blocks);
}

static void close_bench(struct bench *b)
{
    step_plan_destroy(&b->step);
    engine_free(b->engine);
    plan_destroy(&b->plan);
    spec_destroy(&b->spec);
    free(b->tokens);
    free(b->logits);
    free(b->rows);
    free(b->prompt);
    free(b->blocks);
}

static int32_t draw_token(struct bench *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((b->random >> 33) % (uint64_t)b->spec.n_vocab);
}

/* Sequence i of a batch: lanes take them in turn, in ascending order; its blocks are its own. */
static status_t add_seq(struct bench *b, const int32_t batch, int32_t i, struct step_seq seq,
                        const int32_t *tokens)
{
    const struct step_limits *limits = engine_limits(b->engine);
    const int32_t per_lane = (batch + limits->n_lanes - 1) / limits->n_lanes;
    const int32_t of_seq = (b->context + b->steps + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    if ((int64_t)per_lane * of_seq > limits->blocks_per_lane) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "a batch of %d needs %d blocks of a lane, there are %lld", batch,
                             per_lane * of_seq, (long long)limits->blocks_per_lane);
    }
    seq.seq_id = (uint64_t)i;
    seq.slot = i;
    seq.lane = i / per_lane;
    seq.n_blocks = (seq.n_computed + seq.n_tokens + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS;
    for (int32_t block = 0; block < seq.n_blocks; block++) {
        b->blocks[block] = (i % per_lane) * of_seq + block;
    }
    return step_plan_add(&b->step, &seq, tokens, b->blocks);
}

static status_t run_step(struct bench *b)
{
    const float *logits = NULL;
    TRY(engine_step(b->engine, &b->step, &logits));
    step_plan_clear(&b->step);
    return status_ok();
}

/* Whole prompts one after the other, cut where a step is full. */
static status_t fill_caches(struct bench *b, int32_t batch)
{
    step_plan_clear(&b->step);
    for (int32_t i = 0; i < batch; i++) {
        for (int32_t at = 0; at < b->context; at++) {
            b->prompt[at] = draw_token(b);
        }
        for (int32_t done = 0; done < b->context;) {
            const int32_t room = b->max_rows - b->step.n_rows;
            const int32_t left = b->context - done;
            const struct step_seq seq = {.n_computed = done,
                                         .n_tokens = left < room ? left : room,
                                         .wants_logits = left <= room};
            TRY(add_seq(b, batch, i, seq, b->prompt + done));
            done += seq.n_tokens;
            if (b->step.n_rows == b->max_rows) {
                TRY(run_step(b));
            }
        }
        b->tokens[i] = draw_token(b);
    }
    if (b->step.n_rows > 0) {
        TRY(run_step(b));
    }
    // The last prompt's: waits for the device.
    return group_rank(b->group) == 0 ? engine_read_logits(b->engine, 1, b->logits) : status_ok();
}

static status_t submit_decode_step(struct bench *b, int32_t batch, int32_t n_computed)
{
    for (int32_t i = 0; i < batch; i++) {
        const struct step_seq seq = {.n_computed = n_computed, .n_tokens = 1, .wants_logits = 1};
        TRY(add_seq(b, batch, i, seq, &b->tokens[i]));
        b->tokens[i] = step_placeholder(i); // what this step draws
        b->rows[i] = (struct sample_row){.logits = (int64_t)i * b->spec.n_vocab,
                                         .top_p = 1,
                                         .repetition = 1,
                                         .slot = i,
                                         .pending_slot = -1};
    }
    const struct step_sampling sampling = {.rows = b->rows};
    TRY(engine_submit(b->engine, &b->step, group_rank(b->group) == 0 ? &sampling : NULL));
    step_plan_clear(&b->step);
    return status_ok();
}

/* times: from the end of one step to the end of the next. */
static status_t decode(struct bench *b, int32_t batch, double *times)
{
    double begin = now_s();
    int32_t n_submitted = 0;
    for (int32_t step = 0; step < b->steps; step++) {
        while (n_submitted < b->steps && n_submitted < step + b->max_steps) {
            TRY(submit_decode_step(b, batch, b->context + n_submitted));
            n_submitted++;
        }
        TRY(engine_collect(b->engine, NULL));
        const double end = now_s();
        times[step] = end - begin;
        begin = end;
    }
    return status_ok();
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static status_t bench_batch(struct bench *b, int32_t batch, double *times)
{
    double begin = now_s();
    TRY(fill_caches(b, batch));
    const double prompts_s = now_s() - begin;
    engine_rest(b->engine);
    const struct step_times before = *engine_times(b->engine);
    const double decoding = now_s();
    TRY(decode(b, batch, times));
    const double decode_s = now_s() - decoding;
    const struct step_times *after = engine_times(b->engine);
    const double gap_ns = (double)(after->gap_ns - before.gap_ns);
    const double busy_ns = (double)(after->busy_ns - before.busy_ns);
    qsort(times, (size_t)b->steps, sizeof *times, compare_doubles);
    if (group_rank(b->group) == 0 && !b->quiet) {
        printf("{\"suite\": \"engine\", \"device\": \"%s\", \"ranks\": %d, \"batch\": %d, "
               "\"context\": %d, \"steps\": %d, \"prompt_tokens_per_s\": %.6g, "
               "\"decode_tokens_per_s\": %.6g, \"median_step_s\": %.5g, \"gap_share\": %.4g}\n",
               b->device, group_size(b->group), batch, b->context, b->steps,
               (double)batch * b->context / prompts_s, (double)batch * b->steps / decode_s,
               times[b->steps / 2], gap_ns / (gap_ns + busy_ns));
        fflush(stdout);
    }
    return status_ok();
}

static status_t run(struct bench *b, char **batches, int n)
{
    for (int i = 0; i < n; i++) {
        const int32_t batch = atoi(batches[i]);
        b->max_batch = batch > b->max_batch ? batch : b->max_batch;
    }
    if (b->max_batch > MAX_ROWS || b->context < 1 || b->steps < 1) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "batches are at most %d", MAX_ROWS);
    }
    const int64_t rows = (int64_t)b->max_batch * b->context;
    b->max_rows = rows < MAX_ROWS ? (int32_t)rows : MAX_ROWS;
    TRY(open_bench(b));
    double *times = NULL;
    TRY(must_calloc((size_t)b->steps, sizeof *times, &times));
    b->quiet = true; // brings in code, chooses algorithms
    status_t s = bench_batch(b, b->max_batch, times);
    b->quiet = false;
    for (int i = 0; i < n && s.code == STATUS_OK; i++) {
        s = bench_batch(b, atoi(batches[i]), times);
    }
    free(times);
    return s;
}

int main(int argc, char **argv)
{
    struct bench b = {.device = "cpu", .max_steps = 2, .random = 1};
    if (argc > 2 && strcmp(argv[1], "--device") == 0) {
        b.device = argv[2];
        argc -= 2;
        argv += 2;
    }
    if (argc > 2 && strcmp(argv[1], "--under-way") == 0) {
        b.max_steps = atoi(argv[2]);
        argc -= 2;
        argv += 2;
    }
    if (argc < 5 || argc > 4 + MAX_BATCHES || b.max_steps < 1) {
        fprintf(stderr, "usage: bench_engine [--device NAME] [--under-way N] MODEL CONTEXT STEPS "
                        "BATCH...\n");
        return 64;
    }
    b.model = argv[1];
    b.context = atoi(argv[2]);
    b.steps = atoi(argv[3]);
    status_t s = group_open("bench", &b.group);
    if (s.code == STATUS_OK) {
        s = run(&b, argv + 4, argc - 4);
    }
    if (s.code != STATUS_OK) {
        status_print(stderr, &s);
    }
    close_bench(&b);
    group_close(b.group);
    return status_exit_code(&s);
}

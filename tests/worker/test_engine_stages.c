/*
 * test_engine_stages.c - the engine in pipeline stages: every cut of the ranks into stages gives the same
 *
 * On the CPU's backend, and on CUDA's over the simulator. Every rank runs the same program, with each layout tp x pp that the number of ranks allows. With one stage it leaves in its
 * directory what every layout is to give, and with several it compares: logits with one stage of as many ranks, bit by bit
 * where the ranks of a stage divide every layer as they do there, and drawn ids with one rank. CMake runs it with 1, 2
 * and 3 ranks first.
 */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/plan_memory.h"
#include "tests/worker/ahead_backend.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "tests/worker/reference_forward.h"

enum { N_SEQS = 9, N_DRAWN = 10, MAX_PROMPT = 17, MAX_STAGES = 4, MAX_TP = 4, N_BATCHES = 4 };

static const struct test_model_shape shapes[] = {
    {.n_hidden = 48,
     .n_heads = 8,
     .head_dim = 6,
     .n_vocab = 61,
     .n_layers = 5,
     .kv_heads = {4, 2, 1, 8, 4},
     .n_ff = {100, 300, 64, 200, 257},
     .max_positions = 128,
     .dtype = DTYPE_F32,
     .seed = 1},
    // Every block in the place of either, layers with nothing at all, a tied head.
    {.n_hidden = 131,
     .n_heads = 8,
     .head_dim = 6,
     .n_vocab = 67,
     .n_layers = 7,
     .nas = true,
     .attention = {SPEC_BLOCK_LINEAR, SPEC_BLOCK_FULL, SPEC_BLOCK_NONE, SPEC_BLOCK_NONE,
                   SPEC_BLOCK_FULL, SPEC_BLOCK_FULL, SPEC_BLOCK_LINEAR},
     .ffn = {SPEC_BLOCK_FULL, SPEC_BLOCK_LINEAR, SPEC_BLOCK_FULL, SPEC_BLOCK_NONE, SPEC_BLOCK_NONE,
             SPEC_BLOCK_FULL, SPEC_BLOCK_NONE},
     .kv_heads = {0, 4, 0, 0, 1, 2, 0},
     .n_ff = {200, 0, 64, 0, 0, 130, 0},
     .max_positions = 128,
     .tied_head = true,
     .dtype = DTYPE_F32,
     .seed = 6},
    // What CUDA's kernels take, and small enough for the simulator.
    {.n_hidden = 64,
     .n_heads = 4,
     .head_dim = 32,
     .n_vocab = 61,
     .n_layers = 2,
     .kv_heads = {2, 4},
     .n_ff = {96, 64},
     .max_positions = 128,
     .dtype = DTYPE_BF16,
     .seed = 21},
};

enum { N_SHAPES = sizeof shapes / sizeof shapes[0], CUDA_SHAPE = N_SHAPES - 1 };

static const int placements[] = {PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN};

struct layout {
    int32_t shape, tp, pp;
    int placement;
};

struct fixture {
    struct group *group;
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    struct engine_driver driver;
    struct layout layout;
};

static bool on_the_cpu(void)
{
    return ahead_backend() == backend_cpu();
}

static int dtype_of_test(void)
{
    return on_the_cpu() ? DTYPE_F32 : DTYPE_BF16;
}

static bool leads(const struct fixture *f)
{
    return group_rank(f->group) == 0;
}

// ---- what layouts leave for each other ----

/* In the directory the test runs in. */
static void record_path(const struct layout *layout, const char *what, int32_t tp, char buf[128])
{
    snprintf(buf, 128, "engine_stages-%s-%d-%s-%s-%d.bin", ahead_backend()->name, layout->shape,
             plan_placement_name(layout->placement), what, tp);
}

static void leave(const struct layout *layout, const char *what, const void *data, size_t size)
{
    char path[128];
    record_path(layout, what, layout->tp, path);
    test_write_file(path, data, size);
}

/* What the layout of tp ranks in one stage left, which must be there. */
static void recall(const struct layout *layout, const char *what, int32_t tp, void *data,
                   size_t size)
{
    char path[128];
    record_path(layout, what, tp, path);
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fail_msg("%s is missing: run with %d ranks first", path, tp);
        return;
    }
    assert_int_equal(fread(data, 1, size, file), size);
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
}

// ---- logits ----

struct batch {
    struct driver_seq seqs[N_SEQS];
    int32_t tokens[N_SEQS][64];
    float *logits; /* of all sequences */
    size_t logits_bytes;
};

static void batch_make(struct batch *batch, const struct engine_driver *driver)
{
    static const int32_t lengths[N_SEQS] = {1, 45, 16, 17, 3, 33, 60, 2, 31};
    const int32_t n_vocab = driver->spec.n_vocab;
    size_t n = 0;
    for (int32_t i = 0; i < N_SEQS; i++) {
        n += (size_t)lengths[i] * (size_t)n_vocab;
    }
    batch->logits_bytes = n * sizeof *batch->logits;
    batch->logits = calloc(n, sizeof *batch->logits);
    assert_non_null(batch->logits);
    float *at = batch->logits;
    for (int32_t i = 0; i < N_SEQS; i++) {
        for (int32_t t = 0; t < lengths[i]; t++) {
            batch->tokens[i][t] = (t * t * 7 + t * 3 + i * 11 + 5) % n_vocab;
        }
        batch->seqs[i] = (struct driver_seq){
            .tokens = batch->tokens[i],
            .n_tokens = lengths[i],
            .lane = i * driver->plan.n_lanes / N_SEQS,
            .logits = at,
        };
        at += (size_t)lengths[i] * (size_t)n_vocab;
    }
}

/* One rank's logits are compared with float64. */
static void check_reference(const struct fixture *f, const struct batch *batch)
{
    const int32_t n_vocab = f->driver.spec.n_vocab;
    for (int32_t i = 0; i < N_SEQS; i++) {
        const struct driver_seq *seq = &batch->seqs[i];
        const size_t n = (size_t)seq->n_tokens * (size_t)n_vocab;
        double *want = calloc(n, sizeof *want);
        assert_non_null(want);
        const struct reference_input input = {seq->tokens, seq->n_tokens, DTYPE_F32};
        reference_forward(&f->model, &input, want);
        const size_t last = n - (size_t)n_vocab;
        for (int32_t v = 0; v < n_vocab; v++) {
            const double tolerance = on_the_cpu() ? 1e-3 : 0.1;
            assert_close(seq->logits[last + (size_t)v], want[last + (size_t)v], tolerance, 1e-3);
        }
        free(want);
    }
}

/* Tiles are dealt stage by stage, so that ranks of a stage weigh the same: some layers may be cut in other places. */
static bool cuts_are_those_of_one_stage(const struct fixture *f)
{
    const struct plan *plan = &f->driver.plan;
    const struct plan_request request = {.tp = plan->tp, .pp = 1, .placement = f->layout.placement};
    const size_t size = ((size_t)plan->tp + 1) * sizeof(int32_t);
    struct plan one;
    bool same = true;
    assert_status_ok(plan_make(&f->driver.spec, &request, &one));
    for (int32_t i = 0; i < plan->n_layers; i++) {
        same = same && memcmp(plan->layers[i].ffn_cuts, one.layers[i].ffn_cuts, size) == 0;
    }
    plan_destroy(&one);
    assert_true(same || plan->tp > 1);
    return same;
}

static void compare_logits(const struct fixture *f, const float *got, size_t size)
{
    float *want = malloc(size);
    assert_non_null(want);
    recall(&f->layout, "logits", f->layout.tp, want, size);
    if (cuts_are_those_of_one_stage(f)) {
        assert_memory_equal(got, want, size);
    }
    for (size_t i = 0; i < size / sizeof *want; i++) {
        assert_close(got[i], want[i], 1e-4, 1e-4);
    }
    free(want);
}

static void check_logits(struct fixture *f)
{
    struct batch batch;
    batch_make(&batch, &f->driver);
    engine_driver_run(&f->driver, batch.seqs, N_SEQS, 13);
    if (leads(f)) {
        check_reference(f, &batch);
        if (f->layout.pp == 1) {
            leave(&f->layout, "logits", batch.logits, batch.logits_bytes);
        } else {
            compare_logits(f, batch.logits, batch.logits_bytes);
        }
    }
    free(batch.logits);
}

// ---- drawing ----

/* Sequence i belongs to micro-batch i % N_BATCHES, and micro-batches take turns, with any number of stages the same: as many as
 * there are stages are under way at once, and each names the tokens of its last step by their slots. */
struct drawing {
    int32_t prompts[N_SEQS][MAX_PROMPT];
    int32_t n_prompt[N_SEQS];
    int32_t drawn[N_SEQS][N_DRAWN];
};

static void drawing_make(const struct fixture *f, struct drawing *d)
{
    memset(d, 0, sizeof *d);
    for (int32_t i = 0; i < N_SEQS; i++) {
        d->n_prompt[i] = 1 + i * 5 % MAX_PROMPT;
        for (int32_t t = 0; t < d->n_prompt[i]; t++) {
            d->prompts[i][t] = (i * 17 + t * 5 + 3) % f->driver.spec.n_vocab;
        }
    }
}

static void add_sequence(struct fixture *f, const struct drawing *d, int32_t i, int32_t k)
{
    int32_t blocks[4];
    const int32_t placeholder = step_placeholder(i);
    const struct step_seq entry = {
        .seq_id = (uint64_t)i,
        .lane = i * f->driver.plan.n_lanes / N_SEQS,
        .slot = i,
        .n_computed = k == 0 ? 0 : d->n_prompt[i] + k - 1,
        .n_tokens = k == 0 ? d->n_prompt[i] : 1,
        .n_blocks = (d->n_prompt[i] + k + PLAN_BLOCK_TOKENS - 1) / PLAN_BLOCK_TOKENS,
        .n_logits = 1,
    };
    for (int32_t b = 0; b < entry.n_blocks; b++) {
        blocks[b] = i * 4 + b;
    }
    assert_status_ok(
        step_plan_add(&f->driver.step, &entry, k == 0 ? d->prompts[i] : &placeholder, blocks));
}

/* Micro-batch b's step k, on every rank. */
static void submit(struct fixture *f, const struct drawing *d, int32_t b, int32_t k)
{
    struct step_plan *plan = &f->driver.step;
    struct sample_row rows[N_SEQS];
    step_plan_clear(plan);
    plan->step = (uint64_t)k * N_BATCHES + (uint64_t)b;
    for (int32_t i = b; i < N_SEQS; i += N_BATCHES) {
        rows[plan->n_logits] = (struct sample_row){
            .logits = (int64_t)plan->n_logits * f->driver.spec.n_vocab,
            .seed = (uint64_t)i + 100,
            .position = (uint32_t)k,
            .temperature = i % 3 == 0 ? 0.0f : 0.8f,
            .top_p = 1.0f,
            .repetition = 1.0f,
            .slot = i,
            .pending_slot = k > 0 ? i : -1,
        };
        add_sequence(f, d, i, k);
    }
    const struct step_sampling sampling = {.rows = rows};
    const bool told = leads(f) || engine_draws(f->driver.engine);
    assert_status_ok(engine_submit(f->driver.engine, plan, told ? &sampling : NULL));
    memset(rows, 0x55, sizeof rows); // what was handed over may change
}

static void collect(struct fixture *f, struct drawing *d, int32_t b, int32_t k)
{
    struct sample_result results[N_SEQS];
    int32_t n = 0;
    memset(results, 0x7f, sizeof results);
    assert_status_ok(engine_collect(f->driver.engine, leads(f) ? results : NULL));
    for (int32_t i = b; i < N_SEQS; i += N_BATCHES) {
        d->drawn[i][k] = results[n++].id;
    }
}

static void check_drawing(struct fixture *f, bool first)
{
    struct drawing d;
    const int32_t pp = f->layout.pp;
    const int32_t n_steps = N_DRAWN * N_BATCHES;
    drawing_make(f, &d);
    for (int32_t step = 0; step < n_steps + pp; step++) {
        if (step >= pp) {
            collect(f, &d, (step - pp) % N_BATCHES, (step - pp) / N_BATCHES);
        }
        if (step < n_steps) {
            submit(f, &d, step % N_BATCHES, step / N_BATCHES);
        }
    }
    if (leads(f) && first && pp == 1 && f->layout.tp == 1) {
        leave(&f->layout, "drawn", d.drawn, sizeof d.drawn);
    } else if (leads(f) && (on_the_cpu() || f->layout.tp == 1)) {
        // Sums of bfloat16 over ranks round otherwise than one rank's.
        struct drawing want;
        recall(&f->layout, "drawn", 1, want.drawn, sizeof want.drawn);
        assert_memory_equal(d.drawn, want.drawn, sizeof want.drawn);
    }
}

// ---- bytes ----

/* As planned, but for what the CPU keeps beside a matrix. */
static void check_weight_bytes(const struct fixture *f)
{
    const struct plan_device *device = NULL;
    struct plan_memory memory;
    assert_status_ok(plan_device_find(ahead_backend()->name, &device));
    const struct plan_memory_request request = {.plan = &f->driver.plan,
                                                .spec = &f->driver.spec,
                                                .device = device,
                                                .dtype = dtype_of_test(),
                                                .embedding_dtype = f->model.shape.dtype,
                                                .kv_dtype = dtype_of_test(),
                                                .max_seqs = 1,
                                                .max_rows = 1,
                                                .max_model_len = 1};
    plan_memory_of(&request, group_rank(f->group), &memory);
    const uint64_t got = engine_weight_bytes(f->driver.engine);
    const uint64_t handles = on_the_cpu() ? (uint64_t)f->driver.spec.n_layers * 10 * 64 : 0;
    assert_true(got >= memory.weights && got - memory.weights <= handles);
}

/* Every rank has the KV bytes and the weights that the plan says, and under share and token each KV byte is stored once. */
static void check_bytes(struct fixture *f)
{
    const struct engine *engine = f->driver.engine;
    const struct plan *plan = &f->driver.plan;
    const struct step_limits *limits = engine_limits(engine);
    struct comm *comm = group_comm(f->group);
    assert_int_equal(engine_kv_bytes(engine),
                     plan_kv_bytes(plan, comm->rank, dtype_of_test(), limits->blocks_per_lane));
    uint64_t stored = 0;
    uint64_t heads = 0;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        uint64_t theirs = engine_kv_bytes(engine);
        assert_status_ok(comm->ops->broadcast(comm, &theirs, sizeof theirs, rank));
        stored += theirs;
    }
    for (int32_t i = 0; i < f->model.shape.n_layers; i++) {
        heads += (uint64_t)f->driver.spec.layers[i].n_kv_heads;
    }
    const uint64_t logical = (uint64_t)limits->blocks_per_lane * (uint64_t)limits->n_lanes *
                             PLAN_BLOCK_TOKENS * heads * (uint64_t)f->driver.spec.head_dim * 2 *
                             dtype_bytes(dtype_of_test());
    assert_true(f->layout.placement != PLAN_REPLICATE ? stored == logical : stored >= logical);
    check_weight_bytes(f);
}

// ---- layouts ----

static void check_layout(struct fixture *f, const struct layout *layout)
{
    const struct driver_options options = {.placement = layout->placement,
                                           .dtype = dtype_of_test(),
                                           .kv_dtype = dtype_of_test(),
                                           .max_rows = 80,
                                           .max_steps = layout->pp + 1,
                                           .pp = layout->pp,
                                           .backend = ahead_backend()};
    f->layout = *layout;
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
    assert_status_ok(plan_check(&f->driver.plan, &f->driver.spec));
    check_bytes(f);
    check_logits(f);
    check_drawing(f, true);
    check_drawing(f, false); // what the first left in slots and messages harms nobody
    engine_driver_close(&f->driver);
}

static void check_shape(struct fixture *f, int32_t shape)
{
    const int32_t size = group_size(f->group);
    for (int32_t pp = 1; pp <= MAX_STAGES; pp++) {
        const int32_t tp = size / pp;
        const bool possible = size % pp == 0 && tp <= MAX_TP && pp <= shapes[shape].n_layers;
        const size_t n_placements = on_the_cpu() ? 3 : tp == 1; // the simulator is slow
        for (size_t p = 0; possible && p < n_placements; p++) {
            check_layout(f, &(struct layout){shape, tp, pp, placements[p]});
        }
    }
}

static void test_engine_stages_change_nothing(void **state)
{
    static struct fixture f;
    f.group = engine_driver_group(state);
    for (int32_t shape = on_the_cpu() ? 0 : CUDA_SHAPE; shape < N_SHAPES; shape++) {
        engine_driver_dir(f.group, f.dir);
        model_writer_make(&shapes[shape], &f.model);
        if (leads(&f)) {
            model_writer_write(&f.model, f.dir, NULL);
        }
        assert_status_ok(group_agree(f.group, status_ok())); // written
        check_shape(&f, shape);
        engine_driver_dir_end(f.group, f.dir);
        model_writer_free(&f.model);
    }
}

/* More steps than fit are refused, and an engine is left in the middle of its steps without harm to the next one. */
static void test_engine_stages_may_be_left_in_between(void **state)
{
    static struct fixture f;
    struct drawing d;
    f.group = engine_driver_group(state);
    if (group_size(f.group) % 2 != 0 || !on_the_cpu()) {
        return;
    }
    engine_driver_dir(f.group, f.dir);
    model_writer_make(&shapes[0], &f.model);
    if (leads(&f)) {
        model_writer_write(&f.model, f.dir, NULL);
    }
    assert_status_ok(group_agree(f.group, status_ok())); // written
    f.layout = (struct layout){0, group_size(f.group) / 2, 2, PLAN_SHARE};
    const struct driver_options options = {.placement = PLAN_SHARE,
                                           .dtype = DTYPE_F32,
                                           .kv_dtype = DTYPE_F32,
                                           .max_rows = 80,
                                           .max_steps = 2,
                                           .pp = 2};
    for (int round = 0; round < 2; round++) {
        engine_driver_open(&f.driver, f.group, &f.model, f.dir, &options);
        drawing_make(&f, &d);
        submit(&f, &d, 0, 0);
        submit(&f, &d, 1, 0);
        assert_true(engine_full(f.driver.engine));
        engine_driver_close(&f.driver);
    }
    engine_driver_dir_end(f.group, f.dir);
    model_writer_free(&f.model);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_stages_change_nothing),
        cmocka_unit_test(test_engine_stages_may_be_left_in_between),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

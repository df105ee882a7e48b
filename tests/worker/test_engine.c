/*
 * test_engine.c - the engine against a float64 reference, under mpirun with 1 to 4 ranks
 *
 * Every rank runs the same program.
 */
#include "tests/support/test.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "tests/worker/reference_forward.h"

/* Shapes that tests ask for. */
enum { STABLELM = 4, NEMOTRON_NAS };

static const struct test_model_shape shapes[] = {
    // Every KV head count that divides 8 heads, an FFN that is no multiple of a tile, a prime vocabulary.
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
    // Odd hidden size, bfloat16, tied head.
    {.n_hidden = 37,
     .n_heads = 8,
     .head_dim = 8,
     .n_vocab = 97,
     .n_layers = 4,
     .kv_heads = {1, 2, 4, 8},
     .n_ff = {130, 130, 130, 130},
     .max_positions = 128,
     .tied_head = true,
     .dtype = DTYPE_BF16,
     .seed = 2},
    // So small that ranks have no FFN columns and no vocabulary; float16 in three shards.
    {.n_hidden = 10,
     .n_heads = 4,
     .head_dim = 4,
     .n_vocab = 3,
     .n_layers = 3,
     .kv_heads = {4, 1, 2},
     .n_ff = {7, 65, 20},
     .max_positions = 128,
     .dtype = DTYPE_F16,
     .n_shards = 3,
     .seed = 3},
    // A sliding window, another theta.
    {.n_hidden = 32,
     .n_heads = 6,
     .head_dim = 10,
     .n_vocab = 50,
     .n_layers = 3,
     .kv_heads = {2, 2, 2},
     .n_ff = {96, 96, 96},
     .max_positions = 128,
     .sliding_window = 11,
     .rope_theta = 500000.0,
     .dtype = DTYPE_F32,
     .seed = 4},
    // LayerNorm with bias, a part of each head turned.
    [STABLELM] = {.n_hidden = 43,
                  .n_heads = 4,
                  .head_dim = 16,
                  .n_vocab = 59,
                  .n_layers = 3,
                  .kv_heads = {4, 4, 2},
                  .n_ff = {90, 133, 64},
                  .max_positions = 128,
                  .rotary_dim = 4,
                  .dtype = DTYPE_F32,
                  .seed = 5},
    // Every block in the place of either, one layer with nothing at all; rows of two tiles and a bit.
    [NEMOTRON_NAS] = {.n_hidden = 131,
                      .n_heads = 8,
                      .head_dim = 6,
                      .n_vocab = 67,
                      .n_layers = 7,
                      .nas = true,
                      .attention = {SPEC_BLOCK_LINEAR, SPEC_BLOCK_FULL, SPEC_BLOCK_NONE,
                                    SPEC_BLOCK_NONE, SPEC_BLOCK_FULL, SPEC_BLOCK_FULL,
                                    SPEC_BLOCK_LINEAR},
                      .ffn = {SPEC_BLOCK_FULL, SPEC_BLOCK_LINEAR, SPEC_BLOCK_FULL, SPEC_BLOCK_NONE,
                              SPEC_BLOCK_NONE, SPEC_BLOCK_FULL, SPEC_BLOCK_NONE},
                      .kv_heads = {0, 4, 0, 0, 1, 2, 0},
                      .n_ff = {200, 0, 64, 0, 0, 130, 0},
                      .max_positions = 128,
                      .dtype = DTYPE_F32,
                      .seed = 6},
};

enum { N_SHAPES = sizeof shapes / sizeof shapes[0], N_SEQS = 9 };

enum { N_PLACEMENTS = 4 };

static const int placements[N_PLACEMENTS] = {PLAN_SHARE, PLAN_REPLICATE, PLAN_TOKEN, PLAN_AUTO};

/* Sequences of many lengths, in lane order when there are n_lanes lanes. */
struct batch {
    struct driver_seq seqs[N_SEQS];
    int32_t tokens[N_SEQS][96];
    int32_t n_vocab;
};

static void batch_make(struct batch *batch, const struct engine_driver *driver)
{
    static const int32_t lengths[N_SEQS] = {1, 45, 16, 17, 3, 33, 60, 2, 31};
    const int32_t n_lanes = driver->plan.n_lanes;
    batch->n_vocab = driver->spec.n_vocab;
    for (int32_t i = 0; i < N_SEQS; i++) {
        for (int32_t t = 0; t < lengths[i]; t++) {
            batch->tokens[i][t] = (t * t * 7 + t * 3 + i * 11 + 5) % batch->n_vocab;
        }
        batch->seqs[i] = (struct driver_seq){
            .tokens = batch->tokens[i],
            .n_tokens = lengths[i],
            .lane = i * n_lanes / N_SEQS,
            .logits = calloc((size_t)lengths[i] * (size_t)batch->n_vocab, sizeof(float)),
        };
        assert_non_null(batch->seqs[i].logits);
    }
}

static void batch_free(struct batch *batch)
{
    for (int32_t i = 0; i < N_SEQS; i++) {
        free(batch->seqs[i].logits);
    }
}

/* A row that no chunk ended at is still zero. */
static bool row_is_filled(const float *row, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        if (row[i] != 0.0f) {
            return true;
        }
    }
    return false;
}

/* Within rtol of the largest logit, and the same greedy token unless the reference itself is undecided. */
static void check_row(const float *got, const double *want, int32_t n, double rtol)
{
    int32_t best = 0;
    int32_t got_best = 0;
    double largest = 0.0;
    for (int32_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(want[i]));
        best = want[i] > want[best] ? i : best;
        got_best = got[i] > got[got_best] ? i : got_best;
    }
    for (int32_t i = 0; i < n; i++) {
        assert_close(got[i], want[i], rtol * largest, 0.0);
    }
    if (want[best] - want[got_best] > 2.0 * rtol * largest) {
        assert_int_equal(got_best, best);
    }
}

/* Rows of the sequence that were computed, against [n_tokens, n_vocab] of the reference. */
static int32_t check_seq(const struct driver_seq *seq, const double *want, int32_t n_vocab,
                         double rtol)
{
    int32_t n_rows = 0;
    if (want == NULL) {
        fail_msg("no reference");
        return 0;
    }
    for (int32_t t = 0; t < seq->n_tokens; t++) {
        const float *got = seq->logits + (size_t)t * (size_t)n_vocab;
        if (row_is_filled(got, n_vocab)) {
            check_row(got, want + (size_t)t * (size_t)n_vocab, n_vocab, rtol);
            n_rows++;
        }
    }
    assert_true(
        row_is_filled(seq->logits + (size_t)(seq->n_tokens - 1) * (size_t)n_vocab, n_vocab));
    return n_rows;
}

struct fixture {
    struct group *group;
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    struct engine_driver driver;
    struct batch batch;
};

static struct fixture *fixture_open(void **state, const struct test_model_shape *shape)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->group = engine_driver_group(state);
    engine_driver_dir(f->group, f->dir);
    model_writer_make(shape, &f->model);
    if (group_rank(f->group) == 0) {
        model_writer_write(&f->model, f->dir, NULL);
    }
    assert_status_ok(group_agree(f->group, status_ok())); // written
    return f;
}

static void fixture_close(struct fixture *f)
{
    engine_driver_dir_end(f->group, f->dir);
    model_writer_free(&f->model);
    free(f);
}

/* By hand this runs with more ranks than ctest gives it: mpirun -n 8 takes the models of 8 heads. */
static bool has_heads_for(void **state, const struct test_model_shape *shape)
{
    return shape->n_heads >= group_size(engine_driver_group(state));
}

/* Token and mixtures are something else on several ranks alone, and a window is not split by token. */
static bool has_placement(const struct fixture *f, int placement)
{
    const bool several = group_size(f->group) > 1;
    switch (placement) {
    case PLAN_TOKEN:
        return several && f->model.shape.sliding_window == 0;
    case PLAN_AUTO:
        return several;
    default:
        return true;
    }
}

static int weight_dtype(const struct test_model *model)
{
    return model->shape.dtype == DTYPE_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

/* What the reference says of every sequence of the batch; rank 0 alone compares. */
static void make_references(struct fixture *f, int kv_dtype, double *wants[N_SEQS])
{
    for (int32_t i = 0; group_rank(f->group) == 0 && i < N_SEQS; i++) {
        const struct driver_seq *seq = &f->batch.seqs[i];
        wants[i] = calloc((size_t)seq->n_tokens * (size_t)f->batch.n_vocab, sizeof *wants[i]);
        assert_non_null(wants[i]);
        const struct reference_input input = {seq->tokens, seq->n_tokens, kv_dtype};
        reference_forward(&f->model, &input, wants[i]);
    }
}

/* Runs the batch in chunks and compares; the first run makes the references. */
static void check_against_reference(struct fixture *f, const struct driver_options *options,
                                    double rtol, double *wants[N_SEQS])
{
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, options);
    batch_make(&f->batch, &f->driver);
    engine_driver_run(&f->driver, f->batch.seqs, N_SEQS, 13);
    if (group_rank(f->group) == 0) {
        int32_t n_rows = 0;
        if (wants[0] == NULL) {
            const int kv_dtype = options->kv_dtype == DTYPE_I8 ? DTYPE_I8 : DTYPE_F32;
            make_references(f, kv_dtype, wants);
        }
        for (int32_t i = 0; i < N_SEQS; i++) {
            n_rows += check_seq(&f->batch.seqs[i], wants[i], f->batch.n_vocab, rtol);
        }
        assert_true(n_rows > N_SEQS);
    }
    batch_free(&f->batch);
    engine_driver_close(&f->driver);
}

static void free_references(double *wants[N_SEQS])
{
    for (int32_t i = 0; i < N_SEQS; i++) {
        free(wants[i]);
    }
}

static void test_engine_equals_the_reference(void **state)
{
    for (int32_t shape = 0; shape < N_SHAPES; shape++) {
        if (!has_heads_for(state, &shapes[shape])) {
            continue;
        }
        struct fixture *f = fixture_open(state, &shapes[shape]);
        double *wants[N_SEQS] = {0};
        for (size_t p = 0; p < N_PLACEMENTS; p++) {
            if (!has_placement(f, placements[p])) {
                continue;
            }
            const struct driver_options options = {
                .placement = placements[p],
                .dtype = weight_dtype(&f->model),
                .kv_dtype = DTYPE_F32,
                .max_rows = 70,
            };
            check_against_reference(f, &options, 1e-4, wants);
        }
        free_references(wants);
        fixture_close(f);
    }
}

static void test_engine_keeps_keys_in_bfloat16(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[0]);
    double *wants[N_SEQS] = {0};
    const struct driver_options options = {
        .placement = PLAN_SHARE, .dtype = DTYPE_F32, .kv_dtype = DTYPE_BF16, .max_rows = 70};
    check_against_reference(f, &options, 6e-2, wants);
    free_references(wants);
    fixture_close(f);
}

/* Against a reference that rounds keys and values in the same way; where float32 and float64 fall on two sides of a tie, one of
 * them is a step of 1/127 away. */
static void test_engine_keeps_keys_in_int8(void **state)
{
    for (int32_t shape = 0; shape < N_SHAPES; shape++) {
        if (!has_heads_for(state, &shapes[shape])) {
            continue;
        }
        struct fixture *f = fixture_open(state, &shapes[shape]);
        double *wants[N_SEQS] = {0};
        for (size_t p = 0; p < 3; p++) {
            if (!has_placement(f, placements[p])) {
                continue;
            }
            const struct driver_options options = {.placement = placements[p],
                                                   .dtype = weight_dtype(&f->model),
                                                   .kv_dtype = DTYPE_I8,
                                                   .max_rows = 70};
            check_against_reference(f, &options, 2e-3, wants);
        }
        free_references(wants);
        fixture_close(f);
    }
}

// ---- int8 ----

/*
 * The reference runs over the weights that int8 holds, rounded here: only scales of whole rows, for any number of ranks, give its
 * logits. Rows rounded as well add their own error, up to 16 % of the largest logit of a row in the smallest of these models.
 */
static void check_int8(void **state, const struct test_model_shape *shape)
{
    if (!has_heads_for(state, shape)) {
        return;
    }
    struct fixture *f = fixture_open(state, shape);
    double *wants[N_SEQS] = {0};
    struct driver_options options = {
        .dtype = weight_dtype(&f->model), .kv_dtype = DTYPE_F32, .max_rows = 70};
    model_writer_round(&f->model);
    for (size_t p = 0; p < 2; p++) {
        options.placement = placements[p];
        options.quantization = QUANTIZATION_INT8;
        check_against_reference(f, &options, 1e-4, wants);
        options.quantization = QUANTIZATION_W8A8;
        check_against_reference(f, &options, 0.25, wants);
    }
    free_references(wants);
    fixture_close(f);
}

static void test_engine_of_int8_equals_the_reference(void **state)
{
    for (int32_t shape = 0; shape < N_SHAPES; shape++) {
        check_int8(state, &shapes[shape]);
    }
}

/* Each sequence alone and whole gives the bits of the last row that it gives in any company and in any chunks. */
static void check_invariance(struct fixture *f, int placement, int kv_dtype, int quantization)
{
    static const int32_t chunks[] = {1, 2, 7, 16, 64};
    const struct driver_options options = {.placement = placement,
                                           .dtype = weight_dtype(&f->model),
                                           .kv_dtype = kv_dtype,
                                           .quantization = quantization,
                                           .max_rows = 64};
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
    batch_make(&f->batch, &f->driver);
    const size_t n_vocab = (size_t)f->batch.n_vocab;
    float *alone = calloc(N_SEQS * n_vocab, sizeof *alone);
    assert_non_null(alone);
    for (int32_t i = 0; i < N_SEQS; i++) {
        struct driver_seq *seq = &f->batch.seqs[i];
        engine_driver_run(&f->driver, seq, 1, 96);
        memcpy(alone + (size_t)i * n_vocab, seq->logits + (size_t)(seq->n_tokens - 1) * n_vocab,
               n_vocab * sizeof *alone);
    }
    for (size_t c = 0; c < sizeof chunks / sizeof chunks[0]; c++) {
        for (int32_t i = 0; i < N_SEQS; i++) {
            const struct driver_seq *seq = &f->batch.seqs[i];
            memset(seq->logits, 0, (size_t)seq->n_tokens * n_vocab * sizeof *seq->logits);
        }
        engine_driver_run(&f->driver, f->batch.seqs, N_SEQS, chunks[c]);
        for (int32_t i = 0; group_rank(f->group) == 0 && i < N_SEQS; i++) {
            const struct driver_seq *seq = &f->batch.seqs[i];
            assert_memory_equal(seq->logits + (size_t)(seq->n_tokens - 1) * n_vocab,
                                alone + (size_t)i * n_vocab, n_vocab * sizeof *alone);
        }
    }
    free(alone);
    batch_free(&f->batch);
    engine_driver_close(&f->driver);
}

static void test_engine_is_batch_invariant(void **state)
{
    for (int32_t shape = 0; shape < 2; shape++) {
        struct fixture *f = fixture_open(state, &shapes[shape]);
        for (size_t p = 0; p < 2; p++) {
            check_invariance(f, placements[p], DTYPE_BF16, QUANTIZATION_NONE);
            check_invariance(f, placements[p], DTYPE_I8, QUANTIZATION_NONE);
        }
        check_invariance(f, PLAN_SHARE, DTYPE_BF16, QUANTIZATION_INT8);
        check_invariance(f, PLAN_SHARE, DTYPE_I8, QUANTIZATION_W8A8);
        fixture_close(f);
    }
}

/* Every rank's number, added up. */
static uint64_t sum_over_ranks(struct group *group, uint64_t mine)
{
    struct comm *comm = group_comm(group);
    uint64_t sum = 0;
    for (int32_t rank = 0; rank < comm->size; rank++) {
        uint64_t value = mine;
        assert_status_ok(comm->ops->broadcast(comm, &value, sizeof value, rank));
        sum += value;
    }
    return sum;
}

/* row_bytes: of a key or a value of one head. */
static void check_bytes(struct fixture *f, int placement, int kv_dtype, uint64_t row_bytes)
{
    const struct driver_options options = {.placement = placement,
                                           .dtype = weight_dtype(&f->model),
                                           .kv_dtype = kv_dtype,
                                           .max_rows = 32};
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
    const struct engine *engine = f->driver.engine;
    const struct step_limits *limits = engine_limits(engine);
    assert_int_equal(sum_over_ranks(f->group, engine_bytes_read(engine)),
                     model_writer_bytes(&f->model));
    uint64_t heads = 0;
    for (int32_t i = 0; i < f->model.shape.n_layers; i++) {
        heads += (uint64_t)f->model.shape.kv_heads[i];
    }
    const uint64_t once = (uint64_t)limits->blocks_per_lane * (uint64_t)limits->n_lanes *
                          PLAN_BLOCK_TOKENS * heads * row_bytes * 2;
    const uint64_t stored = sum_over_ranks(f->group, engine_kv_bytes(engine));
    assert_int_equal(engine_kv_bytes(engine), plan_kv_bytes(&f->driver.plan, group_rank(f->group),
                                                            kv_dtype, limits->blocks_per_lane));
    if (placement != PLAN_REPLICATE) {
        assert_int_equal(stored, once);
        assert_int_equal(engine_kv_bytes(engine) * (uint64_t)group_size(f->group), once);
    } else {
        assert_true(stored >= once);
    }
    assert_true(engine_weight_bytes(engine) > 0);
    engine_driver_close(&f->driver);
}

static void test_engine_reads_and_stores_each_byte_once(void **state)
{
    for (int32_t shape = 0; shape < N_SHAPES; shape++) {
        if (!has_heads_for(state, &shapes[shape])) {
            continue;
        }
        struct fixture *f = fixture_open(state, &shapes[shape]);
        const uint64_t head_dim = (uint64_t)f->model.shape.head_dim;
        for (size_t p = 0; p < 3; p++) {
            if (has_placement(f, placements[p])) {
                check_bytes(f, placements[p], DTYPE_BF16, 2 * head_dim);
                check_bytes(f, placements[p], DTYPE_I8, head_dim + 2); // and a scale
            }
        }
        fixture_close(f);
    }
}

// ---- what goes wrong ----

static struct engine_options small_options(const char *dir)
{
    return (struct engine_options){
        .model_dir = dir,
        .backend = backend_cpu(),
        .dtype = DTYPE_F32,
        .kv_dtype = DTYPE_F32,
        .max_num_seqs = 4,
        .max_num_batched_tokens = 32,
        .max_model_len = 96,
        .threads = 1,
        .log = {.fd = -1},
    };
}

/* engine_new with these options fails, on every rank alike. */
static void check_fails(struct fixture *f, const struct engine_options *options, int code,
                        const char *says)
{
    struct model_spec spec;
    struct plan plan;
    model_writer_spec(&f->model, f->dir, &spec);
    const struct plan_request request = {
        .tp = group_size(f->group), .pp = 1, .placement = PLAN_SHARE};
    assert_status_ok(plan_make(&spec, &request, &plan));
    struct engine *engine = NULL;
    assert_status_says(engine_new(f->group, &spec, &plan, options, &engine), code, says);
    assert_null(engine);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

static void rewrite(struct fixture *f, const struct model_writer_flaws *flaws)
{
    assert_status_ok(group_agree(f->group, status_ok()));
    if (group_rank(f->group) == 0) {
        model_writer_write(&f->model, f->dir, flaws);
    }
    assert_status_ok(group_agree(f->group, status_ok()));
}

static void test_engine_refuses_bad_checkpoints(void **state)
{
    static const struct {
        struct model_writer_flaws flaws;
        int code;
        const char *says;
    } bad[] = {
        {{.leave_out = "model.layers.1.mlp.up_proj.weight"},
         STATUS_DATA_LOSS,
         "no tensor model.layers.1.mlp.up_proj.weight"},
        {{.transpose = "model.layers.0.mlp.down_proj.weight"},
         STATUS_DATA_LOSS,
         "tensor model.layers.0.mlp.down_proj.weight is [100, 48], config.json needs [48, 100]"},
        {{.leave_out = "lm_head.weight"}, STATUS_DATA_LOSS, "lm_head.weight"},
        {{.truncate_bytes = 5}, STATUS_DATA_LOSS, "truncated"},
        {{.extra = "model.layers.0.self_attn.q_proj.bias"}, STATUS_DATA_LOSS, "q_proj.bias"},
    };
    struct fixture *f = fixture_open(state, &shapes[0]);
    const struct engine_options options = small_options(f->dir);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        rewrite(f, &bad[i].flaws);
        check_fails(f, &options, bad[i].code, bad[i].says);
    }
    fixture_close(f);
}

static void test_engine_takes_the_biases_of_its_norms_alone(void **state)
{
    static const struct {
        struct model_writer_flaws flaws;
        int code;
        const char *says;
    } bad[] = {
        {{.leave_out = "model.norm.bias"}, STATUS_DATA_LOSS, "no tensor model.norm.bias"},
        {{.leave_out = "model.layers.2.input_layernorm.bias"},
         STATUS_DATA_LOSS,
         "no tensor model.layers.2.input_layernorm.bias"},
        {{.extra = "model.layers.0.self_attn.q_layernorm.bias"},
         STATUS_DATA_LOSS,
         "q_layernorm.bias"},
        {{.extra = "model.layers.0.self_attn.v_proj.bias"}, STATUS_DATA_LOSS, "v_proj.bias"},
    };
    struct fixture *f = fixture_open(state, &shapes[STABLELM]);
    const struct engine_options options = small_options(f->dir);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        rewrite(f, &bad[i].flaws);
        check_fails(f, &options, bad[i].code, bad[i].says);
    }
    fixture_close(f);

    struct fixture *rms = fixture_open(state, &shapes[0]);
    const struct engine_options others = small_options(rms->dir);
    rewrite(rms, &(struct model_writer_flaws){.extra = "model.layers.0.input_layernorm.bias"});
    check_fails(rms, &others, STATUS_DATA_LOSS, "input_layernorm.bias");
    fixture_close(rms);
}

static void test_engine_asks_for_the_tensors_of_the_blocks(void **state)
{
    static const struct {
        struct model_writer_flaws flaws;
        const char *says;
    } bad[] = {
        {{.leave_out = "model.layers.0.self_attn.linear_attn.weight"},
         "no tensor model.layers.0.self_attn.linear_attn.weight"},
        {{.leave_out = "model.layers.0.input_layernorm.weight"},
         "no tensor model.layers.0.input_layernorm.weight"},
        {{.leave_out = "model.layers.1.mlp.linear_mlp.weight"},
         "no tensor model.layers.1.mlp.linear_mlp.weight"},
        {{.extra = "model.layers.1.mlp.linear_mlp.bias"}, "linear_mlp.bias"},
    };
    struct fixture *f = fixture_open(state, &shapes[NEMOTRON_NAS]);
    const struct engine_options options = small_options(f->dir);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        rewrite(f, &bad[i].flaws);
        check_fails(f, &options, STATUS_DATA_LOSS, bad[i].says);
    }
    fixture_close(f);
}

static void test_engine_ignores_tensors_it_does_not_need(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[1]);
    rewrite(f,
            &(struct model_writer_flaws){.extra = "model.layers.0.self_attn.rotary_emb.inv_freq"});
    const struct driver_options options = {
        .placement = PLAN_SHARE, .dtype = DTYPE_F32, .kv_dtype = DTYPE_F32, .max_rows = 16};
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
    engine_driver_close(&f->driver);
    fixture_close(f);
}

static void test_engine_refuses_what_cannot_fit(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[0]);
    struct engine_options options = small_options(f->dir);
    options.kv_cache_bytes = 1;
    check_fails(f, &options, STATUS_FAILED_PRECONDITION, "no KV block fits");
    options.kv_cache_bytes = 100000;
    options.max_model_len = 128;
    options.max_num_seqs = 1;
    {
        // Room for some tokens, not for the longest sequence.
        struct model_spec spec;
        struct plan plan;
        model_writer_spec(&f->model, f->dir, &spec);
        const struct plan_request request = {
            .tp = group_size(f->group), .pp = 1, .placement = PLAN_SHARE};
        assert_status_ok(plan_make(&spec, &request, &plan));
        options.kv_cache_bytes = (uint64_t)plan_kv_bytes(&plan, 0, DTYPE_F32, 2);
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
    check_fails(f, &options, STATUS_FAILED_PRECONDITION,
                "KV memory holds sequences of 32 tokens, --max-model-len is 128" STATUS_FIX
                "--max-model-len 32");
    options.kv_cache_bytes = (uint64_t)1 << 60;
    check_fails(f, &options, STATUS_FAILED_PRECONDITION, "are available");
    options.kv_cache_bytes = 0;
    options.swap_bytes = (uint64_t)1 << 60;
    check_fails(f, &options, STATUS_FAILED_PRECONDITION, "--swap-space 1152921504606846976");
    options.swap_bytes = 4;
    check_fails(f, &options, STATUS_FAILED_PRECONDITION, "a KV block of 16 tokens in each lane");
    options.swap_bytes = 0;
    options.max_model_len = 129;
    check_fails(f, &options, STATUS_FAILED_PRECONDITION, "128 positions");
    options.max_model_len = 96;
    options.dtype = DTYPE_F16;
    check_fails(f, &options, STATUS_INVALID_ARGUMENT, "float16");
    options.dtype = DTYPE_F32;
    options.max_num_seqs = 0;
    check_fails(f, &options, STATUS_INVALID_ARGUMENT, "--max-num-seqs 0");
    options.max_num_seqs = 4;
    options.model_dir = "/nonexistent/model";
    check_fails(f, &options, STATUS_NOT_FOUND, "/nonexistent/model");
    fixture_close(f);
}

/* Which rank adds up what depends on blocks that others left. */
static void test_engine_pins_no_order_by_token(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[0]);
    const struct plan_request request = {
        .tp = group_size(f->group), .pp = 1, .placement = PLAN_TOKEN};
    struct engine_options options = small_options(f->dir);
    struct model_spec spec;
    struct plan plan;
    struct engine *engine = NULL;
    model_writer_spec(&f->model, f->dir, &spec);
    assert_status_ok(plan_make(&spec, &request, &plan));
    options.determinism = ENGINE_DETERMINISM_BATCH;
    const status_t s = engine_new(f->group, &spec, &plan, &options, &engine);
    if (plan.stripe > 1) {
        assert_status_says(s, STATUS_FAILED_PRECONDITION, STATUS_FIX "--kv-placement share");
    } else {
        assert_status_ok(s); // nothing is split
    }
    engine_free(engine);
    engine = NULL;
    options.determinism = ENGINE_DETERMINISM_DEFAULT;
    options.swap_bytes = 1 << 20;
    if (plan.stripe > 1) {
        assert_status_says(engine_new(f->group, &spec, &plan, &options, &engine),
                           STATUS_FAILED_PRECONDITION, "--swap-space with --kv-placement token");
    }
    plan_destroy(&plan);
    spec_destroy(&spec);
    fixture_close(f);
}

static void test_engine_refuses_positions_past_the_end(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[0]);
    const struct driver_options options = {
        .placement = PLAN_SHARE, .dtype = DTYPE_F32, .kv_dtype = DTYPE_F32, .max_rows = 16};
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
    const int32_t tokens[2] = {0};
    const int32_t blocks[7] = {0};
    const struct step_seq seq = {.n_computed = 95, .n_tokens = 2, .n_blocks = 7};
    assert_status_ok(step_plan_add(&f->driver.step, &seq, tokens, blocks));
    const float *logits;
    assert_status_says(engine_step(f->driver.engine, &f->driver.step, &logits), STATUS_INTERNAL,
                       "--max-model-len is 96");
    engine_driver_close(&f->driver);
    fixture_close(f);
}

/* A step of nothing is legal: every rank goes through it. */
static void test_engine_takes_an_empty_step(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[1]);
    const struct driver_options options = {
        .placement = PLAN_SHARE, .dtype = DTYPE_BF16, .kv_dtype = DTYPE_F32, .max_rows = 16};
    engine_driver_open(&f->driver, f->group, &f->model, f->dir, &options);
    step_plan_clear(&f->driver.step);
    const float *logits;
    assert_status_ok(engine_step(f->driver.engine, &f->driver.step, &logits));
    engine_driver_close(&f->driver);
    fixture_close(f);
}

struct seen {
    uint64_t done, total;
    int32_t n;
};

static void see(void *user, uint64_t bytes_done, uint64_t bytes_total)
{
    struct seen *seen = user;
    assert_true(bytes_done > seen->done);
    seen->done = bytes_done;
    seen->total = bytes_total;
    seen->n++;
}

static void test_engine_reports_progress_on_rank_0(void **state)
{
    struct fixture *f = fixture_open(state, &shapes[0]);
    struct seen seen = {0};
    struct engine_options options = small_options(f->dir);
    options.progress = see;
    options.user = &seen;
    struct model_spec spec;
    struct plan plan;
    model_writer_spec(&f->model, f->dir, &spec);
    const struct plan_request request = {
        .tp = group_size(f->group), .pp = 1, .placement = PLAN_SHARE};
    assert_status_ok(plan_make(&spec, &request, &plan));
    struct engine *engine;
    assert_status_ok(engine_new(f->group, &spec, &plan, &options, &engine));
    if (group_rank(f->group) == 0) {
        assert_true(seen.n > 9);
        assert_int_equal(seen.done, seen.total);
        assert_int_equal(seen.total, model_writer_bytes(&f->model));
    } else {
        assert_int_equal(seen.n, 0);
    }
    engine_free(engine);
    engine_free(NULL);
    plan_destroy(&plan);
    spec_destroy(&spec);
    fixture_close(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine_equals_the_reference),
        cmocka_unit_test(test_engine_keeps_keys_in_bfloat16),
        cmocka_unit_test(test_engine_keeps_keys_in_int8),
        cmocka_unit_test(test_engine_of_int8_equals_the_reference),
        cmocka_unit_test(test_engine_is_batch_invariant),
        cmocka_unit_test(test_engine_reads_and_stores_each_byte_once),
        cmocka_unit_test(test_engine_refuses_bad_checkpoints),
        cmocka_unit_test(test_engine_takes_the_biases_of_its_norms_alone),
        cmocka_unit_test(test_engine_asks_for_the_tensors_of_the_blocks),
        cmocka_unit_test(test_engine_ignores_tensors_it_does_not_need),
        cmocka_unit_test(test_engine_refuses_what_cannot_fit),
        cmocka_unit_test(test_engine_pins_no_order_by_token),
        cmocka_unit_test(test_engine_refuses_positions_past_the_end),
        cmocka_unit_test(test_engine_takes_an_empty_step),
        cmocka_unit_test(test_engine_reports_progress_on_rank_0),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

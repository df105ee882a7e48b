/*
 * test_load.c - what gets into an engine: made-up weights are those of a checkpoint that holds them, on any number of
 * ranks, and values that are no numbers are told of
 */
#include "tests/support/test.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/group.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "worker/weight_source.h"

enum { N_TOKENS = 40 };

static const struct test_model_shape shape = {
    .n_hidden = 45, // odd: the last word of a row is half empty
    .n_heads = 8,
    .head_dim = 6,
    .n_vocab = 67,
    .n_layers = 3,
    .kv_heads = {4, 1, 2},
    .n_ff = {300, 300, 300},
    .max_positions = 96,
    .dtype = DTYPE_F32,
    .seed = 21,
};

/* LayerNorm: its biases are made up too. */
static const struct test_model_shape stablelm = {
    .n_hidden = 40,
    .n_heads = 4,
    .head_dim = 8,
    .n_vocab = 50,
    .n_layers = 2,
    .kv_heads = {4, 4},
    .n_ff = {130, 130},
    .max_positions = 96,
    .rotary_dim = 4,
    .dtype = DTYPE_F32,
    .seed = 22,
};

// ---- made-up weights ----

/* What a checkpoint must hold to be the same model. */
static void fill(const struct weight_source *source, const struct model_spec *spec,
                 enum weight which, int32_t layer, float *values)
{
    struct weight_source any = *source;
    const struct weight_wanted wanted = weights_check_wanted(spec, which, layer);
    struct weight_tensor tensor;
    assert_status_ok(weight_source_find(&any, &wanted, &tensor));
    const plan_interval_t rows = {0, tensor.n_rows};
    const plan_interval_t columns = {0, tensor.n_columns};
    assert_status_ok(weight_source_make_up(&any, &tensor, rows, columns, values));
}

static void make_up_model(const struct weight_source *source, const struct model_spec *spec,
                          struct test_model *model)
{
    fill(source, spec, WEIGHT_EMBEDDING, 0, model->embedding);
    fill(source, spec, WEIGHT_HEAD, 0, model->head);
    fill(source, spec, WEIGHT_FINAL_NORM, 0, model->final_norm);
    if (model->final_norm_bias != NULL) {
        fill(source, spec, WEIGHT_FINAL_NORM_BIAS, 0, model->final_norm_bias);
    }
    for (int32_t i = 0; i < spec->n_layers; i++) {
        const struct test_layer *layer = &model->layers[i];
        fill(source, spec, WEIGHT_ATTENTION_NORM, i, layer->attention_norm);
        fill(source, spec, WEIGHT_FFN_NORM, i, layer->ffn_norm);
        if (layer->attention_norm_bias != NULL) {
            fill(source, spec, WEIGHT_ATTENTION_NORM_BIAS, i, layer->attention_norm_bias);
            fill(source, spec, WEIGHT_FFN_NORM_BIAS, i, layer->ffn_norm_bias);
        }
        fill(source, spec, WEIGHT_Q_PROJ, i, layer->q);
        fill(source, spec, WEIGHT_K_PROJ, i, layer->k);
        fill(source, spec, WEIGHT_V_PROJ, i, layer->v);
        fill(source, spec, WEIGHT_O_PROJ, i, layer->o);
        fill(source, spec, WEIGHT_GATE_PROJ, i, layer->gate);
        fill(source, spec, WEIGHT_UP_PROJ, i, layer->up);
        fill(source, spec, WEIGHT_DOWN_PROJ, i, layer->down);
    }
}

/* Logits of one sequence, on rank 0. */
static void run(struct group *group, const struct test_model *model, const char *dir,
                const struct driver_options *options, float *logits)
{
    struct engine_driver driver;
    engine_driver_open(&driver, group, model, dir, options);
    int32_t tokens[N_TOKENS];
    for (int32_t i = 0; i < N_TOKENS; i++) {
        tokens[i] = (i * 17 + 3) % model->shape.n_vocab;
    }
    struct driver_seq seq = {.tokens = tokens, .n_tokens = N_TOKENS, .logits = logits};
    engine_driver_run(&driver, &seq, 1, N_TOKENS);
    engine_driver_close(&driver);
}

/* The prompt's last row differs from seed to seed, and is the same from both sources. */
static void check_made_up(struct group *group, const struct test_model_shape *of, int dtype,
                          int quantization)
{
    char dir[TEST_PATH_BYTES];
    engine_driver_dir(group, dir);
    struct test_model model;
    model_writer_make(of, &model);
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL); // for its config.json
    }
    assert_status_ok(group_agree(group, status_ok()));
    struct driver_options options = {.placement = PLAN_SHARE,
                                     .dtype = dtype,
                                     .kv_dtype = DTYPE_F32,
                                     .quantization = quantization,
                                     .max_rows = 64,
                                     .load = ENGINE_LOAD_DUMMY,
                                     .weights_seed = 5};
    const size_t n = (size_t)N_TOKENS * (size_t)of->n_vocab;
    const size_t last = n - (size_t)of->n_vocab;
    float *logits[3];
    for (int i = 0; i < 3; i++) {
        logits[i] = calloc(n, sizeof *logits[i]);
        assert_non_null(logits[i]);
    }
    run(group, &model, dir, &options, logits[0]);
    options.weights_seed = 6;
    run(group, &model, dir, &options, logits[1]);

    struct backend_stream *stream;
    const struct stream_options one_thread = {.n_threads = 1};
    assert_status_ok(backend_cpu()->stream_new(&one_thread, &stream));
    const struct weight_source source = {.seed = 6, .backend = backend_cpu(), .stream = stream};
    struct model_spec spec;
    model_writer_spec(&model, dir, &spec);
    make_up_model(&source, &spec, &model);
    assert_status_ok(group_agree(group, status_ok())); // nobody reads the first one any more
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok()));
    options.load = ENGINE_LOAD_CHECKPOINT;
    run(group, &model, dir, &options, logits[2]);

    if (group_rank(group) == 0) {
        assert_true(
            memcmp(logits[0] + last, logits[1] + last, (size_t)of->n_vocab * sizeof(float)) != 0);
        assert_memory_equal(logits[1], logits[2], n * sizeof(float));
        assert_true(fabsf(logits[1][last]) > 1e-4f && isfinite(logits[1][last]));
    }
    for (int i = 0; i < 3; i++) {
        free(logits[i]);
    }
    spec_destroy(&spec);
    backend_cpu()->stream_free(stream);
    model_writer_free(&model);
    engine_driver_dir_end(group, dir);
}

static void test_load_dummy_is_the_checkpoint_that_holds_its_values(void **state)
{
    struct group *group = engine_driver_group(state);
    check_made_up(group, &shape, DTYPE_F32, QUANTIZATION_NONE);
    check_made_up(group, &shape, DTYPE_BF16, QUANTIZATION_NONE);
    check_made_up(group, &shape, DTYPE_BF16, QUANTIZATION_INT8);
    check_made_up(group, &shape, DTYPE_F32, QUANTIZATION_W8A8);
    check_made_up(group, &stablelm, DTYPE_F32, QUANTIZATION_NONE);
}

// ---- values that are no numbers ----

/* Loads, and returns what rank 0 logged. */
static void load_and_read_log(struct group *group, const struct test_model *model, const char *dir,
                              char *text, size_t text_bytes)
{
    char path[TEST_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/log.%d", dir, group_rank(group));
    const int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd > 0);
    const struct driver_options options = {.placement = PLAN_SHARE,
                                           .dtype = DTYPE_BF16,
                                           .kv_dtype = DTYPE_F32,
                                           .max_rows = 64,
                                           .log_fd = fd};
    struct engine_driver driver;
    engine_driver_open(&driver, group, model, dir, &options);
    engine_driver_close(&driver);
    const ssize_t n = pread(fd, text, text_bytes - 1, 0);
    assert_true(n >= 0);
    text[n] = '\0';
    close(fd);
    unlink(path);
}

static void check_defects(struct group *group, int dtype)
{
    struct test_model_shape of = shape;
    of.dtype = dtype;
    char dir[TEST_PATH_BYTES];
    char text[4096];
    engine_driver_dir(group, dir);
    struct test_model model;
    model_writer_make(&of, &model);
    // On rows of different ranks; a later tensor has more of them.
    model.layers[1].up[0] = NAN;
    const ptrdiff_t row = 45;
    model.layers[1].up[299 * row + 44] = INFINITY;
    model.layers[1].up[150 * row] = -INFINITY;
    model.layers[2].o[7] = NAN;
    for (ptrdiff_t i = 0; i < 5; i++) {
        model.layers[2].down[i * 1000] = NAN;
    }
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok()));
    load_and_read_log(group, &model, dir, text, sizeof text);
    if (group_rank(group) == 0) {
        assert_non_null(strstr(text, "level=warn"));
        assert_non_null(
            strstr(text, "tensor=model.layers.1.mlp.up_proj.weight values=3 in_all_tensors=9"));
        assert_ptr_equal(strchr(text, '\n'), strrchr(text, '\n')); // one line
    } else {
        assert_string_equal(text, "");
    }
    model_writer_free(&model);
    engine_driver_dir_end(group, dir);
}

static void test_load_warns_once_of_weights_that_are_no_numbers(void **state)
{
    struct group *group = engine_driver_group(state);
    check_defects(group, DTYPE_F32);
    check_defects(group, DTYPE_BF16);
    check_defects(group, DTYPE_F16);
}

static void test_load_says_nothing_of_good_weights(void **state)
{
    struct group *group = engine_driver_group(state);
    char dir[TEST_PATH_BYTES];
    char text[4096];
    engine_driver_dir(group, dir);
    struct test_model model;
    model_writer_make(&shape, &model);
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok()));
    load_and_read_log(group, &model, dir, text, sizeof text);
    assert_string_equal(text, "");
    model_writer_free(&model);
    engine_driver_dir_end(group, dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_dummy_is_the_checkpoint_that_holds_its_values),
        cmocka_unit_test(test_load_warns_once_of_weights_that_are_no_numbers),
        cmocka_unit_test(test_load_says_nothing_of_good_weights),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

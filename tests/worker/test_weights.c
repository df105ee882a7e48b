/*
 * test_weights.c - loading when a rank's disk fails in the middle: every rank comes back, with the same failure
 */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "parallel/group.h"
#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "worker/weights.h"
#include "worker/weights_check.h"

static const struct test_model_shape shape = {
    .n_hidden = 40,
    .n_heads = 8,
    .head_dim = 4,
    .n_vocab = 50,
    .n_layers = 3,
    .kv_heads = {4, 1, 2},
    .n_ff = {300, 300, 300},
    .max_positions = 64,
    .dtype = DTYPE_F32,
    .seed = 9,
};

struct loaded {
    struct group *group;
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    struct model_spec spec;
    struct plan plan;
    struct checkpoint *checkpoint;
    struct weight_source source;
    struct backend_stream *stream;
    struct weights weights;
    struct weight_loader loader;
};

static void open_all(struct loaded *l, struct group *group)
{
    memset(l, 0, sizeof *l);
    l->group = group;
    engine_driver_dir(group, l->dir);
    model_writer_make(&shape, &l->model);
    if (group_rank(group) == 0) {
        model_writer_write(&l->model, l->dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok()));
    model_writer_spec(&l->model, l->dir, &l->spec);
    const struct plan_request request = {.tp = group_size(group), .pp = 1, .placement = PLAN_SHARE};
    assert_status_ok(plan_make(&l->spec, &request, &l->plan));
    assert_status_ok(checkpoint_open(l->dir, &l->checkpoint));
    const struct stream_options options = {.n_threads = 1};
    assert_status_ok(backend_cpu()->stream_new(&options, &l->stream));
    const struct weights_request weights = {
        .backend = backend_cpu(),
        .stream = l->stream,
        .spec = &l->spec,
        .plan = &l->plan,
        .rank = group_rank(group),
        .formats = {.dtype = DTYPE_BF16},
        .checkpoint_dtype = DTYPE_F32,
    };
    assert_status_ok(weights_alloc(&weights, &l->weights));
    l->source.checkpoint = l->checkpoint;
    const struct weight_loader_parts parts = {.source = &l->source,
                                              .comm = group_comm(group),
                                              .backend = backend_cpu(),
                                              .stream = l->stream};
    assert_status_ok(weight_loader_init(&parts, weights_max_row_bytes(&l->spec), &l->loader));
}

static void close_all(struct loaded *l)
{
    weight_loader_destroy(&l->loader);
    weights_free(&l->weights);
    weights_free(&l->weights); // freed ones are zeroed ones
    backend_cpu()->stream_free(l->stream);
    checkpoint_close(l->checkpoint);
    plan_destroy(&l->plan);
    spec_destroy(&l->spec);
    model_writer_free(&l->model);
    engine_driver_dir_end(l->group, l->dir);
}

static void test_weights_load_ends_on_every_rank_when_a_read_fails(void **state)
{
    struct loaded l;
    open_all(&l, engine_driver_group(state));
    uint64_t bytes;
    assert_status_ok(weights_check(l.checkpoint, &l.spec, &bytes));
    assert_int_equal(bytes, model_writer_bytes(&l.model));
    // All ranks have the file open; now half of it goes away.
    assert_status_ok(group_agree(l.group, status_ok()));
    if (group_rank(l.group) == 0) {
        char path[TEST_PATH_BYTES + 32];
        snprintf(path, sizeof path, "%s/model.safetensors", l.dir);
        assert_int_equal(truncate(path, (off_t)(bytes / 2)), 0);
    }
    assert_status_ok(group_agree(l.group, status_ok()));
    const struct weights_progress progress = {.bytes_total = bytes};
    const status_t s = group_agree(l.group, weights_load(&l.weights, &l.loader, &progress));
    assert_status_says(s, STATUS_DATA_LOSS, "shrank");
    assert_status_says(s, STATUS_DATA_LOSS, ": tensor ");
    close_all(&l);
}

// ---- int8 ----

/* Sizes that fill panels of 16 outputs and words of 4 inputs, so that nothing is padded. */
static const struct test_model_shape even_shape = {
    .n_hidden = 64,
    .n_heads = 6,
    .head_dim = 16,
    .n_vocab = 96,
    .n_layers = 3,
    .kv_heads = {6, 3, 1},
    .n_ff = {384, 192, 192},
    .max_positions = 64,
    .dtype = DTYPE_F32,
    .seed = 10,
};

/* The plan counts what is allocated, but for the head of each matrix. */
static void test_weights_bytes_are_the_plans(void **state)
{
    struct group *group = engine_driver_group(state);
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    struct model_spec spec;
    struct plan plan;
    struct backend_stream *stream = NULL;
    engine_driver_dir(group, dir);
    model_writer_make(&even_shape, &model);
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok())); // written
    model_writer_spec(&model, dir, &spec);
    const struct plan_request request = {.tp = group_size(group), .pp = 1, .placement = PLAN_SHARE};
    assert_status_ok(plan_make(&spec, &request, &plan));
    const struct stream_options options = {.n_threads = 1};
    assert_status_ok(backend_cpu()->stream_new(&options, &stream));
    const size_t head = backend_cpu()->matrix_bytes(MATRIX_F32, 16, 1) - (size_t)16 * 4;
    for (int quantization = QUANTIZATION_NONE; quantization <= QUANTIZATION_W8A8; quantization++) {
        const struct weights_request wanted = {
            .backend = backend_cpu(),
            .stream = stream,
            .spec = &spec,
            .plan = &plan,
            .rank = group_rank(group),
            .formats = {.dtype = DTYPE_BF16, .quantization = quantization},
            .checkpoint_dtype = DTYPE_F32,
        };
        struct weights weights;
        struct matmul_use uses[3 * WEIGHTS_MATRICES_OF_LAYER + 1];
        assert_status_ok(weights_alloc(&wanted, &weights));
        const size_t n = (size_t)weights_uses(&weights, uses);
        const int64_t planned = plan_weight_bytes(&plan, &spec, group_rank(group), &wanted.formats);
        assert_int_equal(weights.bytes - n * head, planned);
        weights_free(&weights);
    }
    backend_cpu()->stream_free(stream);
    plan_destroy(&plan);
    spec_destroy(&spec);
    model_writer_free(&model);
    engine_driver_dir_end(group, dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_bytes_are_the_plans),
        cmocka_unit_test(test_weights_load_ends_on_every_rank_when_a_read_fails),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

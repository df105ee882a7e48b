/*
 * test_swap_cost.c - the figures that swapping is decided by, from steps of a real engine, alike on every rank
 */
#include "tests/support/test.h"

#include "tests/worker/engine_driver.h"
#include "tests/worker/model_writer.h"
#include "worker/swap_cost.h"

static const struct test_model_shape shape = {.n_hidden = 64,
                                              .n_heads = 8,
                                              .head_dim = 8,
                                              .n_vocab = 61,
                                              .n_layers = 4,
                                              .kv_heads = {4, 1, 8, 2},
                                              .n_ff = {96, 160, 64, 96},
                                              .max_positions = 128,
                                              .dtype = DTYPE_BF16,
                                              .seed = 8};

static void check_layout(struct group *group, const struct test_model *model, const char *dir,
                         int32_t pp, uint64_t swap_bytes)
{
    struct engine_driver driver;
    const struct driver_options options = {.placement = PLAN_SHARE,
                                           .dtype = DTYPE_F32,
                                           .kv_dtype = DTYPE_BF16,
                                           .max_rows = 60,
                                           .max_steps = pp > 1 ? pp + 1 : 1,
                                           .pp = pp,
                                           .swap_bytes = swap_bytes};
    engine_driver_open(&driver, group, model, dir, &options);
    assert_true(engine_limits(driver.engine)->host_blocks_per_lane > 0);
    struct swap_cost cost = {.block_s = -1.0, .token_s = -1.0};
    assert_status_ok(swap_cost_measure(group, driver.engine, 96, &cost));
    assert_true(cost.block_s >= 0.0 && cost.block_s < 1.0);
    assert_true(cost.token_s > 0.0 && cost.token_s < 1.0);
    struct comm *comm = group_comm(group);
    struct swap_cost first = cost;
    assert_status_ok(comm->ops->broadcast(comm, &first, sizeof first, 0));
    assert_memory_equal(&cost, &first, sizeof cost);
    engine_driver_close(&driver);
}

static void test_swap_cost_is_measured(void **state)
{
    struct group *group = engine_driver_group(state);
    char dir[TEST_PATH_BYTES];
    struct test_model model;
    engine_driver_dir(group, dir);
    model_writer_make(&shape, &model);
    if (group_rank(group) == 0) {
        model_writer_write(&model, dir, NULL);
    }
    assert_status_ok(group_agree(group, status_ok())); // written
    check_layout(group, &model, dir, 1, 1 << 20);
    check_layout(group, &model, dir, 1, 16 << 10); // some slots
    if (group_size(group) == 2) {
        check_layout(group, &model, dir, 2, 1 << 20);
    }
    engine_driver_dir_end(group, dir);
    model_writer_free(&model);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swap_cost_is_measured),
    };
    return engine_driver_main(tests, sizeof tests / sizeof tests[0]);
}

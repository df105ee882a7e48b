#include "worker/swap_cost.h"

#include <stdlib.h>

#include "base/clock.h"

/* Steps are tried with so many rows, then with four times as many while that is quick: a device that is fed few rows at a time
 * computes each of them at several times the cost. */
enum { FIRST_ROWS = 32, LAST_ROWS = 512, GROWTH = 4 };

#define QUICK_S 0.05

/* Blocks that are moved for a figure, and steps of a kind, of which the quickest counts. */
enum { MOVED_BLOCKS = 64, STEPS = 3 };

struct measuring {
    struct group *group;
    struct engine *engine;
    struct step_plan plan;
    int32_t *zeros, *blocks; /* [LAST_ROWS] */
};

static status_t make_plan(struct measuring *m, int32_t n_rows, int32_t n_moved)
{
    const struct step_seq seq = {
        .n_tokens = n_rows,
        .n_blocks = (int32_t)plan_blocks_for(n_rows),
    };
    step_plan_clear(&m->plan);
    for (int32_t i = 0; i < n_moved; i++) {
        const struct step_move out = {.kind = STEP_MOVE_OUT, .from = i, .to = i};
        TRY(step_plan_add_move(&m->plan, &out));
    }
    for (int32_t i = 0; i < n_moved; i++) {
        const struct step_move in = {.kind = STEP_MOVE_IN, .from = i, .to = i};
        TRY(step_plan_add_move(&m->plan, &in));
    }
    return step_plan_add(&m->plan, &seq, m->zeros, m->blocks);
}

/* The quickest of some, as rank 0 saw it. */
static status_t time_steps(struct measuring *m, int32_t n_rows, int32_t n_moved,
                           double *seconds_out)
{
    struct comm *comm = group_comm(m->group);
    double least_s = 0.0;
    TRY(make_plan(m, n_rows, n_moved));
    for (int32_t i = 0; i < STEPS; i++) {
        const double begin_s = clock_now_s(clock_system());
        TRY(engine_submit(m->engine, &m->plan, NULL));
        TRY(engine_collect(m->engine, NULL));
        const double seconds = clock_now_s(clock_system()) - begin_s;
        least_s = i == 0 || seconds < least_s ? seconds : least_s;
    }
    TRY(comm->ops->broadcast(comm, &least_s, sizeof least_s, 0));
    *seconds_out = least_s;
    return status_ok();
}

static int32_t lesser(int64_t a, int64_t b)
{
    return (int32_t)(a < b ? a : b);
}

static status_t measure_token(struct measuring *m, int32_t max_rows, double *token_s_out)
{
    double seconds = 0.0;
    int32_t n_rows = lesser(FIRST_ROWS, max_rows);
    TRY(time_steps(m, n_rows, 0, &seconds));
    while (seconds < QUICK_S && n_rows < max_rows) {
        n_rows = lesser((int64_t)GROWTH * n_rows, max_rows);
        TRY(time_steps(m, n_rows, 0, &seconds));
    }
    *token_s_out = seconds / n_rows;
    return status_ok();
}

static status_t measure_block(struct measuring *m, double *block_s_out)
{
    const struct step_limits *limits = engine_limits(m->engine);
    const int32_t n_blocks = lesser(limits->blocks_per_lane, limits->host_blocks_per_lane);
    const int32_t n = lesser(lesser(MOVED_BLOCKS, n_blocks), limits->max_moves / 2);
    double with_s = 0.0, without_s = 0.0;
    TRY(time_steps(m, 1, 0, &without_s));
    TRY(time_steps(m, 1, n, &with_s));
    *block_s_out = with_s > without_s ? (with_s - without_s) / n : 0.0;
    return status_ok();
}

static status_t measure(struct measuring *m, int32_t max_model_len, struct swap_cost *cost_out)
{
    const struct step_limits *limits = engine_limits(m->engine);
    const int32_t max_rows = lesser(lesser(limits->max_rows, max_model_len), LAST_ROWS);
    struct swap_cost cost = {0};
    TRY(measure_token(m, max_rows, &cost.token_s));
    TRY(measure_block(m, &cost.block_s));
    engine_rest(m->engine);
    *cost_out = cost;
    return status_ok();
}

static status_t init(struct measuring *m)
{
    m->zeros = calloc(LAST_ROWS, sizeof *m->zeros);
    m->blocks = calloc(LAST_ROWS, sizeof *m->blocks);
    if (m->zeros == NULL || m->blocks == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory to measure swapping");
    }
    for (int32_t i = 0; i < LAST_ROWS; i++) {
        m->blocks[i] = i;
    }
    return step_plan_init(&m->plan, engine_limits(m->engine));
}

status_t swap_cost_measure(struct group *group, struct engine *engine, int32_t max_model_len,
                           struct swap_cost *cost_out)
{
    struct measuring m = {.group = group, .engine = engine};
    status_t s = group_agree(group, init(&m));
    if (status_is_ok(&s)) {
        s = measure(&m, max_model_len, cost_out);
    }
    step_plan_destroy(&m.plan);
    free(m.zeros);
    free(m.blocks);
    return status_is_ok(&s) ? s : status_wrapf(s, "measuring what swapping costs");
}

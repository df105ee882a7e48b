/*
 * test_plan_fit.c - what fits, and what is advised where something does not
 */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "parallel/plan_fit.h"
#include "tests/parallel/models.h"

static struct plan_memory_request request_of(const struct plan *plan, const struct model_spec *spec)
{
    const struct plan_device *cuda = NULL;
    assert_status_ok(plan_device_find("cuda", &cuda));
    return (struct plan_memory_request){
        .plan = plan,
        .spec = spec,
        .device = cuda,
        .dtype = DTYPE_BF16,
        .kv_dtype = DTYPE_BF16,
        .max_seqs = 64,
        .max_rows = 512,
        .max_model_len = 4096,
    };
}

static uint64_t largest_total(const struct plan_memory_request *request)
{
    uint64_t most = 0;
    for (int32_t rank = 0; rank < plan_n_ranks(request->plan); rank++) {
        struct plan_memory m;
        plan_memory_of(request, rank, &m);
        most = m.total > most ? m.total : most;
    }
    return most;
}

/* The blocks fit on every rank; one more would not on some, unless all that is wanted is there. */
static void test_plan_fit_takes_what_is_there(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++) {
        struct model_spec spec = models_random(false);
        const int32_t n_working = models_working_layers(&spec);
        const struct plan_request layout = {
            .tp = models_between(1, spec.n_heads < 6 ? spec.n_heads : 6),
            .pp = n_working < 2 ? 1 : models_between(1, n_working < 4 ? n_working : 4),
            .placement = i % 3 == 0 ? PLAN_TOKEN : PLAN_SHARE,
        };
        struct plan plan = models_plan_stages(&spec, &layout);
        struct plan_memory_request request = request_of(&plan, &spec);
        request.blocks_per_lane = plan_stripes_for(&plan, 256);
        const uint64_t usable =
            largest_total(&request) + test_random_below((uint64_t)1 << models_between(1, 36));
        assert_status_ok(plan_fit(&request, usable));
        assert_true(largest_total(&request) <= usable);
        const int64_t wanted = plan_memory_blocks_wanted(&plan, 64, 4096);
        assert_true(request.blocks_per_lane >= 256 && request.blocks_per_lane <= wanted);
        if (request.blocks_per_lane < wanted) {
            request.blocks_per_lane += plan.stripe;
            assert_true(largest_total(&request) > usable);
        }
        plan_destroy(&plan);
        spec_destroy(&spec);
    }
}

/* Whether a layout is accepted. */
static bool accepts(const struct model_spec *spec, const struct plan_request *layout,
                    int32_t max_model_len, int kv_dtype, uint64_t usable)
{
    struct plan plan = models_plan_stages(spec, layout);
    struct plan_memory_request request = request_of(&plan, spec);
    request.max_model_len = max_model_len;
    request.kv_dtype = kv_dtype;
    const status_t s = plan_fit(&request, usable);
    plan_destroy(&plan);
    return s.code == STATUS_OK;
}

/* The number behind a flag in the advice; 0: it is not there. */
static int advised(const status_t *s, const char *flag)
{
    const char *fix = strstr(s->msg, STATUS_FIX);
    const char *at = fix != NULL ? strstr(fix, flag) : NULL;
    int value = 0;
    return at != NULL && sscanf(at + strlen(flag), "%d", &value) == 1 ? value : 0;
}

/* Every piece of advice is followed, and is the nearest that is enough; what is left out would not be. */
static void check_advice(const struct model_spec *spec, int32_t len, uint64_t usable)
{
    const struct plan_request one = {.tp = 1, .pp = 1, .placement = PLAN_SHARE};
    struct plan plan = models_plan_stages(spec, &one);
    struct plan_memory_request request = request_of(&plan, spec);
    request.max_model_len = len;
    const status_t s = plan_fit(&request, usable);
    assert_int_equal(s.code, STATUS_FAILED_PRECONDITION);
    const int context = advised(&s, "--max-model-len ");
    const int tp = advised(&s, "-tp ");
    const int pp = advised(&s, "-pp ");
    assert_true(context == 0 || accepts(spec, &one, context, DTYPE_BF16, usable));
    assert_false(accepts(spec, &one, context + 1, DTYPE_BF16, usable));
    for (int n = 2; n <= 32; n++) {
        const struct plan_request ranks = {.tp = n, .pp = 1, .placement = PLAN_SHARE};
        const struct plan_request stages = {.tp = 1, .pp = n, .placement = PLAN_SHARE};
        if (tp == 0 || n <= tp) {
            assert_int_equal(accepts(spec, &ranks, len, DTYPE_BF16, usable), n == tp);
        }
        if (pp == 0 || n <= pp) {
            assert_int_equal(accepts(spec, &stages, len, DTYPE_BF16, usable), n == pp);
        }
    }
    plan_destroy(&plan);
}

static void test_plan_fit_advises_what_is_enough(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    spec.max_positions = 1 << 20;
    spec.rotary_dim = 128;
    const uint64_t gb = (uint64_t)1000 * 1000 * 1000;
    struct plan plan = models_plan(&spec, 1, PLAN_SHARE);
    struct plan_memory_request request = request_of(&plan, &spec);
    status_t s = plan_fit(&request, 12 * gb); // 14.1 GB of weights
    assert_int_equal(advised(&s, "-tp "), 2);
    assert_int_equal(advised(&s, "-pp "), 2);
    request.max_model_len = 1 << 20;
    s = plan_fit(&request, 24 * gb);
    // 35.970 GB of KV and a unit behind each plane. A lane must hold the whole sequence, and its one KV head of the last layers
    // lies on one rank: more ranks do not help, more stages do.
    assert_non_null(strstr(s.msg, "35.971 GB of KV for a sequence of 1048576 tokens"));
    assert_int_equal(advised(&s, "-tp "), 0);
    assert_true(advised(&s, "-pp ") > 1 && advised(&s, "--max-model-len ") > 100000);
    check_advice(&spec, 4096, 12 * gb);
    check_advice(&spec, 4096, 5 * gb);
    check_advice(&spec, 1 << 17, 18 * gb);
    check_advice(&spec, 1 << 20, 24 * gb);
    plan_destroy(&plan);
    spec_destroy(&spec);
}

static void test_plan_fit_advises_narrower_kv(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    const struct plan_request one = {.tp = 1, .pp = 1, .placement = PLAN_SHARE};
    struct plan plan = models_plan_stages(&spec, &one);
    struct plan_memory_request request = request_of(&plan, &spec);
    request.kv_dtype = DTYPE_BF16;
    request.blocks_per_lane = 4096 / PLAN_BLOCK_TOKENS;
    const uint64_t usable = largest_total(&request);
    request.kv_dtype = DTYPE_F32;
    assert_status_says(plan_fit(&request, usable), STATUS_FAILED_PRECONDITION,
                       "--kv-cache-dtype bfloat16");
    assert_true(accepts(&spec, &one, 4096, DTYPE_BF16, usable));
    plan_destroy(&plan);
    spec_destroy(&spec);
}

static void test_plan_fit_says_when_nothing_is_enough(void **state)
{
    (void)state;
    struct model_spec spec = models_deci_7b();
    const struct plan_request one = {.tp = 1, .pp = 1, .placement = PLAN_SHARE};
    struct plan plan = models_plan_stages(&spec, &one);
    struct plan_memory_request request = request_of(&plan, &spec);
    assert_status_says(plan_fit(&request, 1000000), STATUS_FAILED_PRECONDITION,
                       "devices with more memory");
    plan_destroy(&plan);
    spec_destroy(&spec);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_fit_takes_what_is_there),
        cmocka_unit_test(test_plan_fit_advises_what_is_enough),
        cmocka_unit_test(test_plan_fit_advises_narrower_kv),
        cmocka_unit_test(test_plan_fit_says_when_nothing_is_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

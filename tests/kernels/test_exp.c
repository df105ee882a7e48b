#include "tests/kernels/kernel_check.h"

#include <math.h>

static float exp_of(const char *isa, float x)
{
    struct backend_stream *stream = stream_of(isa, 1);
    float y = 0.0f;
    stream->isa->exp_scaled(&x, 0.0f, 1.0f, 1, &y);
    stream_done(stream);
    return y;
}

/* Dense near 0, where softmax and silu live, and over the whole range of normal results. */
static void check_bound(const char *isa)
{
    enum { N = 100000, CHUNK = 1000 };
    struct backend_stream *stream = stream_of(isa, 1);
    for (int i = 0; i < N; i += CHUNK) {
        float x[CHUNK], y[CHUNK];
        double want[CHUNK];
        for (int j = 0; j < CHUNK; j++) {
            const double range = i % (2 * CHUNK) == 0 ? 87.3 : 1.0;
            x[j] = (float)test_random_double(-range, range * 1.01);
            want[j] = exp((double)x[j]);
        }
        stream->isa->exp_scaled(x, 0.0f, 1.0f, CHUNK, y);
        assert_all_close(y, want, CHUNK, kernel_tolerance(TOLERANCE_EXP), isa);
    }
    stream_done(stream);
}

static void test_exp_is_within_two_ulp_of_float64(void **state)
{
    (void)state;
    each_isa(check_bound);
}

static void check_edges(const char *isa)
{
    assert_true(exp_of(isa, 0.0f) == 1.0f);
    assert_true(exp_of(isa, -0.0f) == 1.0f);
    assert_true(exp_of(isa, -INFINITY) == 0.0f);
    assert_true(exp_of(isa, -88.0f) == 0.0f); // no subnormals
    assert_true(exp_of(isa, -1e30f) == 0.0f);
    assert_close(exp_of(isa, -87.3365f), exp((double)-87.3365f), 0.0, 3e-7);
    assert_close(exp_of(isa, 88.7228f), exp((double)88.7228f), 0.0, 3e-7);
    assert_true(exp_of(isa, 88.8f) == INFINITY);
    assert_true(exp_of(isa, INFINITY) == INFINITY);
    assert_true(isnan(exp_of(isa, NAN)));
}

static void test_exp_takes_every_float(void **state)
{
    (void)state;
    each_isa(check_edges);
}

/* An element's bits do not depend on where it stands. */
static void check_position(const char *isa)
{
    enum { N = 37 };
    struct backend_stream *stream = stream_of(isa, 1);
    float *x = random_new(N, 30.0), *all = guarded_new(N), *one = guarded_new(1);
    stream->isa->exp_scaled(x, 3.0f, 0.7f, N, all);
    for (int i = 0; i < N; i++) {
        stream->isa->exp_scaled(x + i, 3.0f, 0.7f, 1, one);
        assert_same_bits(one, all + i, 1, "position");
    }
    guarded_free(x);
    guarded_free(all);
    guarded_free(one);
    stream_done(stream);
}

static void test_exp_bits_do_not_depend_on_the_lane(void **state)
{
    (void)state;
    each_isa(check_position);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_is_within_two_ulp_of_float64),
        cmocka_unit_test(test_exp_takes_every_float),
        cmocka_unit_test(test_exp_bits_do_not_depend_on_the_lane),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

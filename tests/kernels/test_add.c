#include "tests/kernels/kernel_check.h"

static void check_sizes(struct backend_stream *stream)
{
    static const int64_t sizes[] = {0, 1, 7, 8, 37, 1000, 70001};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        const size_t n = (size_t)sizes[s];
        float *x = random_new(n, 1.0), *y = random_new(n, 1.0), *want = guarded_new(n);
        for (size_t i = 0; i < n; i++) {
            want[i] = x[i] + y[i];
        }
        const struct add_args args = {.x = x, .y = y, .n = sizes[s]};
        assert_status_ok(cpu_add(stream, &args));
        assert_same_bits(x, want, n, "add");
        guarded_free(x);
        guarded_free(y);
        guarded_free(want);
    }
}

static void test_add_is_exact(void **state)
{
    (void)state;
    each_stream(check_sizes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_add_is_exact)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

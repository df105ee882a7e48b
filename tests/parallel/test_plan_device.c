/*
 * test_plan_device.c - what plans count for matrices, against what backends allocate
 */
#include "tests/support/test.h"

#include "kernels/backend.h"
#include "kernels/cuda/cuda.h"
#include "parallel/plan_device.h"
#include "tests/parallel/models.h"

static void test_plan_device_counts_matrices_as_the_cpu(void **state)
{
    (void)state;
    const struct plan_device *device = NULL;
    assert_status_ok(plan_device_find("cpu", &device));
    assert_int_equal(device->activation, backend_cpu()->activation);
    assert_int_equal(device->recorded, backend_cpu()->graph_begin != NULL);
    const size_t handle = backend_cpu()->matrix_bytes(DTYPE_F32, 16, 1) - (size_t)16 * 4;
    for (int i = 0; i < 1000; i++) {
        const int32_t n_out = models_between(1, 300);
        const int32_t n_in = models_between(1, 300);
        static const int formats[] = {DTYPE_F32, DTYPE_BF16, MATRIX_I8, MATRIX_W8A8};
        const int dtype = formats[i % 4];
        assert_int_equal(device->matrix_bytes(dtype, n_out, n_in) + handle,
                         backend_cpu()->matrix_bytes(dtype, n_out, n_in));
    }
}

static void test_plan_device_counts_matrices_as_cuda(void **state)
{
    (void)state;
    const struct plan_device *device = NULL;
    assert_status_ok(plan_device_find("cuda", &device));
    assert_int_equal(device->activation, DTYPE_BF16);
    for (int i = 0; i < 1000; i++) {
        const int32_t n_out = models_between(1, 300);
        const int32_t n_in = models_between(1, 300);
        const int format = i % 2 == 0 ? DTYPE_BF16 : MATRIX_I8;
        assert_int_equal(device->matrix_bytes(format, n_out, n_in),
                         cuda_matrix_bytes(format, n_out, n_in));
    }
}

static void test_plan_device_knows_no_others(void **state)
{
    (void)state;
    const struct plan_device *device;
    assert_status_says(plan_device_find("abacus", &device), STATUS_INVALID_ARGUMENT,
                       "device abacus is unknown" STATUS_FIX "use cpu or cuda");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_device_counts_matrices_as_the_cpu),
        cmocka_unit_test(test_plan_device_counts_matrices_as_cuda),
        cmocka_unit_test(test_plan_device_knows_no_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

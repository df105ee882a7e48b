/*
 * cuda_check_sim.c - the backend of the simulator, linked into the test
 */
#include "kernels/backend_plugin.h"
#include "tests/kernels/cuda/cuda_check.h"

const struct backend *check_backend(void)
{
    return kvasir_cuda_backend(BACKEND_ABI);
}

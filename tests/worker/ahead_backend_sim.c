#include "kernels/backend_plugin.h"
#include "tests/worker/ahead_backend.h"

const struct backend *ahead_backend(void)
{
    return kvasir_cuda_backend(BACKEND_ABI);
}

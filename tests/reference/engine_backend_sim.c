#include <string.h>

#include "kernels/backend_plugin.h"
#include "tests/reference/engine_backend.h"

status_t engine_backend(const char *device, const struct backend **backend_out)
{
    *backend_out = strcmp(device, "cuda") == 0 ? kvasir_cuda_backend(BACKEND_ABI) : NULL;
    return *backend_out != NULL
               ? status_ok()
               : status_errorf(STATUS_INVALID_ARGUMENT, "the simulator is cuda, not %s", device);
}

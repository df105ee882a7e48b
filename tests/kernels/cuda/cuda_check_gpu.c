/*
 * cuda_check_gpu.c - the backend of the plugin, on the machine's first GPU
 */
#include "kernels/backend_plugin.h"
#include "tests/kernels/cuda/cuda_check.h"

const struct backend *check_backend(void)
{
    const struct backend *backend = NULL;
    const status_t s = backend_load("cuda", &backend);
    if (!status_is_ok(&s)) {
        print_message("skipped: %s\n", s.msg);
        skip();
    }
    return backend;
}

#include "tests/reference/engine_backend.h"

status_t engine_backend(const char *device, const struct backend **backend_out)
{
    return backend_load(device, backend_out);
}

#include "tests/worker/ahead_backend.h"

const struct backend *ahead_backend(void)
{
    return backend_cpu();
}

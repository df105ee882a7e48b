#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;       /* config.json */
    const char *short_name; /* safetensors */
    size_t bytes;
} dtypes[] = {
    [DTYPE_F32] = {.name = "float32", .short_name = "F32", .bytes = 4},
    [DTYPE_F16] = {.name = "float16", .short_name = "F16", .bytes = 2},
    [DTYPE_BF16] = {.name = "bfloat16", .short_name = "BF16", .bytes = 2},
};

#define N_DTYPES ((int)(sizeof dtypes / sizeof dtypes[0]))

size_t dtype_bytes(int dtype)
{
    return dtypes[dtype].bytes;
}

const char *dtype_name(int dtype)
{
    return dtypes[dtype].name;
}

status_t dtype_parse(const char *text, int *dtype_out)
{
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(text, dtypes[i].name) == 0 || strcmp(text, dtypes[i].short_name) == 0) {
            *dtype_out = i;
            return status_ok();
        }
    }
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "element type '%s' is none of float32, float16, bfloat16", text);
}

int dtype_resolve(int wanted, int fallback)
{
    switch (wanted) {
    case DTYPE_WANTED_F32:
        return DTYPE_F32;
    case DTYPE_WANTED_BF16:
        return DTYPE_BF16;
    default:
        return fallback == DTYPE_F16 ? DTYPE_F32 : fallback;
    }
}

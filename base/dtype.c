#include "base/dtype.h"

#include <string.h>

static const struct {
    const char *name;       /* config.json */
    const char *short_name; /* safetensors; NULL: of no checkpoint */
    size_t bytes;
} dtypes[] = {
    [DTYPE_F32] = {.name = "float32", .short_name = "F32", .bytes = 4},
    [DTYPE_F16] = {.name = "float16", .short_name = "F16", .bytes = 2},
    [DTYPE_BF16] = {.name = "bfloat16", .short_name = "BF16", .bytes = 2},
    [DTYPE_I8] = {.name = "int8", .short_name = "I8", .bytes = 1},
};

enum {
    N_DTYPES = sizeof dtypes / sizeof dtypes[0],
    N_PARSED = DTYPE_BF16 + 1, /* those a checkpoint may name: the first ones */
};

size_t dtype_bytes(int dtype)
{
    return dtypes[dtype].bytes;
}

const char *dtype_name(int dtype)
{
    return dtype >= 0 && dtype < N_DTYPES ? dtypes[dtype].name : "unknown";
}

status_t dtype_parse(const char *text, int *dtype_out)
{
    for (int i = 0; i < N_PARSED; i++) {
        if (strcmp(text, dtypes[i].name) == 0 || strcmp(text, dtypes[i].short_name) == 0) {
            *dtype_out = i;
            return status_ok();
        }
    }
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "element type '%s' is none of float32, float16, bfloat16", text);
}

// ---- values that are no numbers ----

/* Short enough that a block's count fits 16 bits: compilers turn the loops into vectors of the values' own width. */
enum { BLOCK = 4096 };

static uint16_t count_block_16(const uint16_t *values, size_t n, uint16_t exponent)
{
    uint16_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count = (uint16_t)(count + ((values[i] & exponent) == exponent ? 1 : 0));
    }
    return count;
}

static uint32_t count_block_32(const uint32_t *values, size_t n)
{
    const uint32_t exponent = 0x7F800000u;
    uint32_t count = 0;
    for (size_t i = 0; i < n; i++) {
        count += (values[i] & exponent) == exponent ? 1 : 0;
    }
    return count;
}

/* A value is NaN or infinite where every bit of its exponent is set. */
uint64_t dtype_count_not_finite(const void *data, int dtype, size_t n)
{
    uint64_t count = 0;
    for (size_t i = 0; i < n; i += BLOCK) {
        const size_t n_block = n - i < BLOCK ? n - i : BLOCK;
        if (dtype == DTYPE_F32) {
            count += count_block_32((const uint32_t *)data + i, n_block);
        } else {
            const uint16_t exponent = dtype == DTYPE_F16 ? 0x7C00 : 0x7F80;
            count += count_block_16((const uint16_t *)data + i, n_block, exponent);
        }
    }
    return count;
}

int dtype_resolve(int wanted, int fallback)
{
    switch (wanted) {
    case DTYPE_WANTED_F32:
        return DTYPE_F32;
    case DTYPE_WANTED_BF16:
        return DTYPE_BF16;
    case DTYPE_WANTED_I8:
        return DTYPE_I8;
    default:
        return fallback == DTYPE_F16 ? DTYPE_F32 : fallback;
    }
}

// ---- quantised weights ----

int dtype_of_format(int format)
{
    return format == MATRIX_W8A8 ? DTYPE_I8 : format;
}

const char *dtype_quantization_name(int quantization)
{
    static const char *const names[] = {
        [QUANTIZATION_NONE] = "none",
        [QUANTIZATION_INT8] = "int8",
        [QUANTIZATION_W8A8] = "w8a8",
    };
    return names[quantization];
}

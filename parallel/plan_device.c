#include "parallel/plan_device.h"

#include <string.h>

#include "base/dtype.h"

#define MIB ((uint64_t)1 << 20)

/* Panels of 16 outputs, in words of as many values as fit; int8 has a scale an output. */
static size_t cpu_matrix(int format, int32_t n_out, int32_t n_in)
{
    const int dtype = dtype_of_format(format);
    const size_t panels = ((size_t)n_out + 15) / 16;
    const size_t elements = sizeof(uint32_t) / dtype_bytes(dtype);
    const size_t words = ((size_t)n_in + elements - 1) / elements;
    const size_t scales = dtype == DTYPE_I8 ? panels * 16 * sizeof(float) : 0;
    return panels * 16 * words * sizeof(uint32_t) + scales;
}

/* Rows on multiples of 16 bytes. */
static size_t cuda_matrix(int format, int32_t n_out, int32_t n_in)
{
    const int dtype = dtype_of_format(format);
    const size_t per_row = 16 / dtype_bytes(dtype);
    const size_t scales = dtype == DTYPE_I8 ? (size_t)n_out * sizeof(float) : 0;
    return (size_t)n_out * (((size_t)n_in + per_row - 1) / per_row * 16) + scales;
}

static const struct plan_device devices[] = {
    {
        .name = "cpu",
        .activation = DTYPE_F32,
        .host_memory = true,
        .matrix_bytes = cpu_matrix,
        .runtime =
            20 * MIB, // measured: resident memory of a rank of a model of a few MB, less that model
        .leader = 8 * MIB, // likewise: gRPC's pages and buffers, the scheduler's lists
    },
    {
        .name = "cuda",
        .activation = DTYPE_BF16,
        .recorded = true,
        .matrix_bytes = cuda_matrix,
        // 132 processors with four blocks of decode units each, four units of 32 rows a block; one prefill block, 128 rows.
        .attention_units = 132 * (4 * 4 + 1),
        .attention_rows = 132 * (4 * 4 * 32 + 128),
        .workspace = 33 * MIB,
        .runtime =
            512 * MIB, // assumed until it is measured: context, cuBLASLt's kernels, recorded steps
    },
};

status_t plan_device_find(const char *name, const struct plan_device **device_out)
{
    for (size_t i = 0; i < sizeof devices / sizeof devices[0]; i++) {
        if (strcmp(devices[i].name, name) == 0) {
            *device_out = &devices[i];
            return status_ok();
        }
    }
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "device %s is unknown" STATUS_FIX "use cpu or cuda", name);
}

/*
 * ordered_sum.c - out = parts[0] + parts[1] + ..., from the left
 *
 * Shapes:   parts [n_parts, stride], out [n]; any n.
 * Mapping:  one thread, blocks of a thousand: the running sums stay in the first-level cache.
 * Numerics: float32, one chain an element, in the order of the parts; bfloat16 is rounded once, at the end.
 * Cost:     memory bound: the parts are read once, out is written once.
 */
#include "kernels/cpu/ordered_sum.h"

#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/cpu/cpu.h"

enum { BLOCK = 1024 };

/* Sums a block that is not one of the parts, or is the first. */
static void add_block(const float *parts, int64_t stride, int32_t n_parts, int64_t n, float *sums)
{
    for (int64_t i = 0; i < n; i++) {
        sums[i] = parts[i];
    }
    for (int32_t p = 1; p < n_parts; p++) {
        const float *const part = parts + p * stride;
        for (int64_t i = 0; i < n; i++) {
            sums[i] += part[i];
        }
    }
}

void cpu_ordered_sum_f32(const float *parts, int64_t stride, int32_t n_parts, int64_t n, float *out)
{
    float sums[BLOCK];
    for (int64_t at = 0; at < n; at += BLOCK) {
        const int64_t now = n - at < BLOCK ? n - at : BLOCK;
        add_block(parts + at, stride, n_parts, now, sums);
        memcpy(out + at, sums, (size_t)now * sizeof *out);
    }
}

static void sum_bf16(const struct ordered_sum_args *a)
{
    const uint16_t *const parts = a->parts;
    uint16_t *const out = a->out;
    for (int64_t i = 0; i < a->n; i++) {
        float sum = f32_from_bf16(parts[i]);
        for (int32_t p = 1; p < a->n_parts; p++) {
            sum += f32_from_bf16(parts[p * a->stride + i]);
        }
        out[i] = bf16_from_f32(sum);
    }
}

status_t cpu_ordered_sum(struct backend_stream *stream, const struct ordered_sum_args *a)
{
    (void)stream;
    if (a->n < 0 || a->n_parts < 1 || a->stride < a->n ||
        (a->dtype != DTYPE_F32 && a->dtype != DTYPE_BF16)) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "ordered_sum: %d parts of %lld elements, stride %lld, dtype %d",
                             a->n_parts, (long long)a->n, (long long)a->stride, a->dtype);
    }
    if (a->dtype == DTYPE_F32) {
        cpu_ordered_sum_f32(a->parts, a->stride, a->n_parts, a->n, a->out);
    } else {
        sum_bf16(a);
    }
    if (a->mark != NULL) {
        *a->count += 1;
        *a->mark = (uint64_t)*a->count << 32 | a->label;
    }
    return status_ok();
}

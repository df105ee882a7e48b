/*
 * ordered_sum.h - sums of host arrays from the left
 *
 * Thread: any
 */
#pragma once

#include <stdint.h>

/* out[i] = parts[i] + parts[stride + i] + ..., from the left; out may be one of the parts. */
void cpu_ordered_sum_f32(const float *parts, int64_t stride, int32_t n_parts, int64_t n,
                         float *out);

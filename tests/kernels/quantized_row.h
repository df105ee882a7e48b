/*
 * quantized_row.h - a row of int8 and its scale (kernels/kv_format.h), worked out in float64
 *
 * Thread: any
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Of finite numbers. Writes the values; x becomes what they stand for. Returns the scale, a bfloat16. */
static inline uint16_t quantized_row(float *x, int32_t n, int8_t *values)
{
    double most = 0.0;
    for (int32_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)x[i]));
    }
    // Eight significant bits, ties to even.
    int exponent = 0;
    (void)frexp(most / 127.0, &exponent);
    const double scale = ldexp(nearbyint(ldexp(most / 127.0, 8 - exponent)), exponent - 8);
    for (int32_t i = 0; i < n; i++) {
        const double value = scale > 0.0 ? nearbyint((double)x[i] / scale) : 0.0;
        values[i] = (int8_t)fmax(-127.0, fmin(127.0, value));
        x[i] = (float)(values[i] * scale);
    }
    const float exact = (float)scale;
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    return (uint16_t)(bits >> 16);
}

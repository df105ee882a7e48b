/*
 * int8_rows.c - rows as int8 values with a scale, see kernels/int8_rows.h
 *
 * Numerics: magnitudes are compared as integers, in which order does not matter and a NaN is the largest of all. A product is
 *           rounded by adding 1.5 * 2^23, whose last bit is worth 1: the mode of the addition, nearest even, does it.
 * Mapping:  loops of one operation over blocks, which compilers turn into vectors.
 */
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/convert.h"
#include "kernels/int8_rows.h"

enum { BLOCK = 256 };

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* The bits of the largest magnitude. */
static uint32_t largest_bits(const float *x, int64_t n)
{
    int32_t most = 0; // magnitudes are positive as integers too
    for (int64_t i = 0; i < n; i++) {
        const int32_t bits = (int32_t)(f32_bits(x[i]) & 0x7FFFFFFFu);
        most = bits > most ? bits : most;
    }
    return (uint32_t)most;
}

float int8_rows_largest(const float *x, int64_t n)
{
    return f32_from_bits(largest_bits(x, n));
}

void int8_rows_find_largest(const void *rows, int dtype, int32_t n_rows, int32_t n_columns,
                            float *largest_out)
{
    const char *from = rows;
    for (int32_t row = 0; row < n_rows; row++) {
        uint32_t most = 0;
        for (int32_t i = 0; i < n_columns; i += BLOCK) {
            float values[BLOCK];
            const int32_t n = n_columns - i < BLOCK ? n_columns - i : BLOCK;
            f32_from_any(from, dtype, n, values);
            most = larger(most, largest_bits(values, n));
            from += (size_t)n * dtype_bytes(dtype);
        }
        largest_out[row] = f32_from_bits(most);
    }
}

static bool is_finite(float largest)
{
    return (f32_bits(largest) & 0x7F800000u) != 0x7F800000u;
}

float int8_rows_scale(float largest)
{
    if (!is_finite(largest)) {
        return f32_from_bits(0x7FC00000u);
    }
    return largest < INT8_SMALLEST ? 0.0f : largest / INT8_LARGEST;
}

void int8_rows_round(const float *x, int64_t n, float largest, int8_t *values_out)
{
    if (!is_finite(largest) || largest < INT8_SMALLEST) {
        memset(values_out, 0, (size_t)n);
        return;
    }
    const float factor = INT8_LARGEST / largest;
    const float one_and_a_half = 0x1.8p23f;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t rounded = f32_bits(x[i] * factor + one_and_a_half);
        values_out[i] = (int8_t)(rounded - f32_bits(one_and_a_half));
    }
}

int32_t int8_rows_sum(const int8_t *values, int32_t n)
{
    int32_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += values[i];
    }
    return sum;
}

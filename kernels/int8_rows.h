/*
 * int8_rows.h - rows of float32 as int8 values with a scale
 *
 * What:      how weights and activations are rounded: value = x * (127 / largest magnitude of the row) to the nearest, ties to
 *            even, so in [-127, 127], and scale = largest / 127. Symmetric: zero stays zero, and sums need no offsets.
 *            A row whose largest magnitude is below 2^-100 becomes zeros with scale 0; one that holds a NaN or an infinity, zeros
 *            with scale NaN, so that what is multiplied with it is NaN as it would be in float32.
 * Layout:    room for n rows of n_in columns (matmul_args.scratch), 16-byte aligned:
 *              struct int8_row [n], rounded up to 16 bytes     int8 [n, n_in rounded up to 16], zeros behind n_in
 * Invariant: a row's values and scale depend on that row alone.
 * Thread:    any
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define INT8_LARGEST    127.0f
#define INT8_SMALLEST   0x1p-100f /* 127 / x is finite from here on */
#define INT8_MAX_INPUTS 131072    /* n * 127^2 fits an int32_t */

/* What goes with a row of values. */
struct int8_row {
    float scale;
    int32_t sum; /* of the values: what products with bytes that are off by 128 have too much of */
};

/* Bytes from one row of values to the next. */
static inline size_t int8_rows_stride(int32_t n_in)
{
    return ((size_t)n_in + 15) / 16 * 16;
}

/* Bytes before the first row of values. */
static inline size_t int8_rows_offset(int32_t n_rows)
{
    return ((size_t)n_rows * sizeof(struct int8_row) + 15) / 16 * 16;
}

static inline size_t int8_rows_bytes(int32_t n_rows, int32_t n_in)
{
    return int8_rows_offset(n_rows) + (size_t)n_rows * int8_rows_stride(n_in);
}

/* ---- on the host: int8_rows.c ------------------------------------------------------------ */

/* The largest magnitude of n values, a NaN or an infinity where there is one. */
float int8_rows_largest(const float *x, int64_t n);

/* Of n_rows rows of n_columns of any dtype, at any alignment, one after the other. */
void int8_rows_find_largest(const void *rows, int dtype, int32_t n_rows, int32_t n_columns,
                            float *largest_out);

/* n values of a row whose largest magnitude is given. */
void int8_rows_round(const float *x, int64_t n, float largest, int8_t *values_out);

/* The scale of such a row, and the sum of its values. */
float int8_rows_scale(float largest);
int32_t int8_rows_sum(const int8_t *values, int32_t n);

#ifdef __cplusplus
}
#endif

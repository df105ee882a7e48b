/*
 * dtype.h - element types of stored tensors
 *
 * Thread: any
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* int8 is no number by itself: what scales it is said where it is used. */
enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_I8 };

size_t dtype_bytes(int dtype);     /* 4, 2, 2, 1 */
const char *dtype_name(int dtype); /* "float32", "float16", "bfloat16", "int8"; else "unknown" */

/* Accepts config.json's and safetensors' spellings: float32 F32, float16 F16, bfloat16 BF16. Not int8, which a checkpoint
 * cannot say alone. */
MUST_USE status_t dtype_parse(const char *text, int *dtype_out);

/* How many of n values are NaN or infinite; data is aligned for its dtype, which is none of int8. */
uint64_t dtype_count_not_finite(const void *data, int dtype, size_t n);

/* What --dtype and --kv-cache-dtype may say: the choices of the setting, in the order of the enum. */
enum dtype_wanted { DTYPE_WANTED_AUTO, DTYPE_WANTED_F32, DTYPE_WANTED_BF16, DTYPE_WANTED_I8 };

#define DTYPE_CHOICES    "auto|float32|bfloat16"
#define KV_DTYPE_CHOICES DTYPE_CHOICES "|int8"

/* The type to compute with; auto takes the fallback's, float32 for float16, into which it fits exactly. */
int dtype_resolve(int wanted, int fallback);

/*
 * How a matrix of weights is kept and multiplied: the dtype of its values; MATRIX_W8A8 is int8 as well, and rounds the rows it
 * multiplies to int8 too. Int8 values come with one float32 scale an output: w is about value * scale, |value| <= 127.
 */
enum matrix_format {
    MATRIX_F32 = DTYPE_F32,
    MATRIX_BF16 = DTYPE_BF16,
    MATRIX_I8 = DTYPE_I8,
    MATRIX_W8A8 = 16,
};

int dtype_of_format(int format); /* of the values */

/* What --quantization may say, in the order of the enum. */
enum quantization { QUANTIZATION_NONE, QUANTIZATION_INT8, QUANTIZATION_W8A8 };

#define QUANTIZATION_CHOICES "none|int8|w8a8"

const char *dtype_quantization_name(int quantization); /* "none", "int8", "w8a8" */

#ifdef __cplusplus
}
#endif

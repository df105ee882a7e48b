/*
 * kv_format.h - how keys and values are stored, by dtype
 *
 * What:      a row is the head_dim columns of one token in one KV head. float32 and bfloat16 rows are stored as they are
 *            (rounded); an int8 row has a scale of its own beside it, one for the key and one for the value.
 * Layout:    planes of rows [unit][block_tokens][head_dim], and for int8 planes of scales [unit][block_tokens], bfloat16. The
 *            same unit and the same token within it find both, so that whoever moves blocks moves scales in the same way.
 * Units:     scale = absmax(row) / 127, rounded to bfloat16; value = round_to_nearest_even(x / scale), cut to [-127, 127];
 *            x is then value * scale to within half a scale and its rounding: |error| <= 0.502 absmax / 127. bfloat16 and
 *            not float16 because a scale has the range of what it scales: none overflows, and small rows keep their digits.
 * Errors:    a row with a NaN or an infinity gets a NaN as its scale and zeros as its values: whatever attends to it becomes
 *            NaN, in every column, and is found where logits are sampled. A row of zeros, or of numbers so small that the
 *            scale would not be a normal number (absmax below 1.5e-36), gets zeros and a scale of 0.
 * Thread:    any
 */
#pragma once

#include <stdint.h>

#include "base/dtype.h"

enum { KV_SCALE_DTYPE = DTYPE_BF16, KV_INT8_MAX = 127 };

/* Bytes of a row's scale; 0 where it has none. */
static inline int64_t kv_scale_bytes(int kv_dtype)
{
    return kv_dtype == DTYPE_I8 ? (int64_t)dtype_bytes(KV_SCALE_DTYPE) : 0;
}

/* Bytes of a row and its scale. */
static inline int64_t kv_row_bytes(int32_t head_dim, int kv_dtype)
{
    return head_dim * (int64_t)dtype_bytes(kv_dtype) + kv_scale_bytes(kv_dtype);
}

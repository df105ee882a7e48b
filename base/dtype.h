/*
 * dtype.h - element types of stored tensors
 *
 * Thread: any
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

size_t dtype_bytes(int dtype);     /* 4, 2, 2 */
const char *dtype_name(int dtype); /* "float32", "float16", "bfloat16" */

/* Accepts config.json's and safetensors' spellings: float32 F32, float16 F16, bfloat16 BF16. */
MUST_USE status_t dtype_parse(const char *text, int *dtype_out);

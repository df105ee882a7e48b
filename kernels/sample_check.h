/*
 * sample_check.h - what can be sampled
 *
 * What:      the CPU's op looks at its rows and tokens itself. Where they lie in device memory, whoever sends them there looks
 *            before. n_drawn 0: slots do not matter.
 * Thread:    any
 * Errors:    INVALID_ARGUMENT naming the row, the value and the limit.
 */
#pragma once

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of rows and tokens in host memory; max_vocab: of the backend. */
status_t sample_check(const struct sample_args *args, int32_t max_vocab);

#ifdef __cplusplus
}
#endif

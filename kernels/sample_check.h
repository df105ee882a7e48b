/*
 * sample_check.h - what every backend's sample op refuses
 *
 * Thread:    any
 * Errors:    INVALID_ARGUMENT naming the row, the value and the limit.
 */
#pragma once

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* max_vocab: of the backend. */
status_t sample_check(const struct sample_args *args, int32_t max_vocab);

#ifdef __cplusplus
}
#endif

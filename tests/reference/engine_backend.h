/*
 * engine_backend.h - which backend engine_logits computes on
 *
 * What:      engine_backend.c takes the product's; engine_backend_sim.c takes CUDA's kernels on the simulator of
 *            tests/kernels/cuda_sim.
 */
#pragma once

#include "kernels/backend.h"

/* device: cpu or cuda. */
MUST_USE status_t engine_backend(const char *device, const struct backend **backend_out);

/*
 * machine.h - how the runtime's functions hand a kernel to the machine
 *
 * Thread: any; sim_run_kernel takes the machine's lock.
 */
#pragma once

#include <stddef.h>

#include "tests/kernels/cuda_sim/sim.h"

struct sim_device {
    const char *key, *name;
    int capability; /* * 10 */
    int n_processors;
    size_t shared_bytes_per_block, shared_bytes_per_processor;
};

/* The device that KVASIR_SIM_DEVICE names. */
const struct sim_device *sim_device(void);

/* Runs all blocks, to the end. */
void sim_run_kernel(const struct sim_launch *launch, const std::function<void()> &run);

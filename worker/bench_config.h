/*
 * bench_config.h - the settings of kvasir-worker --bench
 *
 * Ownership: strings live in the config_set that filled it.
 * Thread:    init
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/config.h"
#include "base/log.h"

#define BENCH_MAX_BATCHES 32

enum bench_load { BENCH_LOAD_AUTO, BENCH_LOAD_DUMMY };

struct bench_config {
    int device;          /* enum worker_device */
    int load;            /* enum bench_load */
    int placement;       /* enum plan_placement */
    int dtype, kv_dtype; /* enum dtype_wanted */
    int quantization;    /* enum quantization */
    const char *batch, *tokens_file, *cache_dir, *log_level;
    int64_t prompt, generate, max_num_batched_tokens, threads, steps_ahead, seed, context, stride;
    double gpu_memory_utilization;
    bool trace, floor;
    int pin_threads; /* enum host_pinning */
};

extern const struct config_row bench_config_rows[];
extern const size_t bench_config_n_rows;

/* "1,16,64": returns how many in *n_out, each from 1 to most. */
MUST_USE status_t bench_config_batches(const struct bench_config *config, int32_t most,
                                       int32_t batches_out[BENCH_MAX_BATCHES], int32_t *n_out);

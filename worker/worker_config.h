/*
 * worker_config.h - the settings of kvasir-worker
 *
 * What:      how to reach the coordinator and what this process may use. Everything about the model comes from the
 *            coordinator's assignment.
 * Ownership: strings live in the config_set that filled it.
 * Thread:    init
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/config.h"

struct worker_config {
    const char *coordinator; /* "HOST:PORT" or "unix:PATH" */
    const char *join_token_file;
    const char *model; /* overrides the assigned directory on hosts where it lies elsewhere */
    int64_t group;     /* -1: not started by a supervisor */
    int64_t generation;
    int64_t threads;       /* 0: cores / ranks of the host */
    int pin_threads;       /* enum host_pinning */
    int device;            /* enum worker_device */
    const char *cache_dir; /* NULL: nothing is kept from one start to the next */
    double connect_timeout_s;
    int64_t steps_ahead;
    double collective_timeout_s; /* 0: what the coordinator says */
    int64_t max_idle_sleep_us;
    int64_t swap_space_bytes; /* -1: what the coordinator says */
    bool bystander;
    const char *measure; /* model directory: measure its ops and print the rates; NULL: serve */
    int measure_dtype, measure_kv_dtype; /* enum dtype_wanted */
    const char *log_level;
};

enum worker_device { WORKER_DEVICE_AUTO, WORKER_DEVICE_CPU, WORKER_DEVICE_CUDA };

extern const struct config_row worker_config_rows[];
extern const size_t worker_config_n_rows;

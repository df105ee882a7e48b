/*
 * config_table.h - the settings of kvasir-coordinator
 *
 * What:      one table: name, type, default and help of every setting; names are vLLM's where it has one.
 * Ownership: strings belong to the config_set that filled the struct (or to argv).
 * Thread:    init
 * Errors:    INVALID_ARGUMENT (exit 64) for a value that no server could use, UNIMPLEMENTED (exit 69) for one
 *            that this version does not have.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/config.h"
#include "base/status.h"
#include "parallel/plan_options.h"

enum config_table_device {
    CONFIG_TABLE_DEVICE_AUTO,
    CONFIG_TABLE_DEVICE_CPU,
    CONFIG_TABLE_DEVICE_CUDA
};

enum config_table_load_format { CONFIG_TABLE_LOAD_AUTO, CONFIG_TABLE_LOAD_DUMMY };

/* In the order of Assign's. */
enum config_table_determinism {
    CONFIG_TABLE_DETERMINISM_DEFAULT,
    CONFIG_TABLE_DETERMINISM_BATCH,
    CONFIG_TABLE_DETERMINISM_STRICT
};

enum config_table_launcher { CONFIG_TABLE_LAUNCHER_NONE, CONFIG_TABLE_LAUNCHER_MPIRUN };

struct coordinator_config {
    const char *model; /* the one positional argument: a model directory */

    struct plan_options plan;
    int64_t replicas;
    const char *listen; /* "HOST:PORT" or "unix:PATH" */
    const char *http;   /* "HOST:PORT" or "off" */

    int device;      /* enum config_table_device */
    int load_format; /* enum config_table_load_format */
    int64_t seed;    /* of dummy weights */

    int launcher;       /* enum config_table_launcher */
    const char *mpirun; /* program */
    const char *mpirun_args;
    const char *worker; /* program; NULL: kvasir-worker beside this executable */

    int64_t max_model_len; /* 0: the model's */
    int64_t max_num_seqs, max_num_batched_tokens;
    int64_t kv_cache_memory_bytes; /* per rank; 0: the worker decides */
    int64_t swap_space_bytes;      /* of host memory, per rank; 0: none */
    double gpu_memory_utilization;
    bool enable_prefix_caching;
    int determinism; /* enum config_table_determinism */
    int comm;        /* auto, nccl, staged: in the order of Assign's */
    double collective_timeout_s;
    int64_t threads;               /* per rank; 0: cores / ranks */
    const char *served_model_name; /* NULL: the directory's name */

    int64_t max_num_queued_reqs, max_num_queued_tokens, max_completion_tokens, max_unread_bytes;
    double max_queue_time_s; /* 0: no limit */
    double shutdown_timeout_s, heartbeat_timeout_s, step_timeout_s;
    const char *join_token_file;
    int log_level; /* enum log_level: the choices are in its order */
};

/* The table, for config_load; *n_rows_out is its length. */
const struct config_row *config_table_rows(size_t *n_rows_out);

/* Takes the positional MODEL out of the set and checks what rows alone cannot say. */
MUST_USE status_t config_table_check(const struct config_set *set,
                                     struct coordinator_config *config);

/*
 * bench_worker.h - runs kvasir-worker --bench, under mpirun for more than one rank, and reads its JSON lines
 *
 * What:      the commands of `kvasir bench` that need an engine are clients of the worker program, as the coordinator
 *            is: this program has no MPI and no kernels. What the worker says on stderr goes to ours.
 * Ownership: options are borrowed.
 * Thread:    owner:main. The child ends with this process.
 * Errors:    what the worker said went to stderr already; *exit_code_out is its exit code.
 */
#pragma once

#include <jansson.h>

#include "base/config.h"

/* Settings that are the worker's own, as a part of a command's table. Text is passed on unread. */
struct bench_worker_options {
    int64_t tp;
    const char *device, *kv_placement, *dtype, *quantization, *kv_cache_dtype,
        *max_num_batched_tokens, *threads, *pin_threads, *gpu_memory_utilization, *cache_dir,
        *mpirun, *log_level;
};

#define BENCH_WORKER_STRING(type_, name_, field_, help_)                                           \
    {                                                                                              \
        .name = (name_), .type = CONFIG_STRING, .offset = offsetof(type_, field_), .help = (help_) \
    }

/* Rows for a struct whose member `worker` is a struct bench_worker_options. */
#define BENCH_WORKER_ROWS(type_)                                                                   \
    {.name = "tensor-parallel-size",                                                               \
     .alias = "-tp",                                                                               \
     .type = CONFIG_INT,                                                                           \
     .offset = offsetof(type_, worker.tp),                                                         \
     .default_text = "1",                                                                          \
     .min = 1,                                                                                     \
     .max = 1024,                                                                                  \
     .help = "ranks that share every layer, started by mpirun"},                                   \
        BENCH_WORKER_STRING(type_, "device", worker.device, "auto (the default), cpu or cuda"),    \
        BENCH_WORKER_STRING(type_, "kv-placement", worker.kv_placement, "as for serve"),           \
        BENCH_WORKER_STRING(type_, "dtype", worker.dtype, "as for serve"),                         \
        BENCH_WORKER_STRING(type_, "quantization", worker.quantization, "as for serve"),           \
        BENCH_WORKER_STRING(type_, "kv-cache-dtype", worker.kv_cache_dtype, "as for serve"),       \
        BENCH_WORKER_STRING(type_, "max-num-batched-tokens", worker.max_num_batched_tokens,        \
                            "tokens of one step (default 2048)"),                                  \
        BENCH_WORKER_STRING(type_, "threads", worker.threads,                                      \
                            "threads of a rank (default: cores / ranks)"),                         \
        BENCH_WORKER_STRING(type_, "pin-threads", worker.pin_threads,                              \
                            "auto (the default), on or off: each thread stays on a core"),         \
        BENCH_WORKER_STRING(type_, "gpu-memory-utilization", worker.gpu_memory_utilization,        \
                            "share of a GPU's memory that may be used (default 0.9)"),             \
        BENCH_WORKER_STRING(type_, "cache-dir", worker.cache_dir,                                  \
                            "keeps what a GPU measured of its ways to multiply"),                  \
        BENCH_WORKER_STRING(type_, "log-level", worker.log_level, "of the worker (default warn)"), \
    {                                                                                              \
        .name = "mpirun", .type = CONFIG_STRING, .offset = offsetof(type_, worker.mpirun),         \
        .default_text = "mpirun", .help = "the program that starts ranks"                          \
    }

#define BENCH_WORKER_MAX_FLAGS 16

/* One run: the part ("engine"), its model and what this command adds. */
struct bench_worker_run {
    const char *part, *model;
    const struct bench_worker_options *options;

    struct {
        const char *name, *value; /* "--batch", "1,16"; value NULL: a flag without */
    } flags[BENCH_WORKER_MAX_FLAGS];

    size_t n_flags;
};

/* Adds a flag and its value; NULL: the flag is left out. */
void bench_worker_flag(struct bench_worker_run *run, const char *name, const char *value);
void bench_worker_switch(struct bench_worker_run *run, const char *name); /* "--no-trace" */

/* A line of JSON as it comes; borrowed. */
typedef void (*bench_worker_result_fn)(void *user, json_t *result);

/* Of a result; 0 where there is no such number. */
double bench_worker_number(const json_t *result, const char *key);

MUST_USE status_t bench_worker_start(const struct bench_worker_run *run,
                                     bench_worker_result_fn on_result, void *user,
                                     int *exit_code_out);

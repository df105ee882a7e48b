/*
 * private_server.h - a server for one command: started on a UNIX socket, gone with it
 *
 * What:      `kvasir generate --model DIR` and `chat --model DIR` run kvasir-coordinator with --launcher mpirun as a
 *            child, wait for its `ready:` line, and stop it at the end. The child dies with this process.
 * Thread:    owner:main
 * Errors:    what the child said went to stderr already; *exit_code_out is its exit code.
 */
#pragma once

#include <sys/types.h>

#include "base/config.h"

struct private_server {
    pid_t pid;
    int out; /* its stdout */
    char dir[64];
    char address[128]; /* "unix:..." */
};

/* Settings of serve that are passed on, as a part of a command's own table: one struct for all. */
struct private_server_options {
    const char *model;
    const char *tensor_parallel_size, *pipeline_parallel_size, *kv_placement, *dtype, *quantization,
        *kv_cache_dtype, *max_model_len, *max_num_seqs, *max_num_batched_tokens, *load_format,
        *threads, *device, *log_level;
};

/* Waits until the server is ready. On failure *exit_code_out is what this process should end with. */
MUST_USE status_t private_server_start(struct private_server *server,
                                       const struct private_server_options *options,
                                       int *exit_code_out);
void private_server_stop(struct private_server *server);

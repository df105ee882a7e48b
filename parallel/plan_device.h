/*
 * plan_device.h - what a backend allocates beside tensors, for plans made without it
 *
 * What:      the dtype of activations, how the rows of a matrix are padded, and the workspaces of ops: what
 *            backend->matrix_bytes and the ops' own allocations come to. The tests of the engine compare both.
 * Units:     bytes of device memory, of one rank.
 * Thread:    any. Plain data.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct plan_device {
    const char *name; /* of the backend: "cpu", "cuda" */
    int activation;   /* enum dtype */
    /* Device memory is the host's: messages between stages count too. */
    bool host_memory;
    /* Small steps are recorded: a unit of each KV head lies behind a plane, for rows that only fill up. */
    bool recorded;
    /* What matrix_new allocates for an enum matrix_format. */
    size_t (*matrix_bytes)(int format, int32_t n_out, int32_t n_in);
    /* Of each shape of attention: units of work and partial results of [head_dim + 2] floats, of splits. */
    int32_t attention_units, attention_rows;
    /* Of matmuls and of sampling. */
    uint64_t workspace;
    /* The program, MPI, gRPC, stacks; on a device: its context, and the code of kernels and libraries. */
    uint64_t runtime;
    uint64_t leader; /* of them, in rank 0 beside: what speaks with the coordinator and schedules */
};

/* INVALID_ARGUMENT for another name. Static. */
MUST_USE status_t plan_device_find(const char *name, const struct plan_device **device_out);

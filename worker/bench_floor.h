/*
 * bench_floor.h - what the device can do at best: a copy, and a square matmul
 *
 * What:      the two rates that a roofline is made of, measured on every rank at once, with its own threads or device: what
 *            ranks of a host share counts once in their sum.
 * Units:     bytes a second, read and written bytes both counted; flops a second of bfloat16 weights.
 * Thread:    owner:the rank's main thread.
 * Collective: yes. Takes about a second.
 */
#pragma once

#include "kernels/backend.h"
#include "parallel/group.h"
#include "worker/host_cores.h"

struct bench_floor {
    double copy_bytes_s, matmul_flops_s; /* of this rank */
};

struct bench_floor_options {
    const struct backend *backend;
    int device;
    const struct host_cores *cores; /* CPU */
};

MUST_USE status_t bench_floor_measure(struct group *group,
                                      const struct bench_floor_options *options,
                                      struct bench_floor *floor_out);

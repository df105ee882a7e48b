/*
 * device_array.h - an array the host fills each step and the device reads
 *
 * Layout:    one block where device memory is host memory. Elsewhere the device's block, and pinned ones that take turns, so
 *            that the next step can be written while this one's is on its way.
 * Ownership: the array owns all of them; free with device_array_destroy.
 * Thread:    owner:the rank's main thread. What device_array_host gives may be written once the device has passed the send
 *            n_turns sends ago: with at most n_turns steps under way, always.
 * Errors:    RESOURCE_EXHAUSTED.
 */
#pragma once

#include "kernels/backend.h"

struct device_array {
    void *device;
    char *host;    /* [n_turns] of stride bytes */
    size_t stride; /* 0: device memory is host memory */
    int32_t turn, n_turns;
};

MUST_USE status_t device_array_init(struct device_array *array, const struct backend *backend,
                                    struct backend_stream *stream, size_t size_bytes,
                                    int32_t n_turns);
void device_array_destroy(struct device_array *array, const struct backend *backend,
                          struct backend_stream *stream); /* accepts a zeroed one */

/* The host side, to be filled for the next send. */
static inline void *device_array_host(const struct device_array *array)
{
    return array->host + (size_t)array->turn * array->stride;
}

/* The first size_bytes to the device, in stream order; then it is the next block's turn. */
MUST_USE status_t device_array_send(struct device_array *array, const struct backend *backend,
                                    struct backend_stream *stream, size_t size_bytes);

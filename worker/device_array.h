/*
 * device_array.h - an array the host fills each step and the device reads
 *
 * Layout:    one block where device memory is host memory, a pinned one beside the device's elsewhere.
 * Ownership: the array owns both; free with device_array_destroy.
 * Thread:    owner:the rank's main thread. The host side may be written again once the stream has been synchronised.
 * Errors:    RESOURCE_EXHAUSTED.
 */
#pragma once

#include "kernels/backend.h"

struct device_array {
    void *host;
    void *device;
};

MUST_USE status_t device_array_init(struct device_array *array, const struct backend *backend,
                                    struct backend_stream *stream, size_t size_bytes);
void device_array_destroy(struct device_array *array, const struct backend *backend,
                          struct backend_stream *stream); /* accepts a zeroed one */

/* The first size_bytes to the device, in stream order. */
MUST_USE status_t device_array_send(const struct device_array *array, const struct backend *backend,
                                    struct backend_stream *stream, size_t size_bytes);

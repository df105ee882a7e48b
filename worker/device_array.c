#include "worker/device_array.h"

#include <string.h>

status_t device_array_init(struct device_array *array, const struct backend *backend,
                           struct backend_stream *stream, size_t size_bytes)
{
    struct device_array made = {NULL, NULL};
    TRY(backend->mem_alloc(stream, size_bytes, &made.device));
    if (backend->host_memory) {
        made.host = made.device;
    } else {
        const status_t s = backend->host_alloc(stream, size_bytes, &made.host);
        if (!status_is_ok(&s)) {
            backend->mem_free(stream, made.device);
            return s;
        }
    }
    *array = made;
    return status_ok();
}

void device_array_destroy(struct device_array *array, const struct backend *backend,
                          struct backend_stream *stream)
{
    if (array->host != array->device) {
        backend->host_free(stream, array->host);
    }
    backend->mem_free(stream, array->device);
    memset(array, 0, sizeof *array);
}

status_t device_array_send(const struct device_array *array, const struct backend *backend,
                           struct backend_stream *stream, size_t size_bytes)
{
    return backend->upload(stream, array->device, array->host, size_bytes);
}

#include "worker/device_array.h"

#include <string.h>

enum { ALIGNMENT = 64 };

status_t device_array_init(struct device_array *array, const struct backend *backend,
                           struct backend_stream *stream, size_t size_bytes, int32_t n_turns)
{
    struct device_array made = {.n_turns = n_turns};
    TRY(backend->mem_alloc(stream, size_bytes, &made.device));
    made.host = made.device;
    if (!backend->host_memory) {
        void *host = NULL;
        made.stride = (size_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        const status_t s = backend->host_alloc(stream, (size_t)n_turns * made.stride, &host);
        if (!status_is_ok(&s)) {
            backend->mem_free(stream, made.device);
            return s;
        }
        made.host = host;
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

status_t device_array_send(struct device_array *array, const struct backend *backend,
                           struct backend_stream *stream, size_t size_bytes)
{
    TRY(backend->upload(stream, array->device, device_array_host(array), size_bytes));
    array->turn = (array->turn + 1) % array->n_turns;
    return status_ok();
}

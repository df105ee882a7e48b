/*
 * copy_strips.c - rows of bytes from one stride to another
 *
 * Mapping:  on the calling thread: strips are small beside the matmuls around them.
 * Cost:     memory bound.
 */
#include <string.h>

#include "kernels/cpu/cpu.h"

status_t cpu_copy_strips(struct backend_stream *stream, const struct strip *strips, int32_t n)
{
    (void)stream;
    for (int32_t i = 0; i < n; i++) {
        const struct strip *s = &strips[i];
        if (s->n_rows < 0 || s->row_bytes < 0) {
            return status_errorf(STATUS_INVALID_ARGUMENT,
                                 "copy_strips: strip %d: %d rows of %lld bytes", i, s->n_rows,
                                 (long long)s->row_bytes);
        }
        for (int32_t row = 0; row < s->n_rows; row++) {
            memcpy((char *)s->to + row * s->to_stride_bytes,
                   (const char *)s->from + row * s->from_stride_bytes, (size_t)s->row_bytes);
        }
    }
    return status_ok();
}

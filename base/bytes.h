/*
 * bytes.h - a growing byte buffer with a maximum, and a reader that cannot overrun
 *
 * Ownership: struct bytes owns its data (malloc). struct bytes_reader borrows.
 * Thread:    one owner at a time.
 * Errors:    RESOURCE_EXHAUSTED with both numbers when an append would pass max; the buffer is then
 *            unchanged. A reader that runs past the end sets `failed`, returns zeros from then on, and is
 *            checked once, at the end, with bytes_reader_end.
 * Layout:    integers are little endian, unaligned.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct bytes {
    uint8_t *data;
    size_t size;
    size_t capacity;
    size_t max_bytes;
};

void bytes_init(struct bytes *b, size_t max_bytes);
void bytes_destroy(struct bytes *b); /* accepts a zeroed buffer */
void bytes_clear(struct bytes *b);   /* keeps the capacity */

/* Room for size more bytes; the pointer is to the first of them and size is not changed. */
MUST_USE status_t bytes_reserve(struct bytes *b, size_t size, uint8_t **tail_out);
MUST_USE status_t bytes_append(struct bytes *b, const void *data, size_t size);
MUST_USE status_t bytes_append_str(struct bytes *b, const char *text); /* without the NUL */

/* The limit must leave room for one byte more than is appended (the NUL, not counted in size). */
MUST_USE status_t bytes_printf(struct bytes *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
MUST_USE status_t bytes_append_u32(struct bytes *b, uint32_t value);
MUST_USE status_t bytes_append_u64(struct bytes *b, uint64_t value);
MUST_USE status_t bytes_append_f32(struct bytes *b, float value);
MUST_USE status_t bytes_append_blob(struct bytes *b, const void *data,
                                    size_t size); /* u32 size, data */

struct bytes_reader {
    const uint8_t *data;
    size_t size;
    size_t at;
    bool failed;
};

void bytes_reader_init(struct bytes_reader *r, const void *data, size_t size);
uint32_t bytes_read_u32(struct bytes_reader *r);
uint64_t bytes_read_u64(struct bytes_reader *r);
float bytes_read_f32(struct bytes_reader *r);

/* A view of the next size bytes, NULL (and failed) when there are fewer. */
const uint8_t *bytes_read(struct bytes_reader *r, size_t size);

/* u32 size then data; NULL and *size_out 0 on failure. */
const uint8_t *bytes_read_blob(struct bytes_reader *r, size_t *size_out);

/* DATA_LOSS unless everything was read and nothing is left; `what` names the message. */
MUST_USE status_t bytes_reader_end(const struct bytes_reader *r, const char *what);

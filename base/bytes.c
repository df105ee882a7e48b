#include "base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIN_CAPACITY 64u

// ---- growing buffer ----

void bytes_init(struct bytes *b, size_t max_bytes)
{
    *b = (struct bytes){.max_bytes = max_bytes};
}

void bytes_destroy(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){0};
}

void bytes_clear(struct bytes *b)
{
    b->size = 0;
}

/* Doubling keeps appends linear in all; the maximum wins over the doubling. */
static size_t next_capacity(const struct bytes *b, size_t needed)
{
    size_t capacity = b->capacity > b->max_bytes / 2 ? b->max_bytes : 2 * b->capacity;
    if (capacity < needed) {
        capacity = needed;
    }
    if (capacity < MIN_CAPACITY && MIN_CAPACITY <= b->max_bytes) {
        capacity = MIN_CAPACITY;
    }
    return capacity;
}

status_t bytes_reserve(struct bytes *b, size_t size, uint8_t **tail_out)
{
    if (size > b->max_bytes - b->size) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "need %zu bytes after %zu, limit %zu", size,
                             b->size, b->max_bytes);
    }
    const size_t needed = b->size + size;
    if (needed > b->capacity || b->data == NULL) {
        const size_t capacity = next_capacity(b, needed);
        uint8_t *data = realloc(b->data, capacity > 0 ? capacity : 1);
        if (data == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu bytes",
                                 capacity);
        }
        b->data = data;
        b->capacity = capacity;
    }
    *tail_out = b->data + b->size;
    return status_ok();
}

status_t bytes_append(struct bytes *b, const void *data, size_t size)
{
    uint8_t *tail;
    TRY(bytes_reserve(b, size, &tail));
    if (size > 0) {
        memcpy(tail, data, size);
    }
    b->size += size;
    return status_ok();
}

status_t bytes_append_str(struct bytes *b, const char *text)
{
    return bytes_append(b, text, strlen(text));
}

status_t bytes_printf(struct bytes *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    va_list again;
    va_copy(again, args);
    const int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);

    status_t s;
    uint8_t *tail;
    if (n < 0) {
        s = status_errorf(STATUS_INTERNAL, "format \"%s\" cannot be printed", fmt);
        goto done;
    }
    // One byte more than is kept, for the NUL that vsnprintf writes.
    TRY_GOTO(s, bytes_reserve(b, (size_t)n + 1, &tail), done);
    vsnprintf((char *)tail, (size_t)n + 1, fmt, again);
    b->size += (size_t)n;
done:
    va_end(again);
    return s;
}

static void store_u32(uint8_t *to, uint32_t value)
{
    for (int i = 0; i < 4; i++) {
        to[i] = (uint8_t)(value >> (8 * i));
    }
}

status_t bytes_append_u32(struct bytes *b, uint32_t value)
{
    uint8_t le[4];
    store_u32(le, value);
    return bytes_append(b, le, sizeof le);
}

status_t bytes_append_u64(struct bytes *b, uint64_t value)
{
    uint8_t le[8];
    store_u32(le, (uint32_t)value);
    store_u32(le + 4, (uint32_t)(value >> 32));
    return bytes_append(b, le, sizeof le);
}

status_t bytes_append_f32(struct bytes *b, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bytes_append_u32(b, bits);
}

status_t bytes_append_blob(struct bytes *b, const void *data, size_t size)
{
    if (size > UINT32_MAX) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "blob of %zu bytes, limit %u", size,
                             UINT32_MAX);
    }
    // Room for both first, so that a failure leaves the buffer unchanged.
    uint8_t *tail;
    TRY(bytes_reserve(b, size + 4, &tail));
    TRY(bytes_append_u32(b, (uint32_t)size));
    return bytes_append(b, data, size);
}

// ---- reader ----

void bytes_reader_init(struct bytes_reader *r, const void *data, size_t size)
{
    // An empty view of an empty buffer is not a failure, so it must not be NULL.
    static const uint8_t nothing[1] = {0};
    if (data == NULL) {
        *r = (struct bytes_reader){.data = nothing};
    } else {
        *r = (struct bytes_reader){.data = data, .size = size};
    }
}

const uint8_t *bytes_read(struct bytes_reader *r, size_t size)
{
    if (r->failed || size > r->size - r->at) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *p = r->data + r->at;
    r->at += size;
    return p;
}

static uint32_t load_u32(const uint8_t *from)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        value |= (uint32_t)from[i] << (8 * i);
    }
    return value;
}

uint32_t bytes_read_u32(struct bytes_reader *r)
{
    const uint8_t *p = bytes_read(r, 4);
    return p != NULL ? load_u32(p) : 0;
}

uint64_t bytes_read_u64(struct bytes_reader *r)
{
    const uint8_t *p = bytes_read(r, 8);
    return p != NULL ? (uint64_t)load_u32(p + 4) << 32 | load_u32(p) : 0;
}

float bytes_read_f32(struct bytes_reader *r)
{
    const uint32_t bits = bytes_read_u32(r);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

const uint8_t *bytes_read_blob(struct bytes_reader *r, size_t *size_out)
{
    const uint32_t size = bytes_read_u32(r);
    const uint8_t *p = bytes_read(r, size);
    *size_out = p != NULL ? size : 0;
    return p;
}

status_t bytes_reader_end(const struct bytes_reader *r, const char *what)
{
    if (r->failed) {
        return status_errorf(STATUS_DATA_LOSS, "%s: ends too early, %zu bytes", what, r->size);
    }
    if (r->at != r->size) {
        return status_errorf(STATUS_DATA_LOSS, "%s: %zu of %zu bytes left over", what,
                             r->size - r->at, r->size);
    }
    return status_ok();
}

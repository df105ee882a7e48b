/*
 * wire_reader.h - walks the fields of one serialized protobuf message without allocating
 *
 * What:      for checks that come before protobuf-c (which forgets the length of a string, and with it a NUL),
 *            and for reading descriptions. Groups, which no proto3 message has, count as malformed.
 * Ownership: fields borrow from the message.
 * Thread:    one owner at a time.
 * Errors:    next returns false at the end and when malformed; `malformed` tells which.
 * Source:    protobuf encoding, https://protobuf.dev/programming-guides/encoding
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

struct wire_reader {
    const uint8_t *data;
    size_t size;
    size_t at;
    bool malformed;
};

struct wire_field {
    uint32_t id;
    int type;            /* enum wire_type */
    uint64_t value;      /* WIRE_VARINT */
    const uint8_t *data; /* WIRE_BYTES: the content */
    size_t size;
    size_t at; /* offset of the field's tag in the message */
};

static inline struct wire_reader wire_reader_of(const uint8_t *data, size_t size)
{
    return (struct wire_reader){.data = data, .size = size};
}

static inline bool wire_reader_fail(struct wire_reader *r)
{
    r->malformed = true;
    return false;
}

static inline bool wire_reader_varint(struct wire_reader *r, uint64_t *value_out)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && r->at < r->size; shift += 7) {
        const uint8_t byte = r->data[r->at];
        r->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            *value_out = value;
            return true;
        }
    }
    return wire_reader_fail(r);
}

static inline bool wire_reader_skip(struct wire_reader *r, uint64_t size)
{
    if (size > r->size - r->at) {
        return wire_reader_fail(r);
    }
    r->at += (size_t)size;
    return true;
}

static inline bool wire_reader_next(struct wire_reader *r, struct wire_field *field_out)
{
    if (r->malformed || r->at == r->size) {
        return false;
    }
    struct wire_field field = {.at = r->at};
    uint64_t tag;
    if (!wire_reader_varint(r, &tag)) {
        return false;
    }
    if (tag >> 3 == 0 || tag >> 3 > UINT32_MAX >> 3) {
        return wire_reader_fail(r);
    }
    field.id = (uint32_t)(tag >> 3);
    field.type = (int)(tag & 7);

    bool ok = false;
    switch (field.type) {
    case WIRE_VARINT:
        ok = wire_reader_varint(r, &field.value);
        break;
    case WIRE_FIXED64:
        ok = wire_reader_skip(r, 8);
        break;
    case WIRE_FIXED32:
        ok = wire_reader_skip(r, 4);
        break;
    case WIRE_BYTES: {
        uint64_t size;
        ok = wire_reader_varint(r, &size);
        if (ok) {
            field.data = r->data + r->at;
            ok = wire_reader_skip(r, size);
            field.size = (size_t)size;
        }
        break;
    }
    default:
        ok = wire_reader_fail(r);
        break;
    }
    if (ok) {
        *field_out = field;
    }
    return ok;
}

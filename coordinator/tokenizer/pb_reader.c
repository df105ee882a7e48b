#include "coordinator/tokenizer/pb_reader.h"

#define MAX_VARINT_BYTES 10

static status_t cut_off(size_t at)
{
    return status_errorf(STATUS_DATA_LOSS, "protobuf: the field at byte %zu is cut off", at);
}

static status_t read_varint(struct pb_reader *reader, uint64_t *out)
{
    uint64_t value = 0;
    const size_t begin = reader->at;
    for (unsigned i = 0; i < MAX_VARINT_BYTES && reader->at < reader->size; i++) {
        const uint8_t byte = reader->data[reader->at++];
        value |= (uint64_t)(byte & 0x7F) << 7 * i;
        if (byte < 0x80) {
            *out = value;
            return status_ok();
        }
    }
    return cut_off(begin);
}

static status_t read_fixed(struct pb_reader *reader, size_t size, uint64_t *out)
{
    if (reader->size - reader->at < size) {
        return cut_off(reader->at);
    }
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) {
        value |= (uint64_t)reader->data[reader->at + i] << 8 * i;
    }
    reader->at += size;
    *out = value;
    return status_ok();
}

static status_t read_bytes(struct pb_reader *reader, struct text_view *out)
{
    uint64_t size;
    TRY(read_varint(reader, &size));
    if (size > reader->size - reader->at) {
        return cut_off(reader->at);
    }
    *out = (struct text_view){.data = reader->data + reader->at, .size = (size_t)size};
    reader->at += (size_t)size;
    return status_ok();
}

status_t pb_reader_next(struct pb_reader *reader, struct pb_field *out, bool *more_out)
{
    *more_out = reader->at < reader->size;
    if (!*more_out) {
        return status_ok();
    }
    *out = (struct pb_field){.at = reader->at};
    uint64_t key;
    TRY(read_varint(reader, &key));
    if (key >> 3 == 0 || key >> 3 > UINT32_MAX >> 3) {
        return status_errorf(STATUS_DATA_LOSS, "protobuf: no field begins at byte %zu", out->at);
    }
    out->number = (uint32_t)(key >> 3);
    out->type = (int)(key & 7);
    switch (out->type) {
    case PB_VARINT:
        return read_varint(reader, &out->value);
    case PB_FIXED64:
        return read_fixed(reader, 8, &out->value);
    case PB_BYTES:
        return read_bytes(reader, &out->bytes);
    case PB_FIXED32:
        return read_fixed(reader, 4, &out->value);
    default:
        return status_errorf(STATUS_DATA_LOSS, "protobuf: wire type %d at byte %zu", out->type,
                             out->at);
    }
}

status_t pb_reader_expect(const struct pb_field *field, int type)
{
    if (field->type != type) {
        return status_errorf(STATUS_DATA_LOSS,
                             "protobuf: field %u at byte %zu has wire type %d, not %d",
                             field->number, field->at, field->type, type);
    }
    return status_ok();
}

/*
 * wire_check.c - what protobuf-c does not check, for every message at once
 *
 * What:      walks a serialized message along its descriptor. protobuf-c ends a string at its first NUL without a
 *            word, takes any bytes for text and any integer for an enum; no conversion can forget a field when
 *            all of them are found here, by type.
 * Invariant: no message type of the project contains itself, so the depth is that of the .proto files.
 */
#include <string.h>

#include "base/utf8.h"
#include "proto/wire/wire_internal.h"
#include "proto/wire/wire_reader.h"

#define PATH_BYTES 160

/* The way from the outermost message down to a field, kept on the stack of the walk. */
struct place {
    const struct place *up; /* NULL: the outermost message */
    const ProtobufCMessageDescriptor *message;
    const ProtobufCFieldDescriptor *field;
    const uint8_t *data; /* of the message that has the field */
    size_t at;           /* offset of the field's tag in it */
};

static size_t occurrences_before(const uint8_t *data, size_t at, uint32_t id)
{
    struct wire_reader r = wire_reader_of(data, at);
    struct wire_field field;
    size_t n = 0;
    while (wire_reader_next(&r, &field)) {
        n += field.id == id;
    }
    return n;
}

/* Writes "messages.messages[1].content" and returns its length. */
static size_t write_path(const struct place *place, char *buf, size_t used)
{
    if (place == NULL) {
        buf[used] = '\0';
        return used;
    }
    used = write_path(place->up, buf, used);
    const char *dot = used > 0 ? "." : "";
    const size_t room = PATH_BYTES - used;
    int n;
    if (place->field->label == PROTOBUF_C_LABEL_REPEATED) {
        n = snprintf(buf + used, room, "%s%s[%zu]", dot, place->field->name,
                     occurrences_before(place->data, place->at, place->field->id));
    } else {
        n = snprintf(buf + used, room, "%s%s", dot, place->field->name);
    }
    if (n < 0 || (size_t)n >= room) {
        return PATH_BYTES - 1;
    }
    return used + (size_t)n;
}

static status_t fail(const struct place *place, const char *what, size_t at)
{
    char path[PATH_BYTES];
    (void)write_path(place, path, 0);
    return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %s at byte %zu", path, what, at);
}

static status_t check_text(const struct place *place, const struct wire_field *field)
{
    const size_t valid = utf8_valid_prefix(field->data, field->size);
    if (valid < field->size) {
        return fail(place, "not UTF-8", valid);
    }
    const uint8_t *nul = memchr(field->data, 0, field->size);
    if (nul != NULL) {
        return fail(place, "NUL", (size_t)(nul - field->data));
    }
    return status_ok();
}

static status_t check_enum(const struct place *place, const struct wire_field *field)
{
    const ProtobufCEnumDescriptor *descriptor = place->field->descriptor;
    // Enums travel as sign-extended 64-bit integers.
    const int64_t value = (int64_t)field->value;
    if (value >= INT32_MIN && value <= INT32_MAX &&
        protobuf_c_enum_descriptor_get_value(descriptor, (int)value) != NULL) {
        return status_ok();
    }
    char path[PATH_BYTES];
    (void)write_path(place, path, 0);
    return status_errorf(STATUS_INVALID_ARGUMENT, "%s: %lld is no %s", path, (long long)value,
                         descriptor->short_name);
}

static status_t check_message(const struct place *up, const ProtobufCMessageDescriptor *descriptor,
                              const uint8_t *data, size_t size);

static status_t check_field(const struct place *place, const struct wire_field *field)
{
    switch (place->field->type) {
    case PROTOBUF_C_TYPE_STRING:
        return field->type == WIRE_BYTES ? check_text(place, field) : status_ok();
    case PROTOBUF_C_TYPE_ENUM:
        return field->type == WIRE_VARINT ? check_enum(place, field) : status_ok();
    case PROTOBUF_C_TYPE_MESSAGE:
        return field->type == WIRE_BYTES
                   ? check_message(place, place->field->descriptor, field->data, field->size)
                   : status_ok();
    default:
        return status_ok(); // a wrong wire type is left for protobuf-c to refuse
    }
}

static status_t check_message(const struct place *up, const ProtobufCMessageDescriptor *descriptor,
                              const uint8_t *data, size_t size)
{
    struct wire_reader r = wire_reader_of(data, size);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        const struct place place = {
            .up = up,
            .message = descriptor,
            .field = protobuf_c_message_descriptor_get_field(descriptor, field.id),
            .data = data,
            .at = field.at,
        };
        if (place.field != NULL) {
            TRY(check_field(&place, &field));
        }
    }
    if (!r.malformed) {
        return status_ok();
    }
    if (up == NULL) {
        return status_errorf(STATUS_INVALID_ARGUMENT, "%s: malformed protobuf at byte %zu",
                             descriptor->short_name, r.at);
    }
    return fail(up, "malformed protobuf", r.at);
}

status_t wire_check(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t size)
{
    return check_message(NULL, descriptor, data, size);
}

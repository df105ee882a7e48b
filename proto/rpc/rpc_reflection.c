/*
 * rpc_reflection.c - grpc.reflection.v1 and v1alpha, whose messages are the same
 *
 * What:      answers from the descriptions embedded at build time (proto/descriptors.h), read in place:
 *
 *              FileDescriptorSet  file = 1 *
 *              file               name = 1, package = 2, message_type = 4 *, enum_type = 5 *, service = 6 *
 *              message            name = 1, field = 2 *, nested_type = 3 *, enum_type = 4 *, oneof_decl = 8 *
 *              enum               name = 1, value = 2 *
 *              service            name = 1, method = 2 *
 *
 * Source:    google/protobuf/descriptor.proto, grpc/reflection/v1/reflection.proto
 */
#include <stdlib.h>
#include <string.h>

#include "proto/descriptors.h"
#include "proto/rpc/rpc_internal.h"
#include "proto/wire/wire_reader.h"

#define MAX_ANSWER_BYTES ((size_t)1 << 20)

/* A piece of the request or of a description. */
struct piece {
    const uint8_t *data;
    size_t size;
};

static bool is_equal(struct piece a, struct piece b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* The first bytes field `id` of a message; empty when there is none. */
static struct piece find_field(struct piece message, uint32_t id)
{
    struct wire_reader r = wire_reader_of(message.data, message.size);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        if (field.id == id && field.type == WIRE_BYTES) {
            return (struct piece){field.data, field.size};
        }
    }
    return (struct piece){NULL, 0};
}

// ---- who defines a symbol ----

enum kind { KIND_OTHER, KIND_LEAF, KIND_FILE, KIND_MESSAGE, KIND_ENUM, KIND_SERVICE };

/* What field `id` of a description of this kind describes. */
static enum kind child_kind(enum kind kind, uint32_t id)
{
    static const struct {
        enum kind kind;
        uint32_t id;
        enum kind child;
    } children[] = {
        {KIND_FILE, 4, KIND_MESSAGE},    {KIND_FILE, 5, KIND_ENUM},    {KIND_FILE, 6, KIND_SERVICE},
        {KIND_MESSAGE, 2, KIND_LEAF},    {KIND_MESSAGE, 4, KIND_ENUM}, {KIND_MESSAGE, 8, KIND_LEAF},
        {KIND_MESSAGE, 3, KIND_MESSAGE}, {KIND_ENUM, 2, KIND_LEAF},    {KIND_SERVICE, 2, KIND_LEAF},
    };

    for (size_t i = 0; i < sizeof children / sizeof children[0]; i++) {
        if (children[i].kind == kind && children[i].id == id) {
            return children[i].child;
        }
    }
    return KIND_OTHER;
}

/* "A.B" with prefix "A" is "B"; false when it does not begin with "A.". */
static bool strip_prefix(struct piece *symbol, struct piece prefix)
{
    if (symbol->size <= prefix.size || symbol->data[prefix.size] != '.' ||
        memcmp(symbol->data, prefix.data, prefix.size) != 0) {
        return false;
    }
    symbol->data += prefix.size + 1;
    symbol->size -= prefix.size + 1;
    return true;
}

/* As deep as messages are nested in our own .proto files. */
static bool defines(struct piece description, enum kind kind, struct piece symbol)
{
    struct wire_reader r = wire_reader_of(description.data, description.size);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        const enum kind child = child_kind(kind, field.id);
        if (child == KIND_OTHER || field.type != WIRE_BYTES) {
            continue;
        }
        const struct piece piece = {field.data, field.size};
        const struct piece name = find_field(piece, 1);
        struct piece rest = symbol;
        if (is_equal(symbol, name) || (strip_prefix(&rest, name) && defines(piece, child, rest))) {
            return true;
        }
    }
    return false;
}

static bool file_defines(struct piece file, struct piece symbol)
{
    return strip_prefix(&symbol, find_field(file, 2)) && defines(file, KIND_FILE, symbol);
}

static bool file_is_named(struct piece file, struct piece name)
{
    return is_equal(find_field(file, 1), name);
}

/* The first file that matches; empty when none does. */
static struct piece find_file(bool (*matches)(struct piece file, struct piece wanted),
                              struct piece wanted)
{
    struct wire_reader r = wire_reader_of(proto_descriptors, proto_descriptors_bytes);
    struct wire_field field;
    while (wire_reader_next(&r, &field)) {
        const struct piece file = {field.data, field.size};
        if (field.id == 1 && field.type == WIRE_BYTES && matches(file, wanted)) {
            return file;
        }
    }
    return (struct piece){NULL, 0};
}

// ---- answers ----

static status_t put_varint(struct bytes *out, uint64_t value)
{
    uint8_t buf[10];
    size_t n = 0;
    while (value >= 0x80) {
        buf[n] = (uint8_t)(value | 0x80);
        value >>= 7;
        n++;
    }
    buf[n] = (uint8_t)value;
    return bytes_append(out, buf, n + 1);
}

static status_t put_field(struct bytes *out, uint32_t id, struct piece content)
{
    TRY(put_varint(out, (uint64_t)id << 3 | WIRE_BYTES));
    TRY(put_varint(out, content.size));
    return bytes_append(out, content.size > 0 ? content.data : (const uint8_t *)"", content.size);
}

/* ErrorResponse{error_code = 1, error_message = 2} as field 7. */
static status_t put_error(struct bytes *part, uint32_t *id_out, int code, struct piece message)
{
    *id_out = 7;
    TRY(put_varint(part, 1 << 3 | WIRE_VARINT));
    TRY(put_varint(part, (uint64_t)code));
    return put_field(part, 2, message);
}

static status_t put_not_found(struct bytes *part, uint32_t *id_out, struct piece what)
{
    char text[300];
    const int shown = what.size < 200 ? (int)what.size : 200;
    const int n = snprintf(text, sizeof text, "not found: %.*s", shown, (const char *)what.data);
    return put_error(part, id_out, STATUS_NOT_FOUND,
                     (struct piece){(const uint8_t *)text, n > 0 ? (size_t)n : 0});
}

/* FileDescriptorResponse{file_descriptor_proto = 1 *} as field 4. */
static status_t put_file(struct bytes *part, uint32_t *id_out, struct piece file,
                         struct piece wanted)
{
    if (file.data == NULL) {
        return put_not_found(part, id_out, wanted);
    }
    *id_out = 4;
    return put_field(part, 1, file);
}

struct service_list {
    struct bytes *part;
    status_t status;
};

/* ListServiceResponse{service = 1 *: ServiceResponse{name = 1}} as field 6. */
static void put_service(void *self, const char *name, size_t size)
{
    struct service_list *list = self;
    struct bytes service;
    bytes_init(&service, MAX_ANSWER_BYTES);
    status_t s = put_field(&service, 1, (struct piece){(const uint8_t *)name, size});
    if (status_is_ok(&s)) {
        s = put_field(list->part, 1, (struct piece){service.data, service.size});
    }
    bytes_destroy(&service);
    if (!status_is_ok(&s)) {
        list->status = s;
    }
}

static status_t put_services(struct bytes *part, uint32_t *id_out, struct rpc_server *server)
{
    *id_out = 6;
    struct service_list list = {.part = part, .status = status_ok()};
    rpc_server_each_service(server, put_service, &list);
    return list.status;
}

/* The one question of the request, which is a oneof: the last one counts. */
static status_t read_question(struct piece request, struct wire_field *question_out)
{
    struct wire_reader r = wire_reader_of(request.data, request.size);
    struct wire_field field;
    *question_out = (struct wire_field){.id = 0};
    while (wire_reader_next(&r, &field)) {
        if (field.id >= 3 && field.id <= 7 && field.type == WIRE_BYTES) {
            *question_out = field;
        }
    }
    if (r.malformed) {
        return status_errorf(STATUS_INVALID_ARGUMENT,
                             "ServerReflectionRequest: malformed protobuf at byte %zu", r.at);
    }
    return status_ok();
}

/* Writes what answers the question, and the number of the field it goes into. */
static status_t put_answer(struct bytes *part, uint32_t *id_out, struct rpc_server *server,
                           const struct wire_field *question)
{
    const struct piece wanted = {question->data, question->size};
    switch (question->id) {
    case 3: // file_by_filename
        return put_file(part, id_out, find_file(file_is_named, wanted), wanted);
    case 4: // file_containing_symbol
        return put_file(part, id_out, find_file(file_defines, wanted), wanted);
    case 5: // file_containing_extension: nothing is extended here
        return put_not_found(part, id_out, find_field(wanted, 1));
    case 6: // all_extension_numbers_of_type
        if (find_file(file_defines, wanted).data == NULL) {
            return put_not_found(part, id_out, wanted);
        }
        *id_out = 5;
        return put_field(part, 1, wanted);
    case 7: // list_services
        return put_services(part, id_out, server);
    default: {
        const char *text = "the request asks nothing that is known";
        return put_error(part, id_out, STATUS_INVALID_ARGUMENT,
                         (struct piece){(const uint8_t *)text, strlen(text)});
    }
    }
}

/* ServerReflectionResponse{valid_host = 1, original_request = 2, one of 4 to 7}. */
static status_t build_response(struct rpc_server *server, struct piece request,
                               struct bytes *response)
{
    struct wire_field question;
    TRY(read_question(request, &question));

    uint32_t id = 0;
    struct bytes part;
    bytes_init(&part, MAX_ANSWER_BYTES);
    status_t s;
    TRY_GOTO(s, put_answer(&part, &id, server, &question), out);
    TRY_GOTO(s, put_field(response, 1, find_field(request, 1)), out);
    TRY_GOTO(s, put_field(response, 2, request), out);
    s = put_field(response, id, (struct piece){part.data, part.size});
out:
    bytes_destroy(&part);
    return s;
}

static void reflection_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct bytes response;
    bytes_init(&response, 2 * MAX_ANSWER_BYTES);
    status_t s = build_response(rpc_call_context(call), (struct piece){data, size}, &response);
    if (status_is_ok(&s)) {
        s = rpc_send(call, response.data, response.size);
    }
    bytes_destroy(&response);
    if (!status_is_ok(&s)) {
        rpc_finish(call, &s, NULL, 0);
    }
}

static void reflection_half_close(struct rpc_call *call)
{
    const status_t ok = status_ok();
    rpc_finish(call, &ok, NULL, 0);
}

static void reflection_closed(struct rpc_call *call, const status_t *status)
{
    (void)call;
    (void)status;
}

const struct rpc_handlers rpc_reflection_handlers = {
    .on_message = reflection_message,
    .on_half_close = reflection_half_close,
    .on_closed = reflection_closed,
};

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "proto/wire/wire_internal.h"

// ---- unpack ----

struct budget {
    struct arena *arena;
    size_t left_bytes;
    bool exhausted;
};

static void *budget_alloc(void *self, size_t size)
{
    struct budget *budget = self;
    void *p = size <= budget->left_bytes ? arena_alloc(budget->arena, size) : NULL;
    if (p == NULL) {
        budget->exhausted = true;
        return NULL;
    }
    budget->left_bytes -= size;
    return p;
}

static void budget_free(void *self, void *pointer)
{
    // The arena frees everything at once.
    (void)self;
    (void)pointer;
}

static size_t budget_bytes(size_t size, unsigned amplification)
{
    if (size > (SIZE_MAX - WIRE_AMPLIFICATION_BASE) / amplification) {
        return SIZE_MAX;
    }
    return size * amplification + WIRE_AMPLIFICATION_BASE;
}

status_t wire_unpack(const struct wire_input *in, const ProtobufCMessageDescriptor *descriptor,
                     ProtobufCMessage **message_out)
{
    // An empty message may come without an address.
    const uint8_t *data = in->size > 0 ? in->data : (const uint8_t *)"";
    TRY(wire_check(descriptor, data, in->size));

    struct budget budget = {
        .arena = in->arena,
        .left_bytes = budget_bytes(in->size, in->amplification),
    };
    ProtobufCAllocator allocator = {
        .alloc = budget_alloc,
        .free = budget_free,
        .allocator_data = &budget,
    };
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &allocator, in->size, data);
    if (message != NULL) {
        *message_out = message;
        return status_ok();
    }
    if (budget.exhausted) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "%s: %zu bytes would take more than %zu bytes of memory (%zu in use)",
                             descriptor->short_name, in->size,
                             budget_bytes(in->size, in->amplification), in->arena->used_bytes);
    }
    return status_errorf(STATUS_INVALID_ARGUMENT, "%s: malformed protobuf", descriptor->short_name);
}

status_t wire_unpack_array(struct arena *arena, size_t n, size_t size, void **array_out)
{
    void *array = arena_calloc(arena, n, size);
    if (array == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "message needs %zu x %zu bytes, %zu of %zu in use", n, size,
                             arena->used_bytes, arena->max_bytes);
    }
    *array_out = array;
    return status_ok();
}

struct wire_token_ids wire_unpack_token_ids(const uint32_t *ids, size_t n)
{
    return (struct wire_token_ids){.ids = ids, .n = n};
}

status_t wire_unpack_status(const Kvasir__V1__Status *from)
{
    if (from == NULL || from->code == STATUS_OK) {
        return status_ok();
    }
    const int code = from->code <= STATUS_UNAUTHENTICATED ? (int)from->code : STATUS_UNKNOWN;
    return status_errorf(code, "%s", from->message);
}

// ---- pack ----

void wire_pack_begin(struct wire_packer *p)
{
    arena_init(&p->scratch, SIZE_MAX);
    p->status = status_ok();
}

static status_t append_message(const ProtobufCMessage *message, struct bytes *out)
{
    const size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *tail;
    TRY(bytes_reserve(out, size, &tail));
    if (size == 0) {
        return status_ok();
    }
    (void)protobuf_c_message_pack(message, tail);
    TRY(wire_check(message->descriptor, tail, size));
    out->size += size;
    return status_ok();
}

status_t wire_pack_finish(struct wire_packer *p, const ProtobufCMessage *message, struct bytes *out)
{
    status_t s = p->status;
    if (status_is_ok(&s)) {
        s = append_message(message, out);
    }
    arena_destroy(&p->scratch);
    return s;
}

static void pack_fail(struct wire_packer *p, status_t s)
{
    if (status_is_ok(&p->status)) {
        p->status = s;
    }
}

void *wire_pack_alloc(struct wire_packer *p, size_t n, size_t size)
{
    void *memory = status_is_ok(&p->status) ? arena_calloc(&p->scratch, n, size) : NULL;
    if (memory == NULL) {
        pack_fail(p, status_errorf(STATUS_RESOURCE_EXHAUSTED,
                                   "no memory for %zu x %zu bytes of a message", n, size));
    }
    return memory;
}

void *wire_pack_messages(struct wire_packer *p, const ProtobufCMessageDescriptor *descriptor,
                         size_t n)
{
    ProtobufCMessage **pointers = wire_pack_alloc(p, n, sizeof(void *));
    char *messages = wire_pack_alloc(p, n, descriptor->sizeof_message);
    if (pointers == NULL || messages == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        pointers[i] = (ProtobufCMessage *)(void *)(messages + i * descriptor->sizeof_message);
        descriptor->message_init(pointers[i]);
    }
    return pointers;
}

char *wire_pack_text(const char *text)
{
    return text != NULL ? (char *)text : (char *)"";
}

uint32_t *wire_pack_ids(const uint32_t *ids)
{
    return (uint32_t *)ids;
}

char *wire_pack_text_n(struct wire_packer *p, const char *field, const char *text, size_t size)
{
    if (size == 0) {
        return (char *)"";
    }
    const char *nul = memchr(text, 0, size);
    if (nul != NULL) {
        pack_fail(p, status_errorf(STATUS_INVALID_ARGUMENT, "%s: NUL at byte %zu", field,
                                   (size_t)(nul - text)));
        return NULL;
    }
    char *copy = wire_pack_alloc(p, size + 1, 1);
    if (copy != NULL) {
        memcpy(copy, text, size);
    }
    return copy;
}

Kvasir__V1__Status *wire_pack_status(struct wire_packer *p, const status_t *from)
{
    if (status_is_ok(from)) {
        return NULL;
    }
    Kvasir__V1__Status *status = wire_pack_alloc(p, 1, sizeof *status);
    char *message = wire_pack_alloc(p, 1, STATUS_MSG_BYTES);
    if (status == NULL || message == NULL) {
        return NULL;
    }
    const size_t size = strnlen(from->msg, STATUS_MSG_BYTES - 1);
    memcpy(message, from->msg, size);
    for (size_t at = 0; at < size; at++) {
        at += utf8_valid_prefix((const uint8_t *)message + at, size - at);
        if (at < size) {
            message[at] = '?';
        }
    }
    kvasir__v1__status__init(status);
    status->code = (uint32_t)from->code;
    status->message = message;
    return status;
}

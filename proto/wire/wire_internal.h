/*
 * wire_internal.h - what the files of proto/wire share; the only header here that sees protobuf-c
 *
 * What:      unpack = wire_check, then protobuf-c into the caller's arena under a budget, then copy to structs.
 *            pack = a protobuf-c tree of borrowed pointers in scratch memory, serialized, then wire_check.
 * Thread:    any
 * Errors:    a packer remembers its first failure; wire_pack_finish returns it.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "kvasir/v1/inference.pb-c.h"
#include "kvasir/v1/worker_link.pb-c.h"

#include "proto/wire/inference.h"

/* INVALID_ARGUMENT for malformed bytes, text that is not UTF-8 or contains NUL, unknown enum values. */
MUST_USE status_t wire_check(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data,
                             size_t size);

/* ---- unpack ---- */

struct wire_input {
    const uint8_t *data;
    size_t size;
    struct arena *arena;    /* receives the message and what is made from it */
    unsigned amplification; /* WIRE_AMPLIFICATION... */
};

/* The message borrows from the arena and is never freed on its own. */
MUST_USE status_t wire_unpack(const struct wire_input *in,
                              const ProtobufCMessageDescriptor *descriptor,
                              ProtobufCMessage **message_out);

/* Zeroed room for n elements; never NULL on success. */
MUST_USE status_t wire_unpack_array(struct arena *arena, size_t n, size_t size, void **array_out);

struct wire_token_ids wire_unpack_token_ids(const uint32_t *ids, size_t n);
MUST_USE status_t wire_unpack_token_infos(struct arena *arena, Kvasir__V1__TokenInfo *const *from,
                                          size_t n, const struct wire_token_info **out);
MUST_USE status_t wire_unpack_logit_bias(struct arena *arena, Kvasir__V1__LogitBias *const *from,
                                         size_t n, const struct wire_logit_bias **out);
status_t wire_unpack_status(const Kvasir__V1__Status *from); /* OK for NULL */

/* ---- pack ---- */

struct wire_packer {
    struct arena scratch;
    status_t status; /* first failure */
};

void wire_pack_begin(struct wire_packer *p);

/* Appends the message to out and destroys the packer. */
MUST_USE status_t wire_pack_finish(struct wire_packer *p, const ProtobufCMessage *message,
                                   struct bytes *out);

/* Scratch memory for n zeroed elements; NULL after a failure. */
void *wire_pack_alloc(struct wire_packer *p, size_t n, size_t size);

/* n initialised messages behind n pointers; NULL after a failure. */
void *wire_pack_messages(struct wire_packer *p, const ProtobufCMessageDescriptor *descriptor,
                         size_t n);

/* protobuf-c's members are not const, but packing only reads them. NULL is "". */
char *wire_pack_text(const char *text);
uint32_t *wire_pack_ids(const uint32_t *ids);

/* Text that need not end in NUL and must not contain one; `field` names it in the failure. */
char *wire_pack_text_n(struct wire_packer *p, const char *field, const char *text, size_t size);

Kvasir__V1__TokenInfo **wire_pack_token_infos(struct wire_packer *p,
                                              const struct wire_token_info *from, size_t n);

Kvasir__V1__LogitBias **wire_pack_logit_bias(struct wire_packer *p,
                                             const struct wire_logit_bias *from, size_t n);

/* NULL for an OK status. Bytes of the message that are not UTF-8 (of a path, say) become '?'. */
Kvasir__V1__Status *wire_pack_status(struct wire_packer *p, const status_t *from);

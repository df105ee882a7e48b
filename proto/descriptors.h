/*
 * descriptors.h - what the .proto files say, in protobuf's own form
 *
 * What:      a serialized google.protobuf.FileDescriptorSet of every .proto file the servers speak, made at
 *            build time; server reflection hands it out.
 * Ownership: static
 * Thread:    any
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

extern const uint8_t proto_descriptors[];
extern const size_t proto_descriptors_bytes;

/*
 * wire_samples.h - random messages of every kind of proto/wire, and how to compare them
 *
 * Ownership: what fill makes lives in its arena.
 */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "proto/wire/cluster.h"
#include "proto/wire/link.h"
#include "tests/support/test.h"

/* Room for any of the structs. */
union wire_any {
    struct wire_generate_request generate_request;
    struct wire_generate_response generate_response;
    struct wire_complete_response complete_response;
    struct wire_tokenize_request tokenize_request;
    struct wire_token_ids tokenize_response;
    struct wire_detokenize_request detokenize_request;
    const char *text; /* DetokenizeResponse, GetPlanResponse */
    struct wire_model_info model_info;
    struct wire_cluster_status cluster_status;
    struct wire_worker_message worker_message;
    struct wire_coordinator_message coordinator_message;
};

struct wire_kind {
    const ProtobufCMessageDescriptor *descriptor;
    void (*fill)(struct arena *arena, union wire_any *m); /* random content */
    status_t (*pack)(const union wire_any *m, struct bytes *out);
    status_t (*unpack)(const uint8_t *data, size_t size, struct arena *arena, union wire_any *m);
    void (*assert_equal)(const union wire_any *got, const union wire_any *want);
};

#define N_WIRE_KINDS 12
extern const struct wire_kind wire_kinds[N_WIRE_KINDS];

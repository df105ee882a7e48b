/*
 * ingress.h - the threads that read, check and tokenize what clients send
 *
 * What:      between the pollers, which may not compute, and the core, which must not wait for one long prompt.
 *            Requests go on to the core; Tokenize and Detokenize are answered here.
 * Ownership: borrows model, gate, metrics and core; free before them.
 * Thread:    submit: any.
 * Errors:    RESOURCE_EXHAUSTED when too much waits.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/core.h"
#include "coordinator/gate.h"
#include "coordinator/metrics.h"
#include "coordinator/model.h"
#include "coordinator/request.h"

struct ingress;

struct ingress_options {
    const struct model *model;
    struct gate *gate;
    struct metrics *metrics;
    struct core *core;
    uint64_t max_completion_tokens; /* of all samples of a request */
    log_t log;
};

enum ingress_text { INGRESS_TOKENIZE, INGRESS_DETOKENIZE };

MUST_USE status_t ingress_new(const struct ingress_options *options, struct ingress **ingress_out);

/* Ends the threads; what still waits is dropped. Accepts NULL. */
void ingress_free(struct ingress *ingress);

/* Takes over the pipeline's reference on success. */
MUST_USE status_t ingress_request(struct ingress *ingress, struct request *request);

/* Copies the message and acquires the call. */
MUST_USE status_t ingress_text(struct ingress *ingress, enum ingress_text what,
                               struct rpc_call *call, const uint8_t *data, size_t size);

/*
 * service.h - the methods of kvasir.v1, bound to the server
 *
 * What:      rpc callbacks: each copies, counts, and hands on. Inference goes through the gate to the ingress, Cluster
 *            and WorkerLink to the core; what can be answered from memory is answered here.
 * Ownership: borrows everything; it must outlive the server's calls.
 * Thread:    callbacks run on rpc pollers.
 */
#pragma once

#include "base/status.h"
#include "coordinator/core.h"
#include "coordinator/ingress.h"
#include "coordinator/model.h"
#include "proto/rpc/rpc.h"

struct service {
    const struct model *model;
    struct core *core;
    struct ingress *ingress;
    struct gate *gate;
    struct metrics *metrics;
};

/* Adds the methods, health and reflection. The service is the methods' context. */
MUST_USE status_t service_add(struct service *service, struct rpc_server *server);

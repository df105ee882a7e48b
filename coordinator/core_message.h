/*
 * core_message.h - what other threads hand to the core
 *
 * Ownership: moves with the message: the references it names, and data. A message that is part of another struct
 *            (a request's, a link's) is not freed by itself.
 * Thread:    any to make, core to take.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum core_message_kind {
    CORE_REQUEST,      /* request: read and checked; the pipeline's reference */
    CORE_REQUEST_GONE, /* request: its call is over; the call's reference */
    CORE_LINK_MESSAGE, /* link, data: of a worker; a reference to the link */
    CORE_LINK_GONE,    /* link: its call is over; the call's reference */
    CORE_CALL,         /* call: Cluster's, by what; a reference to it */
    CORE_DRAIN,        /* finish what runs, then stop */
    CORE_STOP,         /* stop now */
};

struct request;
struct link;
struct rpc_call;
struct core_message;

struct core_message {
    int kind;   /* enum core_message_kind */
    bool owned; /* made by malloc for itself */
    struct request *request;
    struct link *link;
    struct rpc_call *call;
    int what;             /* CORE_CALL: enum core_call */
    uint64_t patience_ns; /* CORE_CALL: interval of a watch, grace of a drain; 0: as configured */
    uint8_t *data;        /* malloc */
    size_t size;
};

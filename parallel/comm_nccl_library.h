/*
 * comm_nccl_library.h - NCCL's functions, from the library that is there at run time
 *
 * What:      a table of those that comm_nccl.c calls, with the types of nccl.h.
 * Ownership: the library stays open to the end of the process: it has threads of its own.
 * Thread:    any
 * Errors:    UNAVAILABLE with the loader's words, or for a version without non-blocking communicators.
 */
#pragma once

#include <nccl.h>

#include "base/status.h"

struct comm_nccl_library {
    __typeof__(ncclGetVersion) *get_version;
    __typeof__(ncclGetUniqueId) *get_unique_id;
    __typeof__(ncclCommInitRankConfig) *comm_init_rank_config;
    __typeof__(ncclCommGetAsyncError) *comm_get_async_error;
    __typeof__(ncclCommFinalize) *comm_finalize;
    __typeof__(ncclCommDestroy) *comm_destroy;
    __typeof__(ncclCommAbort) *comm_abort;
    __typeof__(ncclGroupStart) *group_start;
    __typeof__(ncclGroupEnd) *group_end;
    __typeof__(ncclSend) *send;
    __typeof__(ncclRecv) *recv;
    __typeof__(ncclAllGather) *all_gather;
    __typeof__(ncclAllReduce) *all_reduce;
    __typeof__(ncclBroadcast) *broadcast;
    __typeof__(ncclGetErrorString) *get_error_string;
    __typeof__(ncclGetLastError) *get_last_error;
};

MUST_USE status_t comm_nccl_library_open(struct comm_nccl_library *library_out, int *version_out);

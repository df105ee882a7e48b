#include "parallel/comm_nccl_library.h"

#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

#define NAME "libnccl.so.2"

/* The oldest with all of these functions, ncclCommFinalize and blocking = 0 among them. */
#define MIN_VERSION 21400

static status_t find_all(void *handle, struct comm_nccl_library *library)
{
#define ENTRY(field, symbol)                              \
    {                                                     \
        symbol, offsetof(struct comm_nccl_library, field) \
    }

    static const struct {
        const char *symbol;
        size_t offset;
    } entries[] = {
        ENTRY(get_version, "ncclGetVersion"),
        ENTRY(get_unique_id, "ncclGetUniqueId"),
        ENTRY(comm_init_rank_config, "ncclCommInitRankConfig"),
        ENTRY(comm_get_async_error, "ncclCommGetAsyncError"),
        ENTRY(comm_finalize, "ncclCommFinalize"),
        ENTRY(comm_destroy, "ncclCommDestroy"),
        ENTRY(comm_abort, "ncclCommAbort"),
        ENTRY(group_start, "ncclGroupStart"),
        ENTRY(group_end, "ncclGroupEnd"),
        ENTRY(send, "ncclSend"),
        ENTRY(recv, "ncclRecv"),
        ENTRY(all_gather, "ncclAllGather"),
        ENTRY(all_reduce, "ncclAllReduce"),
        ENTRY(broadcast, "ncclBroadcast"),
        ENTRY(get_error_string, "ncclGetErrorString"),
        ENTRY(get_last_error, "ncclGetLastError"),
    };

#undef ENTRY

    for (size_t i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        void *const address = dlsym(handle, entries[i].symbol);
        if (address == NULL) {
            return status_errorf(STATUS_UNAVAILABLE, "%s has no %s", NAME, entries[i].symbol);
        }
        memcpy((char *)library + entries[i].offset, &address, sizeof address);
    }
    return status_ok();
}

status_t comm_nccl_library_open(struct comm_nccl_library *library_out, int *version_out)
{
    struct comm_nccl_library library;
    int version = 0;
    void *const handle = dlopen(NAME, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        return status_errorf(STATUS_UNAVAILABLE, "no NCCL: %s", dlerror());
    }
    TRY(find_all(handle, &library));
    if (library.get_version(&version) != ncclSuccess || version < MIN_VERSION) {
        return status_errorf(STATUS_UNAVAILABLE, "%s is version %d, %d is needed", NAME, version,
                             MIN_VERSION);
    }
    *library_out = library;
    *version_out = version;
    return status_ok();
}

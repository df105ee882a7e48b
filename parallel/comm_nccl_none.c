/*
 * comm_nccl_none.c - takes the place of comm_nccl.c where NCCL's header is missing
 */
#include "parallel/comm_nccl.h"

static status_t missing(void)
{
    return status_errorf(STATUS_UNAVAILABLE, "this program was built without NCCL");
}

status_t comm_nccl_find(int *version_out)
{
    *version_out = 0;
    return missing();
}

status_t comm_nccl_new(const struct comm_nccl_parts *parts, struct comm **comm_out)
{
    (void)parts;
    *comm_out = NULL;
    return missing();
}

status_t comm_nccl_look(struct comm *comm)
{
    (void)comm;
    return missing();
}

void comm_nccl_end(struct comm *comm)
{
    (void)comm;
}

#include "worker/rank_cores.h"

void rank_cores_choose(const struct group *group, int32_t n_threads, int pinning,
                       struct host_cores *cores_out)
{
    const struct host_cores_request request = {
        .n_sharers = group_core_size(group),
        .index = group_core_rank(group),
        .n_threads = n_threads,
        .pinning = pinning,
    };
    host_cores_choose(&request, cores_out);
}

#include "worker/device.h"

#include "worker/worker_config.h"

enum { MAX_DEVICES = 64 };

/* What this rank can use by itself. */
static status_t find_cuda(const struct group *group, struct device_choice *choice_out)
{
    struct device_info devices[MAX_DEVICES];
    struct device_choice found = {.backend = NULL};
    TRY(backend_load("cuda", &found.backend));
    TRY(found.backend->devices(devices, MAX_DEVICES, &found.n_devices));
    if (found.n_devices == 0) {
        return status_errorf(STATUS_UNAVAILABLE, "no CUDA device");
    }
    found.index = group_host_rank(group) % found.n_devices;
    *choice_out = found;
    return status_ok();
}

status_t device_choose(struct group *group, int wanted, log_t log, struct device_choice *choice_out)
{
    *choice_out = (struct device_choice){.backend = backend_cpu(), .n_devices = 1};
    if (wanted == WORKER_DEVICE_CPU) {
        return status_ok();
    }
    struct device_choice cuda = {.backend = NULL};
    const status_t s = group_agree(group, find_cuda(group, &cuda));
    if (!status_is_ok(&s) && wanted == WORKER_DEVICE_CUDA) {
        // Not UNAVAILABLE: starting the group again would not help.
        return status_errorf(STATUS_FAILED_PRECONDITION,
                             "--device cuda: %s" STATUS_FIX "--device auto", s.msg);
    }
    if (!status_is_ok(&s)) {
        log_write(&log, LOG_INFO, "computing on the CPU", "reason=\"%s\"", s.msg);
        return status_ok();
    }
    const bool shared = group_host_size(group) > cuda.n_devices;
    log_write(&log, shared ? LOG_WARN : LOG_INFO,
              shared ? "ranks share a CUDA device" : "computing on a CUDA device",
              "device=%d devices=%d ranks_of_host=%d", cuda.index, cuda.n_devices,
              group_host_size(group));
    *choice_out = cuda;
    return status_ok();
}

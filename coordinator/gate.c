#include "coordinator/gate.h"

static const char *const reasons[GATE_N_MODES] = {
    [GATE_LOADING] = "the model is still loading",
    [GATE_NO_WORKERS] = "no worker group is attached",
    [GATE_LOST] = "the worker groups were lost and are starting again",
    [GATE_OPEN] = "",
    [GATE_DRAINING] = "the server is draining",
};

const char *gate_reason(int mode)
{
    return reasons[mode];
}

void gate_init(struct gate *g, uint64_t max_bytes)
{
    atomic_init(&g->mode, GATE_LOADING);
    atomic_init(&g->live, 0);
    atomic_init(&g->max_live, 0);
    atomic_init(&g->retry_ms, 1000);
    atomic_init(&g->bytes, 0);
    g->max_bytes = max_bytes;
}

status_t gate_enter(struct gate *g)
{
    const int mode = atomic_load(&g->mode);
    if (mode != GATE_OPEN) {
        return status_errorf(STATUS_UNAVAILABLE, "%s", reasons[mode]);
    }
    const unsigned max = atomic_load(&g->max_live);
    const unsigned before = atomic_fetch_add(&g->live, 1);
    if (before >= max) {
        atomic_fetch_sub(&g->live, 1);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "%u requests are waiting or running, at most %u", before, max);
    }
    return status_ok();
}

void gate_leave(struct gate *g)
{
    atomic_fetch_sub(&g->live, 1);
}

status_t gate_enter_bytes(struct gate *g, uint64_t size_bytes)
{
    const uint64_t before = atomic_fetch_add(&g->bytes, size_bytes);
    if (before + size_bytes > g->max_bytes) {
        atomic_fetch_sub(&g->bytes, size_bytes);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED,
                             "%llu bytes of requests wait to be read, at most %llu",
                             (unsigned long long)before, (unsigned long long)g->max_bytes);
    }
    return status_ok();
}

void gate_leave_bytes(struct gate *g, uint64_t size_bytes)
{
    atomic_fetch_sub(&g->bytes, size_bytes);
}

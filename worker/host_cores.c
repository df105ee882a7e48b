#include "worker/host_cores.h"

#include <hwloc.h>
#include <limits.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "worker/host.h"

static void give_up(struct host_cores *cores, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void give_up(struct host_cores *cores, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(cores->why, sizeof cores->why, fmt, args);
    va_end(args);
    cores->pinned = false;
}

// ---- the machine ----

/* Of a machine in words every core; of this one those that the caller may run on. */
static bool load(const char *machine, hwloc_topology_t topology)
{
    if (machine != NULL && hwloc_topology_set_synthetic(topology, machine) != 0) {
        return false;
    }
    if (hwloc_topology_load(topology) != 0) {
        return false;
    }
    if (machine != NULL) {
        return true;
    }
    const hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
    const bool found = allowed != NULL &&
                       hwloc_get_cpubind(topology, allowed, HWLOC_CPUBIND_THREAD) == 0 &&
                       hwloc_topology_restrict(topology, allowed, 0) == 0;
    hwloc_bitmap_free(allowed);
    return found;
}

/* One core a thread, of the share of the request's rank: cores_out [n_threads]. */
static bool spread(hwloc_topology_t topology, const struct host_cores_request *request,
                   int32_t n_threads, int32_t *cores_out)
{
    static const unsigned leaves = INT_MAX;
    hwloc_obj_t root = hwloc_get_root_obj(topology);
    hwloc_bitmap_t sets[HOST_MAX_CORES];
    hwloc_bitmap_t taken = hwloc_bitmap_alloc();
    const int32_t n = n_threads * request->n_sharers;
    const int32_t first = request->index * n_threads;
    bool distinct = taken != NULL;
    if (!distinct || hwloc_distrib(topology, &root, 1, sets, (unsigned)n, (int)leaves, 0) != 0) {
        hwloc_bitmap_free(taken);
        return false;
    }
    for (int32_t i = 0; i < n; i++) {
        hwloc_bitmap_singlify(sets[i]);
        const int core = hwloc_bitmap_first(sets[i]);
        distinct = distinct && core >= 0 && core < HOST_MAX_CORES &&
                   !hwloc_bitmap_isset(taken, (unsigned)core);
        if (distinct) {
            hwloc_bitmap_set(taken, (unsigned)core);
        }
        if (i >= first && i < first + n_threads) {
            cores_out[i - first] = core;
        }
        hwloc_bitmap_free(sets[i]);
    }
    hwloc_bitmap_free(taken);
    return distinct;
}

// ---- the choice ----

/* What speaks against pinning n_total threads; true: nothing. */
static bool may_pin(const struct host_cores_request *request, struct host_cores *cores,
                    int32_t n_whole_cores)
{
    const int64_t n_total = (int64_t)cores->n_threads * request->n_sharers;
    if (n_total > cores->n_cores || n_total > HOST_MAX_CORES) {
        give_up(cores, "%d ranks of %d threads on %d cores", (int)request->n_sharers,
                (int)cores->n_threads, (int)cores->n_cores);
        return false;
    }
    if (request->pinning == HOST_PIN_AUTO && n_total != cores->n_cores &&
        n_total != n_whole_cores) {
        give_up(cores, "%lld threads leave some of %d cores idle, which another job may do too",
                (long long)n_total, (int)cores->n_cores);
        return false;
    }
    return true;
}

static void place(const struct host_cores_request *request, hwloc_topology_t topology,
                  struct host_cores *cores)
{
    if (!load(request->machine, topology)) {
        give_up(cores, "the machine's cores cannot be read");
        return;
    }
    if (request->machine != NULL) {
        cores->n_cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_PU);
    }
    if (cores->n_threads == 0) {
        const int32_t share = cores->n_cores / request->n_sharers;
        cores->n_threads = share > 0 ? share : 1;
    }
    if (request->pinning == HOST_PIN_OFF) {
        give_up(cores, "switched off");
        return;
    }
    if (may_pin(request, cores, hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE))) {
        cores->pinned = spread(topology, request, cores->n_threads, cores->cores);
        if (!cores->pinned) {
            give_up(cores, "%d cores cannot be divided", (int)cores->n_cores);
        }
    }
}

void host_cores_choose(const struct host_cores_request *request, struct host_cores *cores_out)
{
    struct host_cores cores = {.n_threads = request->n_threads, .n_cores = host_cores()};
    hwloc_topology_t topology;
    if (request->n_sharers < 1) {
        give_up(&cores, "some of the cores are other ranks', too");
    } else if (hwloc_topology_init(&topology) != 0) {
        give_up(&cores, "no memory to read the machine's cores");
    } else {
        place(request, topology, &cores);
        hwloc_topology_destroy(topology);
    }
    if (cores.n_threads < 1) {
        const int32_t share = cores.n_cores / (request->n_sharers > 0 ? request->n_sharers : 1);
        cores.n_threads = share > 0 ? share : 1;
    }
    *cores_out = cores;
}

void host_cores_log(const struct host_cores *cores, const log_t *log)
{
    char list[256] = "";
    size_t n = 0;
    for (int32_t i = 0; cores->pinned && i < cores->n_threads && n + 8 < sizeof list; i++) {
        n +=
            (size_t)snprintf(list + n, sizeof list - n, i > 0 ? ",%d" : "%d", (int)cores->cores[i]);
    }
    if (cores->pinned) {
        log_write(log, LOG_INFO, "threads", "n=%d pinned=true cores=%s", (int)cores->n_threads,
                  list);
    } else {
        log_write(log, LOG_INFO, "threads", "n=%d pinned=false why=\"%s\"", (int)cores->n_threads,
                  cores->why);
    }
}

// ---- threads of a pinned one ----

_Static_assert(sizeof(struct host_cores_mask) == sizeof(cpu_set_t), "as many processors");

void host_cores_get_mask(struct host_cores_mask *mask_out)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    (void)sched_getaffinity(0, sizeof set, &set); // an empty set is not set
    memcpy(mask_out, &set, sizeof set);
}

void host_cores_set_mask(const struct host_cores_mask *mask)
{
    cpu_set_t set;
    memcpy(&set, mask, sizeof set);
    if (CPU_COUNT(&set) > 0) {
        (void)sched_setaffinity(0, sizeof set, &set); // fails where the cores are no longer there
    }
}

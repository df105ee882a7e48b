#include "worker/host.h"

#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The number in a file of one number; false for "max" and for what cannot be read. */
static bool read_number(const char *path, uint64_t *value_out)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return false;
    }
    unsigned long long value = 0;
    const bool found = fscanf(file, "%llu", &value) == 1;
    fclose(file);
    *value_out = value;
    return found;
}

/* What a cgroup's limit leaves; UINT64_MAX: no limit. */
static uint64_t cgroup_left(const char *limit_path, const char *usage_path)
{
    uint64_t limit;
    uint64_t usage;
    if (!read_number(limit_path, &limit) || !read_number(usage_path, &usage)) {
        return UINT64_MAX;
    }
    return limit > usage ? limit - usage : 0;
}

/* Of a file with lines `Name:  number kB`; UINT64_MAX: it has no such line. */
static uint64_t read_line(const char *path, const char *name)
{
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return UINT64_MAX;
    }
    char line[128];
    const size_t n = strlen(name);
    unsigned long long kib = 0;
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        found = strncmp(line, name, n) == 0 && sscanf(line + n, ": %llu kB", &kib) == 1;
    }
    fclose(file);
    return found ? (uint64_t)kib * 1024 : UINT64_MAX;
}

uint64_t host_memory_available(void)
{
    uint64_t left = read_line("/proc/meminfo", "MemAvailable");
    const uint64_t v2 = cgroup_left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
    const uint64_t v1 = cgroup_left("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                    "/sys/fs/cgroup/memory/memory.usage_in_bytes");
    left = v2 < left ? v2 : left;
    left = v1 < left ? v1 : left;
    return left == UINT64_MAX ? 0 : left;
}

uint64_t host_memory_resident(void)
{
    const uint64_t bytes = read_line("/proc/self/status", "VmRSS");
    return bytes == UINT64_MAX ? 0 : bytes;
}

uint64_t host_memory_peak(void)
{
    const uint64_t bytes = read_line("/proc/self/status", "VmHWM");
    return bytes == UINT64_MAX ? 0 : bytes;
}

void host_memory_peak_reset(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (file != NULL) {
        fputs("5\n", file);
        fclose(file);
    }
}

int32_t host_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return 1;
    }
    const int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

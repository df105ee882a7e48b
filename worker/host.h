/*
 * host.h - what this host can give a process
 *
 * Thread: any
 */
#pragma once

#include <stdint.h>

/* Bytes that can be allocated without driving the host, or the container, out of memory: the kernel's MemAvailable,
 * or what is left of the cgroup's limit when that is less; 0 when neither can be read. */
uint64_t host_memory_available(void);

/* Bytes of this process that are in memory; 0 when that cannot be read. */
uint64_t host_memory_resident(void);

/* The most they have been since the start or the last reset; 0 when that cannot be read. */
uint64_t host_memory_peak(void);
void host_memory_peak_reset(void); /* does nothing where the kernel does not let it */

/* Cores this process may be scheduled on, at least 1. */
int32_t host_cores(void);

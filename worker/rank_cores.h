/*
 * rank_cores.h - the threads and cores of a rank, by what the group knows of its host
 *
 * Thread: owner:the rank's main thread, before a stream pins it.
 */
#pragma once

#include "parallel/group.h"
#include "worker/host_cores.h"

/* n_threads: 0: cores / ranks that share them. pinning: enum host_pinning. */
void rank_cores_choose(const struct group *group, int32_t n_threads, int pinning,
                       struct host_cores *cores_out);

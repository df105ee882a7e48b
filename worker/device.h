/*
 * device.h - where a group computes
 *
 * What:      every rank looks for what was asked for, then all agree: --device auto takes CUDA where every rank finds a
 *            device, and the CPU elsewhere. Ranks of one host take its devices in turn; with more ranks than devices
 *            some share one.
 * Thread:    owner:the rank's main thread.
 * Collective: device_choose: yes; every rank returns the same status and the same backend.
 * Errors:    FAILED_PRECONDITION with the reason when CUDA was asked for and is not there.
 */
#pragma once

#include "base/log.h"
#include "kernels/backend.h"
#include "parallel/group.h"

struct device_choice {
    const struct backend *backend;
    int index; /* of the rank's device */
    int n_devices;
};

/* wanted: enum worker_device. One line of the log says what was chosen, and why not CUDA. */
MUST_USE status_t device_choose(struct group *group, int wanted, log_t log,
                                struct device_choice *choice_out);

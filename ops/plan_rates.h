/*
 * plan_rates.h - where `kvasir plan` gets the rates of a device: the table, a file, or this machine
 *
 * What:      --gpu names a row of the table. --measure starts kvasir-worker, under mpirun for several ranks, which times
 *            the model's ops here. --rates FILE is read, or with --measure written.
 * Thread:    owner:main
 * Errors:    INVALID_ARGUMENT for settings that contradict each other; UNAVAILABLE when the worker does not measure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/config.h"
#include "parallel/cost_rates.h"
#include "parallel/plan_options.h"

struct plan_rates_options {
    int gpu;        /* 0: none; enum cost_gpu + 1 */
    int all_reduce; /* enum cost_comm */
    bool measure;
    const char *file; /* --rates; NULL: none */
    int device;       /* of --measure, a choice of PLAN_RATES_DEVICES */
};

#define PLAN_RATES_DEVICES "cpu|cuda"

/* True when one of the settings asks for rates. */
bool plan_rates_wanted(const struct plan_rates_options *options);

MUST_USE status_t plan_rates_get(const struct plan_rates_options *options,
                                 const struct plan_options *plan, const char *model,
                                 struct cost_rates *rates_out);

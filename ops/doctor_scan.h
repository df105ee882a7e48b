/*
 * doctor_scan.h - every number of a checkpoint: is it one?
 *
 * What:      reads all float tensors in pieces and counts what is NaN or infinite.
 * Thread:    owner:main
 * Errors:    those of reading; RESOURCE_EXHAUSTED without memory for a piece.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"
#include "worker/checkpoint.h"

struct doctor_scan {
    uint64_t n_values, n_bad;
    const char *first_bad; /* tensor, borrowed from the checkpoint; NULL: none */
};

MUST_USE status_t doctor_scan_run(struct checkpoint *checkpoint, struct doctor_scan *scan_out);

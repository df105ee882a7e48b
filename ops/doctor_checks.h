/*
 * doctor_checks.h - what `kvasir doctor` looks at
 *
 * What:      each check fills one finding: OK, WARN (works, but) or FAIL (will not work), the fact that was
 *            measured, and what to do about it.
 * Thread:    owner:main
 */
#pragma once

#include <stddef.h>

#include "base/config.h"

enum doctor_verdict { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

struct doctor_finding {
    const char *name;
    bool of_model; /* about the model directory, not the machine */
    int verdict;   /* enum doctor_verdict */
    char fact[512];
    char fix[256]; /* "" when there is nothing to do */
};

struct doctor_context {
    const char *model;  /* directory; NULL: checks of a model are left out */
    const char *listen; /* address a server would take */
};

/* Fills at most max findings and returns how many. */
size_t doctor_run(const struct doctor_context *context, struct doctor_finding *findings,
                  size_t max);

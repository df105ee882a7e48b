/*
 * doctor_checks.h - what `kvasir doctor` looks at on the machine
 *
 * Thread:    owner:main
 */
#pragma once

#include "ops/doctor_finding.h"

struct doctor_context {
    const char *listen; /* address a server would take */
};

void doctor_checks_run(const struct doctor_context *context, struct doctor_findings *list);

/*
 * doctor_finding.h - what one check of `kvasir doctor` found
 *
 * What:      OK, WARN (works, but) or FAIL (will not work), the fact that was measured, and what to do about it.
 * Ownership: values; a list has room for all checks there are.
 * Thread:    owner:main
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

enum doctor_subject { DOCTOR_MACHINE, DOCTOR_MODEL };

enum doctor_verdict { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

struct doctor_finding {
    const char *name; /* static */
    int about;        /* enum doctor_subject */
    int verdict;      /* enum doctor_verdict */
    char fact[STATUS_MSG_BYTES];
    char fix[256]; /* "" when there is nothing to do */
};

#define DOCTOR_MAX_FINDINGS 64

struct doctor_findings {
    struct doctor_finding items[DOCTOR_MAX_FINDINGS];
    size_t n;
};

void doctor_finding_set(struct doctor_finding *f, int verdict, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void doctor_finding_advise(struct doctor_finding *f, const char *fix);

/* A failure as a finding: its message is the fact, its remedy the fix. */
void doctor_finding_fail(struct doctor_finding *f, const status_t *s);

/* A new finding at the end of the list. */
struct doctor_finding *doctor_finding_add(struct doctor_findings *list, const char *name,
                                          int about);

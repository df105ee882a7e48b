#include "ops/doctor_finding.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void doctor_finding_set(struct doctor_finding *f, int verdict, const char *fmt, ...)
{
    va_list args;
    f->verdict = verdict;
    va_start(args, fmt);
    vsnprintf(f->fact, sizeof f->fact, fmt, args);
    va_end(args);
}

void doctor_finding_advise(struct doctor_finding *f, const char *fix)
{
    snprintf(f->fix, sizeof f->fix, "%s", fix);
}

void doctor_finding_fail(struct doctor_finding *f, const status_t *s)
{
    doctor_finding_set(f, DOCTOR_FAIL, "%s", s->msg);
    char *fix = strstr(f->fact, STATUS_FIX);
    if (fix != NULL) {
        doctor_finding_advise(f, fix + strlen(STATUS_FIX));
        *fix = '\0';
    }
}

struct doctor_finding *doctor_finding_add(struct doctor_findings *list, const char *name, int about)
{
    assert(list->n < DOCTOR_MAX_FINDINGS);
    struct doctor_finding *f = &list->items[list->n++];
    *f = (struct doctor_finding){.name = name, .about = about};
    return f;
}

/*
 * status.h - the result of every fallible function, by value
 *
 * What:      a code and one line of text. Codes equal gRPC's, so that a status crosses MPI, gRPC and the
 *            process boundary unchanged. The text is lowercase, one line, and carries the measured fact
 *            ("need 40 blocks, 12 free"). A known remedy follows the text after STATUS_FIX.
 * Ownership: nothing to free.
 * Thread:    any
 * Errors:    say what happened once, where it happened; add context with status_wrapf while it travels;
 *            log or print it where it is handled.
 */
#pragma once

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum status_code {
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,
    STATUS_UNKNOWN = 2,
    STATUS_INVALID_ARGUMENT =
        3, /* the caller's mistake, whatever the state of the system: exit 64 */
    STATUS_DEADLINE_EXCEEDED = 4,   /* exit 75 */
    STATUS_NOT_FOUND = 5,           /* exit 65 */
    STATUS_ALREADY_EXISTS = 6,      /* exit 69 */
    STATUS_PERMISSION_DENIED = 7,   /* exit 77 */
    STATUS_RESOURCE_EXHAUSTED = 8,  /* full for now, try again later: exit 75 */
    STATUS_FAILED_PRECONDITION = 9, /* configuration that cannot work here: exit 78 */
    STATUS_ABORTED = 10,            /* exit 75 */
    STATUS_OUT_OF_RANGE = 11,       /* exit 64 */
    STATUS_UNIMPLEMENTED = 12,      /* exit 69 */
    STATUS_INTERNAL = 13,           /* our bug: exit 70 */
    STATUS_UNAVAILABLE = 14,        /* exit 69 */
    STATUS_DATA_LOSS = 15,          /* bad model directory or bad data: exit 65 */
    STATUS_UNAUTHENTICATED = 16,    /* exit 77 */
};

#define STATUS_MSG_BYTES 508

/* Separates what happened from what to do about it inside a message. */
#define STATUS_FIX "; fix: "

typedef struct status {
    int code;                   /* enum status_code; int: fixed size on the wire */
    char msg[STATUS_MSG_BYTES]; /* NUL-terminated; "" on success */
} status_t;

#define MUST_USE __attribute__((warn_unused_result))

/* Writes two fields only: zeroing the whole value costs ten times as much on the success path. */
static inline status_t status_ok(void)
{
    status_t s;
    s.code = STATUS_OK;
    s.msg[0] = '\0';
    return s;
}

static inline bool status_is_ok(const status_t *s)
{
    return s->code == STATUS_OK;
}

/* A new failure. Text that does not fit is cut at a character boundary and ends in "...". */
status_t status_errorf(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3), cold));

#if defined(__clang_analyzer__) && !defined(STATUS_DEFINE)
/* The analyzer cannot see into status.c; without this it takes a failure for a possible success. */
#    define status_errorf(failure, ...) \
        ((void)snprintf(NULL, 0, __VA_ARGS__), (status_t){.code = (failure)})
#endif

/* Puts "context: " in front of the message of a failure; returns an OK status unchanged. */
status_t status_wrapf(status_t s, const char *fmt, ...) __attribute__((format(printf, 2, 3), cold));

/* "INVALID_ARGUMENT" and so on; "CODE_99" is not made up: unknown codes give "UNKNOWN". */
const char *status_code_name(int code);

/* The sysexits(3) code a process ends with when this status ends it; see the enum. */
int status_exit_code(const status_t *s);

/* Prints `error: what` and, when the message has one, `  fix: remedy` on a line of its own. */
void status_print(FILE *out, const status_t *s);

/* Returns a failure to the caller. Only before the function owns anything. */
#define TRY(expr)                            \
    do {                                     \
        status_t try_status_ = (expr);       \
        if (try_status_.code != STATUS_OK) { \
            return try_status_;              \
        }                                    \
    } while (0)

/* Keeps the failure in `s` and leaves by `label`, which undoes what was acquired so far. */
#define TRY_GOTO(s, expr, label)     \
    do {                             \
        (s) = (expr);                \
        if ((s).code != STATUS_OK) { \
            goto label;              \
        }                            \
    } while (0)

#ifdef __cplusplus
}
#endif

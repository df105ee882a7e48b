#define STATUS_DEFINE // the analyzer reads the real functions here
#include "base/status.h"

#include <stdio.h>
#include <string.h>

// ---- text that fits ----

/* Where text of at most `limit` bytes may be cut without splitting a UTF-8 character. */
static size_t cut_at_character(const char *text, size_t limit)
{
    while (limit > 0 && ((unsigned char)text[limit] & 0xC0u) == 0x80u) {
        limit--;
    }
    return limit;
}

/* Puts text into msg; what does not fit is replaced by "...". */
static void set_message(char msg[STATUS_MSG_BYTES], const char *text, size_t size)
{
    static const char ellipsis[] = "...";
    if (size < STATUS_MSG_BYTES) {
        memcpy(msg, text, size);
        msg[size] = '\0';
        return;
    }
    const size_t kept = cut_at_character(text, STATUS_MSG_BYTES - sizeof ellipsis);
    memcpy(msg, text, kept);
    memcpy(msg + kept, ellipsis, sizeof ellipsis);
}

/* A message is one line, whatever a file name or a peer put into it. */
static void flatten(char *msg)
{
    for (char *c = msg; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7F) {
            *c = ' ';
        }
    }
}

// ---- making ----

status_t status_errorf(int code, const char *fmt, ...)
{
    char text[2 * STATUS_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);

    status_t s;
    s.code = code;
    set_message(s.msg, text, n < 0 ? 0 : strlen(text));
    flatten(s.msg);
    return s;
}

status_t status_wrapf(status_t s, const char *fmt, ...)
{
    if (s.code == STATUS_OK) {
        return s;
    }
    char text[3 * STATUS_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(text, (size_t)2 * STATUS_MSG_BYTES, fmt, args);
    va_end(args);

    const size_t context = n < 0 ? 0 : strlen(text);
    snprintf(text + context, sizeof text - context, "%s%s", context > 0 ? ": " : "", s.msg);
    set_message(s.msg, text, strlen(text));
    flatten(s.msg);
    return s;
}

// ---- showing ----

static const char *const code_names[] = {
    [STATUS_OK] = "OK",
    [STATUS_CANCELLED] = "CANCELLED",
    [STATUS_UNKNOWN] = "UNKNOWN",
    [STATUS_INVALID_ARGUMENT] = "INVALID_ARGUMENT",
    [STATUS_DEADLINE_EXCEEDED] = "DEADLINE_EXCEEDED",
    [STATUS_NOT_FOUND] = "NOT_FOUND",
    [STATUS_ALREADY_EXISTS] = "ALREADY_EXISTS",
    [STATUS_PERMISSION_DENIED] = "PERMISSION_DENIED",
    [STATUS_RESOURCE_EXHAUSTED] = "RESOURCE_EXHAUSTED",
    [STATUS_FAILED_PRECONDITION] = "FAILED_PRECONDITION",
    [STATUS_ABORTED] = "ABORTED",
    [STATUS_OUT_OF_RANGE] = "OUT_OF_RANGE",
    [STATUS_UNIMPLEMENTED] = "UNIMPLEMENTED",
    [STATUS_INTERNAL] = "INTERNAL",
    [STATUS_UNAVAILABLE] = "UNAVAILABLE",
    [STATUS_DATA_LOSS] = "DATA_LOSS",
    [STATUS_UNAUTHENTICATED] = "UNAUTHENTICATED",
};

#define N_CODES ((int)(sizeof code_names / sizeof code_names[0]))

const char *status_code_name(int code)
{
    return code >= 0 && code < N_CODES ? code_names[code] : code_names[STATUS_UNKNOWN];
}

/* sysexits(3): 64 usage, 65 data, 69 unavailable, 70 our bug, 75 try again, 77 permission, 78 configuration. */
static const int exit_codes[] = {
    [STATUS_OK] = 0,
    [STATUS_CANCELLED] = 75,
    [STATUS_UNKNOWN] = 70,
    [STATUS_INVALID_ARGUMENT] = 64,
    [STATUS_DEADLINE_EXCEEDED] = 75,
    [STATUS_NOT_FOUND] = 65,
    [STATUS_ALREADY_EXISTS] = 69,
    [STATUS_PERMISSION_DENIED] = 77,
    [STATUS_RESOURCE_EXHAUSTED] = 75,
    [STATUS_FAILED_PRECONDITION] = 78,
    [STATUS_ABORTED] = 75,
    [STATUS_OUT_OF_RANGE] = 64,
    [STATUS_UNIMPLEMENTED] = 69,
    [STATUS_INTERNAL] = 70,
    [STATUS_UNAVAILABLE] = 69,
    [STATUS_DATA_LOSS] = 65,
    [STATUS_UNAUTHENTICATED] = 77,
};

_Static_assert(sizeof exit_codes / sizeof exit_codes[0] == sizeof code_names / sizeof code_names[0],
               "one exit code for each status code");

int status_exit_code(const status_t *s)
{
    return exit_codes[s->code >= 0 && s->code < N_CODES ? s->code : STATUS_UNKNOWN];
}

void status_print(FILE *out, const status_t *s)
{
    const char *fix = strstr(s->msg, STATUS_FIX);
    if (fix == NULL) {
        fprintf(out, "error: %s\n", s->msg);
        return;
    }
    fprintf(out, "error: %.*s\n  fix: %s\n", (int)(fix - s->msg), s->msg, fix + strlen(STATUS_FIX));
}

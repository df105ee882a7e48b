#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 4096 /* PIPE_BUF: one write of it to a pipe is not torn */

static const char *const level_names[] = {
    [LOG_ERROR] = "error", [LOG_WARN] = "warn",   [LOG_INFO] = "info",
    [LOG_DEBUG] = "debug", [LOG_TRACE] = "trace",
};

#define N_LEVELS ((int)(sizeof level_names / sizeof level_names[0]))

status_t log_level_parse(const char *text, int *level_out)
{
    for (int i = 0; i < N_LEVELS; i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *level_out = i;
            return status_ok();
        }
    }
    return status_errorf(STATUS_INVALID_ARGUMENT,
                         "log level '%s' is none of error, warn, info, debug, trace", text);
}

/* What stands for one byte inside quotes: itself, an escape, or '?' for other control characters. */
static const char *escape(char c)
{
    switch (c) {
    case '"':
        return "\\\"";
    case '\\':
        return "\\\\";
    case '\n':
        return "\\n";
    case '\t':
        return "\\t";
    default:
        return (unsigned char)c < 0x20 || c == 0x7F ? "?" : NULL;
    }
}

const char *log_quote(const char *text, char *buf, size_t buf_bytes)
{
    if (buf_bytes < 3) { // no room for the two quotes
        if (buf_bytes > 0) {
            buf[0] = '\0';
        }
        return buf;
    }
    size_t at = 0;
    buf[at++] = '"';
    for (const char *c = text; *c != '\0'; c++) {
        const char *escaped = escape(*c);
        const size_t n = escaped != NULL ? strlen(escaped) : 1;
        if (at + n + 2 > buf_bytes) {
            // A character is not split: continuation bytes go before their lead byte does.
            while (at > 1 && ((unsigned char)*c & 0xC0u) == 0x80u) {
                c--;
                at--;
            }
            break;
        }
        memcpy(buf + at, escaped != NULL ? escaped : c, n);
        at += n;
    }
    buf[at++] = '"';
    buf[at] = '\0';
    return buf;
}

/* snprintf into what is left of the line; cut text leaves the line full but valid. */
static size_t put(char *line, size_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static size_t put_v(char *line, size_t at, const char *fmt, va_list args)
{
    // The last byte is kept for the newline.
    const size_t room = LINE_BYTES - 1 - at;
    const int n = vsnprintf(line + at, room, fmt, args);
    if (n < 0) {
        return at;
    }
    return at + ((size_t)n < room ? (size_t)n : room - 1);
}

static size_t put(char *line, size_t at, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    at = put_v(line, at, fmt, args);
    va_end(args);
    return at;
}

static size_t put_header(char *line, const log_t *log, int level, const char *event)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm utc;
    gmtime_r(&now.tv_sec, &utc);
    char date[32];
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &utc);

    size_t at = put(line, 0, "ts=%s.%03ldZ level=%s module=%s", date, now.tv_nsec / 1000000,
                    level_names[level], log->module != NULL ? log->module : "-");
    if (log->rank >= 0) {
        at = put(line, at, " rank=%d", log->rank);
    }
    char quoted[256];
    return put(line, at, " event=%s", log_quote(event, quoted, sizeof quoted));
}

static bool is_dropped(const log_t *log, int level)
{
    return log->fd < 0 || level > log->level || level < 0 || level >= N_LEVELS;
}

static void emit(const log_t *log, char *line, size_t size)
{
    // A value that was not quoted must not be able to forge a second line.
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)line[i] < 0x20) {
            line[i] = ' ';
        }
    }
    line[size] = '\n';
    const ssize_t written = write(log->fd, line, size + 1);
    (void)written; // a lost line is lost
}

void log_write(const log_t *log, int level, const char *event, const char *fmt, ...)
{
    if (is_dropped(log, level)) {
        return;
    }
    char line[LINE_BYTES];
    size_t at = put_header(line, log, level, event);
    if (fmt[0] != '\0') {
        at = put(line, at, " ");
        va_list args;
        va_start(args, fmt);
        at = put_v(line, at, fmt, args);
        va_end(args);
    }
    emit(log, line, at);
}

void log_status(const log_t *log, int level, const char *what, const status_t *s)
{
    if (is_dropped(log, level)) {
        return;
    }
    char quoted[2 * STATUS_MSG_BYTES];
    log_write(log, level, what, "code=%s err=%s", status_code_name(s->code),
              log_quote(s->msg, quoted, sizeof quoted));
}

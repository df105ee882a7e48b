/*
 * log.h - logfmt lines, one event a line
 *
 * What:      ts=2026-01-02T03:04:05.678Z level=info module=router rank=0 event="group ready" group=1 ...
 *            Levels by volume: error (lost work), warn (will need a human), info (per object life),
 *            debug (per request), trace (per step). Prompts and generated text are never logged.
 * Ownership: log_t is a plain value; copies are independent. The descriptor stays the caller's.
 * Thread:    any. A line is one write(2).
 * Errors:    none; a line that cannot be written is lost. Values with spaces, quotes or control
 *            characters must be passed through log_quote.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

typedef struct log {
    int fd;             /* where lines go; -1 drops them */
    int level;          /* enum log_level; lines above it are dropped before formatting */
    int rank;           /* -1: no rank field */
    const char *module; /* static text */
} log_t;

/* The same log under another module name. */
static inline log_t log_module(const log_t *parent, const char *module)
{
    log_t log = *parent;
    log.module = module;
    return log;
}

/* "error" .. "trace"; INVALID_ARGUMENT names the choices. */
MUST_USE status_t log_level_parse(const char *text, int *level_out);

/* Writes text as a quoted logfmt value into buf (always NUL-terminated, cut to fit) and returns buf. */
const char *log_quote(const char *text, char *buf, size_t buf_bytes);

/* `event` is a fixed phrase; `fmt` makes further key=value pairs ("" for none). */
void log_write(const log_t *log, int level, const char *event, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* One line with code=... err="..." for a failure that is handled here; `what` is the event. */
void log_status(const log_t *log, int level, const char *what, const status_t *s);

/*
 * file.h - whole small files, read with a limit
 *
 * Errors: NOT_FOUND (no such file), PERMISSION_DENIED, DATA_LOSS (a directory, FIFO or device; larger than
 *         the limit; shrank while it was read). Messages carry the path.
 * Thread: any
 */
#pragma once

#include "base/bytes.h"

/* Appends the file's content to *out (initialised, empty). Refuses anything but a regular file. */
MUST_USE status_t file_read(const char *path, size_t max_bytes, struct bytes *out);

/* dir + "/" + name into buf; INVALID_ARGUMENT when it does not fit. */
MUST_USE status_t file_join(char *buf, size_t buf_bytes, const char *dir, const char *name);

/*
 * open_beneath.h - opens a file that a model directory names, and only there
 *
 * What:      names in a model's index are input from elsewhere: they may not lead out of the directory, by "..", by an
 *            absolute path or by a symbolic link. The one link out that is followed is that of a Hugging Face cache,
 *            snapshots/<commit>/x -> ../../blobs/<hash>.
 * Thread:    any
 * Errors:    NOT_FOUND, PERMISSION_DENIED; DATA_LOSS for a name that leads out and for anything but a regular file.
 */
#pragma once

#include <stdint.h>

#include "base/status.h"

/* dir/name for reading; name has no slash. The descriptor is the caller's. */
MUST_USE status_t open_beneath(const char *dir, const char *name, int *fd_out,
                               uint64_t *file_bytes_out);

/*
 * program.h - where this program lies, and those it starts
 *
 * What:      all programs of an installation are in one directory: PREFIX/bin where KVASIR_PREFIX is set, which is what
 *            the launcher of a relocatable bundle does (it runs programs by way of a loader, so that the kernel
 *            knows the loader's path alone), else the directory of /proc/self/exe.
 * Thread:    any; nothing else may change the environment meanwhile.
 * Errors:    UNAVAILABLE without /proc, INVALID_ARGUMENT when the path does not fit.
 */
#pragma once

#include <stddef.h>

#include "base/status.h"

/* The directory, without a slash at its end. */
MUST_USE status_t program_dir(char *buf, size_t buf_bytes);

/* The path of a program beside this one; whether it is there is not looked at. */
MUST_USE status_t program_path(const char *name, char *buf, size_t buf_bytes);

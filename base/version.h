/*
 * version.h - which build this is
 *
 * What:   library `version`, linked by every executable of the project. It is apart from `base` so that a
 *         commit relinks the executables and nothing else.
 * Thread: any
 */
#pragma once

/* "0.1.0" */
const char *version_number(void);

/* "0.1.0 (3f2c9ab)", with -dirty after uncommitted changes; no hash outside a git checkout. */
const char *version_string(void);

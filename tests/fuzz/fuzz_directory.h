/*
 * fuzz_directory.h - a model directory that a fuzz target changes one file of
 *
 * What:      made at the first call, removed at exit: config.json, tokenizer.json and two shards that are right.
 * Thread:    the target's
 * Errors:    ends the process: the search means nothing without it.
 */
#pragma once

#include <stddef.h>

/* Its path. */
const char *fuzz_directory(void);

/* Writes, or overwrites, one of its files. */
void fuzz_directory_write(const char *name, const void *data, size_t size);
void fuzz_directory_remove(const char *name);

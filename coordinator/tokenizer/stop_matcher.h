/*
 * stop_matcher.h - stop strings in a stream of text, across token boundaries
 *
 * What:      holds back the longest suffix of the text so far that could still become a stop string and lets the
 *            rest through. Aho-Corasick over the few strings of a request: linear in the text.
 * Ownership: copies the strings.
 * Thread:    one owner at a time.
 */
#pragma once

#include <stddef.h>

#include "base/bytes.h"
#include "base/status.h"

struct stop_matcher;

/* n may be 0. Strings are not empty. */
MUST_USE status_t stop_matcher_new(const char *const *strings, size_t n, struct stop_matcher **out);
void stop_matcher_free(struct stop_matcher *m); /* accepts NULL */

/*
 * Takes the next piece of text; appends to *out what can be shown for certain. Returns in *hit_out the index of the
 * stop string that was completed first, or -1. After a hit, text before the stop string has been appended, and the
 * stop string itself too when `include` is set; what follows it is dropped.
 */
MUST_USE status_t stop_matcher_push(struct stop_matcher *m, const char *text, size_t size,
                                    bool include, struct bytes *out, int *hit_out);

/* Appends what was held back: no stop string came of it. */
MUST_USE status_t stop_matcher_finish(struct stop_matcher *m, struct bytes *out);

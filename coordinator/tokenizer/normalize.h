/*
 * normalize.h - what happens to text before it is split: a prefix, a replacement, NFC
 *
 * What:      a list of steps as tokenizer.json's normalizer names them, applied in order.
 * Ownership: struct normalizer owns its texts.
 * Thread:    init, then any.
 * Errors:    RESOURCE_EXHAUSTED when the result would be much larger than the text.
 * Invariant: time and memory are linear in the text, n log n where combining marks must be reordered.
 */
#pragma once

#include "base/bytes.h"
#include "base/status.h"

enum normalize_kind {
    NORMALIZE_PREPEND, /* `content` in front of text that is not empty */
    NORMALIZE_REPLACE, /* every `pattern` by `content` */
    NORMALIZE_NFC,
};

#define NORMALIZE_MAX_STEPS 8
#define NORMALIZE_MAX_TEXT  16

struct normalize_step {
    int kind;                         /* enum normalize_kind */
    char pattern[NORMALIZE_MAX_TEXT]; /* NUL-terminated, not empty for REPLACE */
    char content[NORMALIZE_MAX_TEXT]; /* NUL-terminated */
};

struct normalizer {
    struct normalize_step steps[NORMALIZE_MAX_STEPS];
    size_t n_steps;
};

/* Sets *out (initialised) to the normal form of well-formed text. `spare` is a second buffer to work in. */
MUST_USE status_t normalize_text(const struct normalizer *normalizer, const void *text, size_t size,
                                 struct bytes *out, struct bytes *spare);

/* Upper bound of the size of the result, for the maximum of the two buffers. */
size_t normalize_max_bytes(const struct normalizer *normalizer, size_t size);

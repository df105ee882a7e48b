#include "coordinator/tokenizer/normalize.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "coordinator/tokenizer/nfc.h"

static bool pattern_at(const struct normalize_step *step, size_t pattern_size, const uint8_t *text,
                       size_t size)
{
    return text[0] == (uint8_t)step->pattern[0] && size >= pattern_size &&
           memcmp(text, step->pattern, pattern_size) == 0;
}

static status_t replace_all(const struct normalize_step *step, const uint8_t *text, size_t size,
                            struct bytes *out)
{
    const size_t pattern_size = strlen(step->pattern);
    const size_t content_size = strlen(step->content);
    size_t n_hits = 0;
    for (size_t at = 0; at < size;) {
        const bool hit = pattern_at(step, pattern_size, text + at, size - at);
        n_hits += hit;
        at += hit ? pattern_size : 1;
    }
    const size_t size_after = size - n_hits * pattern_size + n_hits * content_size;
    uint8_t *to;
    TRY(bytes_reserve(out, size_after, &to));
    for (size_t at = 0; at < size;) {
        if (pattern_at(step, pattern_size, text + at, size - at)) {
            memcpy(to, step->content, content_size);
            to += content_size;
            at += pattern_size;
        } else {
            *to++ = text[at++];
        }
    }
    out->size += size_after;
    return status_ok();
}

static status_t apply(const struct normalize_step *step, const uint8_t *text, size_t size,
                      struct bytes *out)
{
    switch (step->kind) {
    case NORMALIZE_PREPEND:
        if (size > 0) {
            TRY(bytes_append_str(out, step->content));
        }
        return bytes_append(out, text, size);
    case NORMALIZE_REPLACE:
        return replace_all(step, text, size, out);
    default:
        return nfc_append(text, size, out);
    }
}

size_t normalize_max_bytes(const struct normalizer *normalizer, size_t size)
{
    size_t bound = size;
    for (size_t i = 0; i < normalizer->n_steps; i++) {
        const struct normalize_step *step = &normalizer->steps[i];
        const size_t factor = step->kind == NORMALIZE_PREPEND   ? 1
                              : step->kind == NORMALIZE_REPLACE ? strlen(step->content) + 1
                                                                : NFC_MAX_GROWTH;
        if (bound > (SIZE_MAX - NORMALIZE_MAX_TEXT) / factor) {
            return SIZE_MAX;
        }
        bound = bound * factor + NORMALIZE_MAX_TEXT;
    }
    return bound;
}

status_t normalize_text(const struct normalizer *normalizer, const void *text, size_t size,
                        struct bytes *out, struct bytes *spare)
{
    bytes_clear(out);
    if (normalizer->n_steps == 0) {
        return bytes_append(out, text, size);
    }
    // Steps alternate between the buffers, so that the last one writes to `out`.
    const uint8_t *from = text;
    for (size_t i = 0; i < normalizer->n_steps; i++) {
        struct bytes *to = (normalizer->n_steps - i) % 2 == 1 ? out : spare;
        bytes_clear(to);
        TRY(apply(&normalizer->steps[i], from, size, to));
        from = to->data;
        size = to->size;
    }
    return status_ok();
}

#include "base/utf8.h"

/* The bytes a lead byte asks for: how many in all, and the bounds of the second one (table 3-7). */
struct lead {
    size_t length; /* 0: not a lead byte */
    uint8_t second_min, second_max;
};

static struct lead classify(uint8_t byte)
{
    if (byte < 0x80) {
        return (struct lead){.length = 1};
    }
    if (byte >= 0xC2 && byte <= 0xDF) {
        return (struct lead){.length = 2, .second_min = 0x80, .second_max = 0xBF};
    }
    if (byte >= 0xE0 && byte <= 0xEF) {
        // E0: no overlong forms; ED: no surrogates.
        return (struct lead){.length = 3,
                             .second_min = byte == 0xE0 ? 0xA0 : 0x80,
                             .second_max = byte == 0xED ? 0x9F : 0xBF};
    }
    if (byte >= 0xF0 && byte <= 0xF4) {
        // F0: no overlong forms; F4: nothing above U+10FFFF.
        return (struct lead){.length = 4,
                             .second_min = byte == 0xF0 ? 0x90 : 0x80,
                             .second_max = byte == 0xF4 ? 0x8F : 0xBF};
    }
    return (struct lead){.length = 0};
}

/* How many of the n bytes after a lead byte fit it, at most as many as it asks for. */
static size_t matching_tail(struct lead lead, const uint8_t *tail, size_t n)
{
    size_t matched = 0;
    while (matched < n && matched + 1 < lead.length) {
        const uint8_t min = matched == 0 ? lead.second_min : 0x80;
        const uint8_t max = matched == 0 ? lead.second_max : 0xBF;
        if (tail[matched] < min || tail[matched] > max) {
            break;
        }
        matched++;
    }
    return matched;
}

size_t utf8_valid_prefix(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        if (text[at] < 0x80) {
            at++; // most text is ASCII
            continue;
        }
        const struct lead lead = classify(text[at]);
        if (lead.length == 0 ||
            matching_tail(lead, text + at + 1, size - at - 1) + 1 != lead.length) {
            break;
        }
        at += lead.length;
    }
    return at;
}

size_t utf8_incomplete_suffix(const uint8_t *text, size_t size)
{
    for (size_t n = 1; n <= 3 && n <= size; n++) {
        const uint8_t *start = text + size - n;
        const struct lead lead = classify(*start);
        if (lead.length == 0) {
            continue; // perhaps a continuation byte of a lead further left
        }
        const bool unfinished = n < lead.length && matching_tail(lead, start + 1, n - 1) == n - 1;
        return unfinished ? n : 0;
    }
    return 0;
}

uint32_t utf8_decode(const uint8_t *text, size_t *length_out)
{
    const size_t length = classify(text[0]).length;
    // The lead byte keeps 7, 5, 4 or 3 bits.
    uint32_t code_point = length == 1 ? text[0] : text[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        code_point = code_point << 6 | (text[i] & 0x3Fu);
    }
    *length_out = length;
    return code_point;
}

size_t utf8_encode(uint32_t code_point, uint8_t out[4])
{
    if (code_point < 0x80) {
        out[0] = (uint8_t)code_point;
        return 1;
    }
    const size_t length = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--) {
        out[i] = (uint8_t)(0x80u | (code_point & 0x3Fu));
        code_point >>= 6;
    }
    out[0] = (uint8_t)((0xF00u >> length & 0xF0u) | code_point);
    return length;
}

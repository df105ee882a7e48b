/*
 * unicode_class.h - what the split patterns ask about a character: letter, number, white space or neither
 *
 * What:   \p{L}, \p{N} by utf8proc's categories, \s by the property White_Space (25 code points). Every code point
 *         is in exactly one class.
 * Thread: any
 * Source: Unicode's PropList.txt for White_Space; utf8proc_category for the rest.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/utf8.h"

enum unicode_class { UNICODE_OTHER, UNICODE_LETTER, UNICODE_NUMBER, UNICODE_SPACE };

/* The classes of U+0000..U+007F, most of all text. */
extern const uint8_t unicode_class_ascii[128];

int unicode_class_of(uint32_t code_point);

/* Class of the first character of well-formed, non-empty text, and its length in bytes. */
static inline int unicode_class_next(const uint8_t *text, size_t *length_out)
{
    if (text[0] < 0x80) {
        *length_out = 1;
        return unicode_class_ascii[text[0]];
    }
    return unicode_class_of(utf8_decode(text, length_out));
}

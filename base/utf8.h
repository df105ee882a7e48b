/*
 * utf8.h - validity and boundaries of UTF-8 text
 *
 * Thread: any
 * Source: Unicode 15, table 3-7 (well-formed byte sequences): no overlong forms, no surrogates, at most U+10FFFF.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Offset of the first byte that is not part of a well-formed sequence; size when all are. */
size_t utf8_valid_prefix(const uint8_t *text, size_t size);

static inline bool utf8_is_valid(const uint8_t *text, size_t size)
{
    return utf8_valid_prefix(text, size) == size;
}

/* Bytes at the end of text that begin a sequence which later bytes could still complete: 0..3. */
size_t utf8_incomplete_suffix(const uint8_t *text, size_t size);

/* Decodes one code point of well-formed text; *length_out is 1..4. */
uint32_t utf8_decode(const uint8_t *text, size_t *length_out);

/* Writes 1..4 bytes and returns how many. */
size_t utf8_encode(uint32_t code_point, uint8_t out[4]);

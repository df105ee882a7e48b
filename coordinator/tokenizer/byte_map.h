/*
 * byte_map.h - GPT-2's spelling of bytes as printable characters
 *
 * What:   byte-level vocabularies write each byte as one character: printable Latin-1 as itself, the other 68 bytes,
 *         in order, as U+0100 and on. So "Ġ" (U+0120) is the space.
 * Thread: any
 * Source: Radford et al. 2019 (GPT-2); the byte <-> unicode table of its published encoder.
 */
#pragma once

#include <stdint.h>

static inline uint32_t byte_map_code_point(uint8_t byte)
{
    if (byte <= 0x20) {
        return 0x100u + byte; // 33 of them
    }
    if (byte >= 0x7F && byte <= 0xA0) {
        return 0x121u + byte - 0x7Fu; // 34 of them
    }
    return byte == 0xAD ? 0x143u : byte;
}

/* -1: this character stands for no byte. */
static inline int byte_map_byte(uint32_t code_point)
{
    if (code_point >= 0x100 && code_point <= 0x120) {
        return (int)(code_point - 0x100);
    }
    if (code_point >= 0x121 && code_point <= 0x142) {
        return (int)(code_point - 0x121 + 0x7F);
    }
    if (code_point == 0x143) {
        return 0xAD;
    }
    const int is_own = (code_point >= 0x21 && code_point <= 0x7E) ||
                       (code_point >= 0xA1 && code_point <= 0xFF && code_point != 0xAD);
    return is_own ? (int)code_point : -1;
}

#include "coordinator/tokenizer/unicode_class.h"

#include <utf8proc.h>

#define L UNICODE_LETTER
#define N UNICODE_NUMBER
#define S UNICODE_SPACE

const uint8_t unicode_class_ascii[128] = {
    ['\t'] = S, ['\n'] = S, ['\v'] = S, ['\f'] = S, ['\r'] = S, [' '] = S, //
    ['0'] = N,  ['1'] = N,  ['2'] = N,  ['3'] = N,  ['4'] = N,             //
    ['5'] = N,  ['6'] = N,  ['7'] = N,  ['8'] = N,  ['9'] = N,             //
    ['A'] = L,  ['B'] = L,  ['C'] = L,  ['D'] = L,  ['E'] = L,  ['F'] = L, //
    ['G'] = L,  ['H'] = L,  ['I'] = L,  ['J'] = L,  ['K'] = L,  ['L'] = L, //
    ['M'] = L,  ['N'] = L,  ['O'] = L,  ['P'] = L,  ['Q'] = L,  ['R'] = L, //
    ['S'] = L,  ['T'] = L,  ['U'] = L,  ['V'] = L,  ['W'] = L,  ['X'] = L, //
    ['Y'] = L,  ['Z'] = L,                                                 //
    ['a'] = L,  ['b'] = L,  ['c'] = L,  ['d'] = L,  ['e'] = L,  ['f'] = L, //
    ['g'] = L,  ['h'] = L,  ['i'] = L,  ['j'] = L,  ['k'] = L,  ['l'] = L, //
    ['m'] = L,  ['n'] = L,  ['o'] = L,  ['p'] = L,  ['q'] = L,  ['r'] = L, //
    ['s'] = L,  ['t'] = L,  ['u'] = L,  ['v'] = L,  ['w'] = L,  ['x'] = L, //
    ['y'] = L,  ['z'] = L,
};

static int is_space(uint32_t c)
{
    if (c <= 0x20) {
        return c == 0x20 || (c >= 0x09 && c <= 0x0D);
    }
    return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
           c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

int unicode_class_of(uint32_t code_point)
{
    if (is_space(code_point)) {
        return UNICODE_SPACE;
    }
    switch (utf8proc_category((utf8proc_int32_t)code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return UNICODE_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return UNICODE_NUMBER;
    default:
        return UNICODE_OTHER;
    }
}

#include "coordinator/tokenizer/split.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#include "coordinator/tokenizer/unicode_class.h"

// ---- runs ----

/* Where the run of characters of one class that includes position `at` ends. */
static size_t run_end(const uint8_t *text, size_t size, size_t at, int kind)
{
    while (at < size) {
        size_t length;
        if (unicode_class_next(text + at, &length) != kind) {
            break;
        }
        at += length;
    }
    return at;
}

struct space_run {
    size_t end;
    size_t last;           /* where its last character starts */
    size_t after_newlines; /* behind its last \r or \n, 0: none */
};

static struct space_run scan_spaces(const uint8_t *text, size_t size)
{
    struct space_run run = {0};
    while (run.end < size) {
        size_t length;
        if (unicode_class_next(text + run.end, &length) != UNICODE_SPACE) {
            break;
        }
        run.last = run.end;
        run.end += length;
        if (text[run.last] == '\n' || text[run.last] == '\r') {
            run.after_newlines = run.end;
        }
    }
    return run;
}

/* \s+(?!\S)|\s+ : all of the run at the end of the text, else all but its last character, which goes with the word. */
static size_t space_piece(const struct space_run *run, size_t size)
{
    return run->end == size || run->last == 0 ? run->end : run->last;
}

// ---- contractions ----

/* What follows an apostrophe: s t m d, re ve ll. Its bytes, 0: no contraction. */
static size_t contraction(const uint8_t *text, size_t size)
{
    if (size == 0) {
        return 0;
    }
    if (text[0] == 's' || text[0] == 't' || text[0] == 'm' || text[0] == 'd') {
        return 1;
    }
    if (size < 2) {
        return 0;
    }
    const bool two = (text[0] == 'r' && text[1] == 'e') || (text[0] == 'v' && text[1] == 'e') ||
                     (text[0] == 'l' && text[1] == 'l');
    return two ? 2 : 0;
}

static uint8_t ascii_lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c | 0x20) : c;
}

/* The same in any case. U+017F, the long s, folds to s. */
static size_t contraction_any_case(const uint8_t *text, size_t size)
{
    if (size >= 2 && text[0] == 0xC5 && text[1] == 0xBF) {
        return 2;
    }
    const uint8_t lower[2] = {size > 0 ? ascii_lower(text[0]) : 0,
                              size > 1 ? ascii_lower(text[1]) : 0};
    return contraction(lower, size < 2 ? size : 2);
}

// ---- patterns ----

static size_t gpt2_next(const uint8_t *text, size_t size)
{
    if (text[0] == '\'') {
        const size_t n = contraction(text + 1, size - 1);
        if (n > 0) {
            return 1 + n;
        }
    }
    // " ?" of the three runs: one U+0020 in front of what is no space.
    const size_t start = text[0] == ' ' && size > 1 ? 1 : 0;
    size_t length;
    const int kind = unicode_class_next(text + start, &length);
    if (kind != UNICODE_SPACE) {
        return run_end(text, size, start + length, kind);
    }
    const struct space_run run = scan_spaces(text, size);
    return space_piece(&run, size);
}

/* \p{N}{1,3} */
static size_t up_to_three_numbers(const uint8_t *text, size_t size)
{
    size_t at = 0;
    for (int n = 0; n < 3 && at < size; n++) {
        size_t length;
        if (unicode_class_next(text + at, &length) != UNICODE_NUMBER) {
            break;
        }
        at += length;
    }
    return at;
}

/* [^\s\p{L}\p{N}]+[\r\n]* from `start`, where the first character is known to fit. */
static size_t symbols_and_newlines(const uint8_t *text, size_t size, size_t start)
{
    size_t at = run_end(text, size, start, UNICODE_OTHER);
    while (at < size && (text[at] == '\r' || text[at] == '\n')) {
        at++;
    }
    return at;
}

/* [^\r\n\p{L}\p{N}]?\p{L}+ ; 0: does not match. */
static size_t letters(const uint8_t *text, size_t size, int kind, size_t length)
{
    if (kind == UNICODE_LETTER) {
        return run_end(text, size, length, UNICODE_LETTER);
    }
    if (kind == UNICODE_NUMBER || text[0] == '\r' || text[0] == '\n') {
        return 0;
    }
    const size_t end = run_end(text, size, length, UNICODE_LETTER);
    return end > length ? end : 0;
}

static size_t llama3_spaces(const uint8_t *text, size_t size)
{
    size_t length;
    if (text[0] == ' ' && size > 1 && unicode_class_next(text + 1, &length) == UNICODE_OTHER) {
        return symbols_and_newlines(text, size, 1);
    }
    const struct space_run run = scan_spaces(text, size);
    // \s*[\r\n]+ backs up to the last newline of the run.
    return run.after_newlines > 0 ? run.after_newlines : space_piece(&run, size);
}

static size_t llama3_next(const uint8_t *text, size_t size)
{
    if (text[0] == '\'') {
        const size_t n = contraction_any_case(text + 1, size - 1);
        if (n > 0) {
            return 1 + n;
        }
    }
    size_t length;
    const int kind = unicode_class_next(text, &length);
    const size_t word = letters(text, size, kind, length);
    if (word > 0) {
        return word;
    }
    switch (kind) {
    case UNICODE_NUMBER:
        return up_to_three_numbers(text, size);
    case UNICODE_SPACE:
        return llama3_spaces(text, size);
    default:
        return symbols_and_newlines(text, size, 0);
    }
}

static size_t not_numbers_end(const uint8_t *text, size_t size)
{
    size_t at = 0;
    while (at < size) {
        size_t length;
        if (unicode_class_next(text + at, &length) == UNICODE_NUMBER) {
            break;
        }
        at += length;
    }
    return at;
}

static size_t numbers_next(const uint8_t *text, size_t size, bool alone)
{
    size_t length;
    if (unicode_class_next(text, &length) != UNICODE_NUMBER) {
        return not_numbers_end(text, size);
    }
    return alone ? length : run_end(text, size, length, UNICODE_NUMBER);
}

// ---- table ----

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"

static const struct {
    const char *regex;
    int pattern;
} known[] = {
    {.regex = CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     .pattern = SPLIT_GPT2},
    {.regex = "(?i:" CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
              "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
     .pattern = SPLIT_LLAMA3},
};

int split_find(const char *regex)
{
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(regex, known[i].regex) == 0) {
            return known[i].pattern;
        }
    }
    return -1;
}

size_t split_next(int pattern, const uint8_t *text, size_t size)
{
    assert(size > 0);
    switch (pattern) {
    case SPLIT_GPT2:
        return gpt2_next(text, size);
    case SPLIT_LLAMA3:
        return llama3_next(text, size);
    case SPLIT_DIGITS:
        return numbers_next(text, size, true);
    default:
        return numbers_next(text, size, false);
    }
}

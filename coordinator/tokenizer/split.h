/*
 * split.h - the split patterns of the known tokenizers, matched without a regular expression engine
 *
 * What:   a pattern cuts text into pieces that merges never cross. Each is recognised by the exact text of its
 *         regular expression in tokenizer.json and matched by a scanner written for it.
 *
 *           SPLIT_GPT2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *           SPLIT_LLAMA3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}
 *                         | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *           SPLIT_DIGITS  every number alone, what lies between in one piece
 *           SPLIT_NUMBERS runs of numbers, what lies between in one piece
 *
 * Thread: any
 * Invariant: cutting a text of n bytes piece by piece looks at each byte at most three times.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum split_pattern { SPLIT_GPT2, SPLIT_LLAMA3, SPLIT_DIGITS, SPLIT_NUMBERS };

/* The pattern with this regular expression, -1 when it is not a known one. */
int split_find(const char *regex);

/* Bytes of the first piece of well-formed, non-empty text; its end counts as the end of all text. */
size_t split_next(int pattern, const uint8_t *text, size_t size);

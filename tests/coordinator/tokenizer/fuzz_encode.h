/*
 * fuzz_encode.h - what must hold of every tokenizer that loads, for the fuzz targets
 *
 * Thread: any
 * Errors: abort()
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/tokenizer/tokenizer.h"

/* Ends the program unless it holds. */
void fuzz_encode_require(bool holds);

/* Every valid text encodes, under all flags, and its ids decode in pieces as in one go. */
void fuzz_encode_check(const struct tokenizer *tokenizer, const uint8_t *text, size_t size);

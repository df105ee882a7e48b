/*
 * nfc.h - Unicode normalization form C in bounded time
 *
 * What:   canonical decomposition, canonical order of combining marks, canonical composition. utf8proc knows the
 *         characters; the marks are ordered here, because utf8proc's own ordering takes quadratic time on a long run
 *         of marks that somebody put into the wrong order.
 * Thread: any
 * Source: Unicode Standard Annex 15.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

/* The result has at most this many times the bytes of the text. */
#define NFC_MAX_GROWTH 3

/* Appends the normal form of well-formed text. */
MUST_USE status_t nfc_append(const uint8_t *text, size_t size, struct bytes *out);

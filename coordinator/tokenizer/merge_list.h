/*
 * merge_list.h - the merges of a vocabulary that lists none
 *
 * What:      SentencePiece and tiktoken files say in which order pieces come about, not from which two parts: any two
 *            neighbours merge that together are a piece. All these merges of a piece have the rank of the piece.
 * Ownership: the caller's; free() it.
 * Thread:    init
 * Errors:    DATA_LOSS beyond a number of merges that no published vocabulary comes near.
 */
#pragma once

#include "base/status.h"
#include "coordinator/tokenizer/bpe.h"

/* A piece with more bytes takes too long to cut in all ways. */
#define MERGE_LIST_MAX_PIECE_BYTES ((size_t)512)

/* ranks [pieces->n]: of each piece; BPE_NONE: no merge makes it. */
MUST_USE status_t merge_list_make(const struct vocab *pieces, const uint32_t *ranks,
                                  struct bpe_merge **merges_out, size_t *n_out);

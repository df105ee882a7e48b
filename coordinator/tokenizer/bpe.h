/*
 * bpe.h - byte pair encoding of one word
 *
 * What:      a word becomes symbols (bytes, or characters with byte fallback); then the neighbours with the lowest
 *            merge rank merge, leftmost first among equals, until no two neighbours can.
 *            A word is cut where no merge ever joins the two symbols, so that text without word boundaries
 *            (SentencePiece) is not one long word. Short words merge in place, long ones with a queue.
 * Layout:    merges: open addressing by the pair of ids, at most two thirds full.
 *            joins: the pairs of first symbols that some merge has at its boundary.
 * Ownership: struct bpe owns its tables and borrows the vocabulary. struct bpe_scratch belongs to one call.
 * Thread:    struct bpe: init, then any. Scratch: one owner at a time.
 * Invariant: time n log n, and linear in a run of one character; memory linear in the longest uncut word.
 * Source:    Sennrich et al. 2016, arXiv:1508.07909; the order of merges is that of Hugging Face tokenizers.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"
#include "coordinator/tokenizer/bpe_queue.h"
#include "coordinator/tokenizer/pair_set.h"
#include "coordinator/tokenizer/tokenizer.h"
#include "coordinator/tokenizer/vocab.h"

struct bpe_options {
    bool byte_level;    /* symbols are bytes, spelled as byte_map.h says */
    bool byte_fallback; /* a character without token becomes <0xNN> tokens */
    bool fuse_unk;
    bool ignore_merges; /* a word that is a token as a whole is not merged */
    int32_t unk_id;     /* for a symbol without token; -1: such symbols are dropped */
};

struct bpe_merge {
    uint32_t left, right, id; /* left + right = id */
    uint32_t rank;            /* lower ranks merge first; of equal ranks, the leftmost pair */
};

struct bpe {
    struct bpe_options options;
    const struct vocab *vocab;
    struct bpe_merge *merges; /* [n_slots]; left == BPE_NONE: empty */
    size_t n_slots;           /* a power of two */
    uint64_t *filter;         /* one bit per pair: 0 says that no merge is of it */
    size_t n_filter_bits;     /* a power of two */
    size_t n_merges;
    size_t n_ranks; /* largest rank + 1 */
    uint32_t *
        result; /* [n_ranks]: the id that the merges of this rank make, unless it is more than one */
    uint32_t *length; /* [vocab.n]: how many symbols of a word a token consists of */
    struct pair_set joins;
    uint64_t seed;
    int32_t byte_symbol[256]; /* of a byte, or of an ASCII character; -1: no token */
    int32_t byte_token[256];  /* <0xNN>, with byte_fallback */
};

/*
 * Ranks should leave few gaps, since tables are made of them. DATA_LOSS names a merge that repeats, or the byte that
 * byte_fallback lacks.
 */
MUST_USE status_t bpe_init(struct bpe *bpe, const struct bpe_options *options,
                           const struct vocab *vocab, const struct bpe_merge *merges,
                           size_t n_merges);
void bpe_destroy(struct bpe *bpe); /* accepts a zeroed one */

struct bpe_scratch {
    size_t n;              /* symbols since the last cut: queue.nodes[0..n) */
    bool after_unk;        /* the last symbol of the word is the unknown one */
    struct bytes spelling; /* of a word, for ignore_merges */
    struct bpe_queue queue;
};

void bpe_scratch_destroy(struct bpe_scratch *scratch); /* accepts a zeroed one */

/* Appends the ids of one word of well-formed text. */
MUST_USE status_t bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch,
                             const uint8_t *word, size_t size, struct token_list *out);

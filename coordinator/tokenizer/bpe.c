#include "coordinator/tokenizer/bpe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/tokenizer/byte_map.h"
#include "coordinator/tokenizer/token_list.h"

// Words up to this many symbols merge by looking through all their pairs each time.
#define SHORT_WORD 32

// What the merges of a rank make, when it is no one id.
#define RESULT_NONE    UINT32_MAX
#define RESULT_SEVERAL (UINT32_MAX - 1)

// ---- tables ----

/* The slot of this pair: its merge, or an empty one. */
static struct bpe_merge *merge_slot(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    const size_t mask = bpe->n_slots - 1;
    size_t at = pair_set_hash(pair_set_key(left, right), bpe->seed) & mask;
    while (bpe->merges[at].left != BPE_NONE &&
           (bpe->merges[at].left != left || bpe->merges[at].right != right)) {
        at = (at + 1) & mask;
    }
    return &bpe->merges[at];
}

/* The bit that says whether a merge of this pair may exist. The bits fit into the cache, the merges do not. */
static size_t filter_bit(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    // Other bits of the hash than those that choose the slot.
    return pair_set_hash(pair_set_key(left, right), bpe->seed) >> 22 & (bpe->n_filter_bits - 1);
}

static const struct bpe_merge *find_merge(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    static const struct bpe_merge none = {
        .left = BPE_NONE, .right = BPE_NONE, .id = BPE_NONE, .rank = BPE_NONE};
    const size_t bit = filter_bit(bpe, left, right);
    return (bpe->filter[bit / 64] >> bit % 64 & 1) != 0 ? merge_slot(bpe, left, right) : &none;
}

static status_t allocate_tables(struct bpe *bpe)
{
    bpe->n_slots = 16;
    while (bpe->n_slots < bpe->n_merges + bpe->n_merges / 2) {
        bpe->n_slots *= 2;
    }
    bpe->n_filter_bits = 8 * bpe->n_slots;
    bpe->filter = calloc(bpe->n_filter_bits / 64, sizeof *bpe->filter);
    bpe->merges = malloc(bpe->n_slots * sizeof *bpe->merges);
    bpe->result = malloc((bpe->n_ranks + 1) * sizeof *bpe->result);
    bpe->length = malloc((bpe->vocab->n + 1) * sizeof *bpe->length);
    if (bpe->filter == NULL || bpe->merges == NULL || bpe->result == NULL || bpe->length == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges",
                             bpe->n_merges);
    }
    // All bits set: left is BPE_NONE, and the rank is higher than any.
    memset(bpe->merges, 0xFF, bpe->n_slots * sizeof *bpe->merges);
    memset(bpe->result, 0xFF, bpe->n_ranks * sizeof *bpe->result);
    return status_ok();
}

static status_t fill_merges(struct bpe *bpe, const struct bpe_merge *merges)
{
    for (size_t i = 0; i < bpe->n_merges; i++) {
        struct bpe_merge *slot = merge_slot(bpe, merges[i].left, merges[i].right);
        if (slot->left != BPE_NONE) {
            return status_errorf(STATUS_DATA_LOSS, "merges[%zu]: repeats that of rank %u", i,
                                 slot->rank);
        }
        *slot = merges[i];
        uint32_t *result = &bpe->result[slot->rank];
        *result = *result == RESULT_NONE || *result == slot->id ? slot->id : RESULT_SEVERAL;
        const size_t bit = filter_bit(bpe, slot->left, slot->right);
        bpe->filter[bit / 64] |= 1ull << bit % 64;
    }
    return status_ok();
}

// ---- where a word may be cut ----

/* What a token's text begins and ends with, as symbols; BPE_NONE where that is no token, so never a symbol. */
struct token_ends {
    uint32_t first, last;
};

static uint32_t find_symbol(const struct vocab *vocab, const uint8_t *text, size_t size)
{
    const int32_t id = vocab_find(vocab, text, size);
    return id >= 0 ? (uint32_t)id : BPE_NONE;
}

static struct token_ends *find_ends(const struct vocab *vocab)
{
    struct token_ends *ends = calloc(vocab->n + 1, sizeof *ends);
    for (size_t id = 0; ends != NULL && id < vocab->n; id++) {
        const struct text_view token = vocab_text(vocab, id);
        const uint8_t *text = token.data;
        ends[id] = (struct token_ends){.first = BPE_NONE, .last = BPE_NONE};
        if (token.size == 0) {
            continue; // an added token, which no merge makes or uses
        }
        size_t length;
        (void)utf8_decode(text, &length);
        size_t last = token.size - 1;
        while (last > 0 && (text[last] & 0xC0) == 0x80) {
            last--;
        }
        ends[id].first = find_symbol(vocab, text, length);
        ends[id].last = find_symbol(vocab, text + last, token.size - last);
    }
    return ends;
}

/* Tokens that are symbols although their text has several characters: the unknown one and <0xNN>. */
static bool is_spelled_symbol(const struct bpe *bpe, uint32_t id)
{
    if ((int32_t)id == bpe->options.unk_id) {
        return true;
    }
    const struct text_view token = vocab_text(bpe->vocab, id);
    return bpe->options.byte_fallback && token.size == 6 && memcmp(token.data, "<0x", 3) == 0;
}

/* A symbol whose text is not what it stands for must not take part: its ends and length would not be its symbols'. */
static status_t check_part(const struct bpe *bpe, size_t i, uint32_t id)
{
    if (!is_spelled_symbol(bpe, id)) {
        return status_ok();
    }
    return status_errorf(STATUS_DATA_LOSS, "merges[%zu]: with token %u, which is no ordinary text",
                         i, id);
}

static status_t fill_joins(struct bpe *bpe, const struct bpe_merge *merges,
                           const struct token_ends *ends)
{
    for (size_t i = 0; i < bpe->n_merges; i++) {
        TRY(check_part(bpe, i, merges[i].left));
        TRY(check_part(bpe, i, merges[i].right));
        TRY(check_part(bpe, i, merges[i].id));
        const uint32_t left = ends[merges[i].left].last;
        const uint32_t right = ends[merges[i].right].first;
        if (left != BPE_NONE && right != BPE_NONE) {
            TRY(pair_set_add(&bpe->joins, left, right));
        }
    }
    return status_ok();
}

// ---- symbols ----

static void fill_symbols(struct bpe *bpe)
{
    for (int byte = 0; byte < 256; byte++) {
        uint8_t spelled[4];
        const uint32_t code_point =
            bpe->options.byte_level ? byte_map_code_point((uint8_t)byte) : (uint32_t)byte;
        const size_t length = utf8_encode(code_point, spelled);
        bpe->byte_symbol[byte] = vocab_find(bpe->vocab, spelled, length);
    }
}

static void fill_lengths(struct bpe *bpe)
{
    for (size_t id = 0; id < bpe->vocab->n; id++) {
        const struct text_view token = vocab_text(bpe->vocab, id);
        const uint8_t *text = token.data;
        uint32_t n = 0;
        for (size_t i = 0; i < token.size; i++) {
            n += (text[i] & 0xC0) != 0x80;
        }
        bpe->length[id] = is_spelled_symbol(bpe, (uint32_t)id) ? 1 : n;
    }
}

static status_t fill_byte_tokens(struct bpe *bpe)
{
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        bpe->byte_token[byte] = vocab_find(bpe->vocab, name, strlen(name));
        if (bpe->byte_token[byte] < 0) {
            return status_errorf(STATUS_DATA_LOSS, "byte_fallback without a token %s", name);
        }
    }
    return status_ok();
}

status_t bpe_init(struct bpe *bpe, const struct bpe_options *options, const struct vocab *vocab,
                  const struct bpe_merge *merges, size_t n_merges)
{
    *bpe = (struct bpe){.options = *options, .vocab = vocab, .n_merges = n_merges};
    for (size_t i = 0; i < n_merges; i++) {
        bpe->n_ranks = merges[i].rank >= bpe->n_ranks ? merges[i].rank + 1u : bpe->n_ranks;
    }
    bpe->seed = vocab_random_seed();
    struct token_ends *ends = find_ends(vocab);
    status_t s;
    if (ends == NULL) {
        s = status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", vocab->n);
        goto undo;
    }
    TRY_GOTO(s, allocate_tables(bpe), undo);
    TRY_GOTO(s, pair_set_init(&bpe->joins, bpe->seed), undo);
    TRY_GOTO(s, fill_merges(bpe, merges), undo);
    TRY_GOTO(s, fill_joins(bpe, merges, ends), undo);
    fill_symbols(bpe);
    fill_lengths(bpe);
    if (options->byte_fallback) {
        TRY_GOTO(s, fill_byte_tokens(bpe), undo);
    }
    free(ends);
    return status_ok();

undo:
    free(ends);
    bpe_destroy(bpe);
    return s;
}

void bpe_destroy(struct bpe *bpe)
{
    free(bpe->filter);
    free(bpe->merges);
    free(bpe->result);
    free(bpe->length);
    pair_set_destroy(&bpe->joins);
    *bpe = (struct bpe){0};
}

void bpe_scratch_destroy(struct bpe_scratch *scratch)
{
    bytes_destroy(&scratch->spelling);
    bpe_queue_destroy(&scratch->queue);
    *scratch = (struct bpe_scratch){0};
}

// ---- merging ----

static uint32_t rank_of(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    return find_merge(bpe, left, right)->rank;
}

/* What a pair of this rank becomes. Nearly always the rank alone says it. */
static uint32_t result_of(const struct bpe *bpe, uint32_t rank, uint32_t left, uint32_t right)
{
    const uint32_t id = bpe->result[rank];
    return id != RESULT_SEVERAL ? id : merge_slot(bpe, left, right)->id;
}

/* Merges n <= SHORT_WORD symbols in place and returns how many are left. */
static size_t merge_short(const struct bpe *bpe, uint32_t *ids, size_t n)
{
    uint32_t ranks[SHORT_WORD]; // ranks[i]: of ids[i] and ids[i + 1]
    for (size_t i = 0; i + 1 < n; i++) {
        ranks[i] = rank_of(bpe, ids[i], ids[i + 1]);
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            best = ranks[i] < ranks[best] ? i : best;
        }
        if (ranks[best] == BPE_NONE) {
            break;
        }
        ids[best] = result_of(bpe, ranks[best], ids[best], ids[best + 1]);
        n--;
        const size_t n_behind = n - best - 1;
        memmove(ids + best + 1, ids + best + 2, n_behind * sizeof *ids);
        if (n_behind > 0) {
            memmove(ranks + best, ranks + best + 1, n_behind * sizeof *ranks);
            ranks[best] = rank_of(bpe, ids[best], ids[best + 1]);
        }
        if (best > 0) {
            ranks[best - 1] = rank_of(bpe, ids[best - 1], ids[best]);
        }
    }
    return n;
}

/* Notes and queues the pair at a position of a word of n. */
static status_t queue_pair(const struct bpe *bpe, struct bpe_queue *queue, uint32_t n, uint32_t at)
{
    struct bpe_node *node = &queue->nodes[at];
    const uint32_t right = at + bpe->length[node->id];
    node->rank = right < n ? rank_of(bpe, node->id, queue->nodes[right].id) : BPE_NONE;
    return node->rank != BPE_NONE ? bpe_queue_push(queue, at) : status_ok();
}

/* Joins the symbol at `at` with its right neighbour. */
static status_t merge_at(const struct bpe *bpe, struct bpe_queue *queue, uint32_t n, uint32_t at)
{
    struct bpe_node *nodes = queue->nodes;
    const uint32_t right = at + bpe->length[nodes[at].id];
    const uint32_t end = right + bpe->length[nodes[right].id];
    nodes[at].id = result_of(bpe, nodes[at].rank, nodes[at].id, nodes[right].id);
    nodes[right].rank = BPE_INSIDE;
    nodes[end - 1].id = at;
    if (at > 0) {
        const struct bpe_node *before = &nodes[at - 1];
        const uint32_t left = before->rank == BPE_INSIDE ? before->id : at - 1;
        TRY(queue_pair(bpe, queue, n, left));
    }
    return queue_pair(bpe, queue, n, at);
}

static status_t merge_long(const struct bpe *bpe, struct bpe_scratch *scratch,
                           struct token_list *out)
{
    struct bpe_queue *queue = &scratch->queue;
    const uint32_t n = (uint32_t)scratch->n;
    TRY(bpe_queue_begin(queue, n, bpe->n_ranks));
    for (uint32_t i = 0; i < n; i++) {
        TRY(queue_pair(bpe, queue, n, i));
    }
    uint32_t at;
    TRY(bpe_queue_pop(queue, &at));
    while (at != BPE_NONE) {
        TRY(merge_at(bpe, queue, n, at));
        TRY(bpe_queue_pop(queue, &at));
    }
    for (at = 0; at < n; at += bpe->length[queue->nodes[at].id]) {
        TRY(token_list_push(out, (int32_t)queue->nodes[at].id));
    }
    return status_ok();
}

// ---- words ----

/* Merges the symbols collected since the last cut and appends what they became. */
static status_t flush(const struct bpe *bpe, struct bpe_scratch *scratch, struct token_list *out)
{
    size_t n = scratch->n;
    if (n > SHORT_WORD) {
        TRY(merge_long(bpe, scratch, out));
        scratch->n = 0;
        return status_ok();
    }
    scratch->n = 0;
    uint32_t ids[SHORT_WORD];
    for (size_t i = 0; i < n; i++) {
        ids[i] = scratch->queue.nodes[i].id;
    }
    n = merge_short(bpe, ids, n);
    for (size_t i = 0; i < n; i++) {
        TRY(token_list_push(out, (int32_t)ids[i]));
    }
    return status_ok();
}

static status_t add_symbol(const struct bpe *bpe, struct bpe_scratch *scratch, int32_t id,
                           struct token_list *out)
{
    struct bpe_queue *queue = &scratch->queue;
    if (scratch->n > 0 &&
        !pair_set_has(&bpe->joins, queue->nodes[scratch->n - 1].id, (uint32_t)id)) {
        TRY(flush(bpe, scratch, out));
    }
    if (scratch->n == queue->node_capacity) {
        TRY(bpe_queue_grow(queue));
    }
    queue->nodes[scratch->n++].id = (uint32_t)id;
    scratch->after_unk = false;
    return status_ok();
}

static status_t add_unknown(const struct bpe *bpe, struct bpe_scratch *scratch,
                            struct token_list *out)
{
    if (bpe->options.unk_id < 0 || (scratch->after_unk && bpe->options.fuse_unk)) {
        return status_ok();
    }
    TRY(add_symbol(bpe, scratch, bpe->options.unk_id, out));
    scratch->after_unk = true;
    return status_ok();
}

static status_t add_bytes(const struct bpe *bpe, struct bpe_scratch *scratch, const uint8_t *word,
                          size_t size, struct token_list *out)
{
    for (size_t i = 0; i < size; i++) {
        const int32_t id = bpe->byte_symbol[word[i]];
        if (id >= 0) {
            TRY(add_symbol(bpe, scratch, id, out));
        } else {
            TRY(add_unknown(bpe, scratch, out));
        }
    }
    return status_ok();
}

static status_t add_fallback(const struct bpe *bpe, struct bpe_scratch *scratch,
                             const uint8_t *character, size_t length, struct token_list *out)
{
    if (!bpe->options.byte_fallback) {
        return add_unknown(bpe, scratch, out);
    }
    for (size_t i = 0; i < length; i++) {
        TRY(add_symbol(bpe, scratch, bpe->byte_token[character[i]], out));
    }
    return status_ok();
}

static status_t add_characters(const struct bpe *bpe, struct bpe_scratch *scratch,
                               const uint8_t *word, size_t size, struct token_list *out)
{
    for (size_t at = 0, length = 1; at < size; at += length) {
        int32_t id;
        if (word[at] < 0x80) {
            length = 1;
            id = bpe->byte_symbol[word[at]];
        } else {
            (void)utf8_decode(word + at, &length);
            id = vocab_find(bpe->vocab, word + at, length);
        }
        if (id >= 0) {
            TRY(add_symbol(bpe, scratch, id, out));
        } else {
            TRY(add_fallback(bpe, scratch, word + at, length, out));
        }
    }
    return status_ok();
}

/* The id of a word that is one token as a whole, -1 when it is none. */
static status_t find_whole(const struct bpe *bpe, struct bpe_scratch *scratch, const uint8_t *word,
                           size_t size, int32_t *id_out)
{
    *id_out = -1;
    if (size > bpe->vocab->max_token_bytes) {
        return status_ok();
    }
    if (!bpe->options.byte_level) {
        *id_out = vocab_find(bpe->vocab, word, size);
        return status_ok();
    }
    scratch->spelling.max_bytes = SIZE_MAX;
    bytes_clear(&scratch->spelling);
    uint8_t *spelled;
    TRY(bytes_reserve(&scratch->spelling, 2 * size, &spelled));
    size_t length = 0;
    for (size_t i = 0; i < size; i++) {
        length += utf8_encode(byte_map_code_point(word[i]), spelled + length);
    }
    *id_out = vocab_find(bpe->vocab, spelled, length);
    return status_ok();
}

status_t bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const uint8_t *word,
                    size_t size, struct token_list *out)
{
    if (bpe->options.ignore_merges) {
        int32_t id;
        TRY(find_whole(bpe, scratch, word, size, &id));
        if (id >= 0) {
            return token_list_push(out, id);
        }
    }
    scratch->n = 0;
    scratch->after_unk = false;
    if (bpe->options.byte_level) {
        TRY(add_bytes(bpe, scratch, word, size, out));
    } else {
        TRY(add_characters(bpe, scratch, word, size, out));
    }
    return flush(bpe, scratch, out);
}

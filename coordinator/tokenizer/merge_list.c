#include "coordinator/tokenizer/merge_list.h"

#include <stdlib.h>

#include "coordinator/tokenizer/vocab.h"

#define MAX_MERGES ((size_t)8 * 1024 * 1024)

struct list {
    struct bpe_merge *merges;
    size_t n, capacity;
};

static status_t push(struct list *list, struct bpe_merge merge)
{
    if (list->n == list->capacity) {
        const size_t capacity = 2 * list->capacity + 1024;
        if (capacity > 2 * MAX_MERGES) {
            return status_errorf(STATUS_DATA_LOSS, "the pieces merge in more than %zu ways",
                                 MAX_MERGES);
        }
        struct bpe_merge *merges = realloc(list->merges, capacity * sizeof *merges);
        if (merges == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu merges",
                                 capacity);
        }
        list->merges = merges;
        list->capacity = capacity;
    }
    list->merges[list->n++] = merge;
    return status_ok();
}

/* Every cut between two characters that leaves two pieces. */
static status_t add_cuts(const struct vocab *pieces, uint32_t id, uint32_t rank, struct list *list)
{
    const struct text_view piece = vocab_text(pieces, id);
    const uint8_t *text = piece.data;
    if (piece.size > MERGE_LIST_MAX_PIECE_BYTES) {
        return status_errorf(STATUS_DATA_LOSS, "the token with id %u has %zu bytes, limit %zu", id,
                             piece.size, MERGE_LIST_MAX_PIECE_BYTES);
    }
    for (size_t at = 1; at < piece.size; at++) {
        if ((text[at] & 0xC0) == 0x80) {
            continue;
        }
        const int32_t left = vocab_find(pieces, text, at);
        const int32_t right = left >= 0 ? vocab_find(pieces, text + at, piece.size - at) : -1;
        if (right >= 0) {
            TRY(push(list, (struct bpe_merge){.left = (uint32_t)left,
                                              .right = (uint32_t)right,
                                              .id = id,
                                              .rank = rank}));
        }
    }
    return status_ok();
}

status_t merge_list_make(const struct vocab *pieces, const uint32_t *ranks,
                         struct bpe_merge **merges_out, size_t *n_out)
{
    struct list list = {0};
    status_t s = status_ok();
    for (size_t id = 0; id < pieces->n && status_is_ok(&s); id++) {
        if (ranks[id] != BPE_NONE) {
            s = add_cuts(pieces, (uint32_t)id, ranks[id], &list);
        }
    }
    if (!status_is_ok(&s)) {
        free(list.merges);
        return s;
    }
    *merges_out = list.merges;
    *n_out = list.n;
    return status_ok();
}

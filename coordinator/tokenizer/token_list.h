/*
 * token_list.h - growing the list that tokenizer.h defines
 *
 * Errors: RESOURCE_EXHAUSTED with the limit; the list is then unchanged.
 * Thread: one owner at a time.
 */
#pragma once

#include "coordinator/tokenizer/tokenizer.h"

/* Makes room for at least one more id. */
MUST_USE status_t token_list_grow(struct token_list *list);

MUST_USE static inline status_t token_list_push(struct token_list *list, int32_t id)
{
    if (list->n == list->capacity) {
        TRY(token_list_grow(list));
    }
    list->ids[list->n++] = id;
    return status_ok();
}

#include "coordinator/tokenizer/token_list.h"

#include <stdlib.h>

#define MIN_CAPACITY 64u

status_t token_list_grow(struct token_list *list)
{
    const size_t max = list->max > 0 ? list->max : SIZE_MAX / sizeof *list->ids;
    if (list->n >= max) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "more than %zu tokens", max);
    }
    size_t capacity = list->capacity > max / 2 ? max : 2 * list->capacity;
    if (capacity < MIN_CAPACITY) {
        capacity = max < MIN_CAPACITY ? max : MIN_CAPACITY;
    }
    int32_t *ids = realloc(list->ids, capacity * sizeof *ids);
    if (ids == NULL) {
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for %zu tokens", capacity);
    }
    list->ids = ids;
    list->capacity = capacity;
    return status_ok();
}

void token_list_destroy(struct token_list *list)
{
    free(list->ids);
    *list = (struct token_list){0};
}

#include "worker/sample_list.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of the index, where id is or would be. */
static uint32_t place_of(const struct sample_list *list, int32_t id)
{
    uint32_t at = (uint32_t)id * 2654435769u; // the golden ratio: neighbours are far apart
    at ^= at >> 15;
    for (;; at++) {
        const int32_t place = list->index[at & list->index_mask];
        if (place == 0 || list->tokens[place - 1].id == id) {
            return at & list->index_mask;
        }
    }
}

/* NULL where it is not listed. */
static struct sample_token *find(const struct sample_list *list, int32_t id)
{
    const int32_t place = list->index[place_of(list, id)];
    return place > 0 ? &list->tokens[place - 1] : NULL;
}

static struct sample_token *find_or_append(struct sample_list *list, int32_t id)
{
    const uint32_t at = place_of(list, id);
    if (list->index[at] == 0) {
        assert(list->n < list->capacity);
        list->tokens[list->n++] = (struct sample_token){.id = id};
        list->index[at] = list->n;
    }
    return &list->tokens[list->index[at] - 1];
}

/* Where only allowed tokens are listed, what else a request says of others is of no account. */
static struct sample_token *entry(struct sample_list *list, int32_t id)
{
    return list->only_listed ? find(list, id) : find_or_append(list, id);
}

// ---- making it ----

static int32_t lower(int64_t a, int64_t b)
{
    return (int32_t)(a < b ? a : b);
}

/* How many distinct ids there can be. */
static int32_t most(const struct sample_list_request *r, bool counts)
{
    if (r->n_allowed > 0) {
        return lower(r->n_allowed, r->n_vocab);
    }
    int64_t n = (int64_t)r->n_bias + r->n_held[0] + r->n_held[1];
    if (counts) {
        n += r->max_generated + (r->repetition != 1.0f ? r->n_prompt : 0);
    }
    return lower(n, r->n_vocab);
}

static status_t alloc(struct sample_list *list, const struct sample_list_request *r)
{
    list->capacity = most(r, list->counts);
    if (list->capacity == 0) {
        return status_ok();
    }
    uint32_t size = 8;
    while (size < 2 * (uint32_t)list->capacity) {
        size *= 2;
    }
    list->index_mask = size - 1;
    list->index = calloc(size, sizeof *list->index);
    list->tokens = calloc((size_t)list->capacity, sizeof *list->tokens);
    list->held = calloc((size_t)r->n_held[0] + (size_t)r->n_held[1] + 1, sizeof *list->held);
    if (list->index == NULL || list->tokens == NULL || list->held == NULL) {
        sample_list_destroy(list);
        return status_errorf(STATUS_RESOURCE_EXHAUSTED, "no memory for a list of %d tokens",
                             most(r, list->counts));
    }
    return status_ok();
}

static void add_held(struct sample_list *list, const struct sample_list_request *r)
{
    for (int32_t which = 0; which < 2; which++) {
        for (int32_t i = 0; i < r->n_held[which]; i++) {
            const int32_t id = r->held[which][i];
            const bool exists = id >= 0 && id < r->n_vocab; // a model may name more end tokens
            const struct sample_token *token = exists ? entry(list, id) : NULL;
            if (token != NULL) {
                list->held[list->n_held++] = (int32_t)(token - list->tokens);
            }
        }
    }
}

static void fill(struct sample_list *list, const struct sample_list_request *r)
{
    for (int32_t i = 0; i < r->n_allowed; i++) {
        (void)find_or_append(list, r->allowed[i]);
    }
    for (int32_t i = 0; i < r->n_bias; i++) {
        struct sample_token *token = entry(list, r->bias[i].id);
        if (token != NULL) {
            token->bias = r->bias[i].bias;
        }
    }
    for (int32_t i = 0; r->repetition != 1.0f && i < r->n_prompt; i++) {
        struct sample_token *token = entry(list, r->tokens[i]);
        if (token != NULL) {
            token->in_prompt = 1;
        }
    }
    for (int32_t i = r->n_prompt; i < r->n_tokens; i++) {
        sample_list_add(list, r->tokens[i]);
    }
    list->only_held = list->n == 0 && !list->counts && !list->only_listed;
    add_held(list, r);
}

status_t sample_list_init(struct sample_list *list, const struct sample_list_request *r)
{
    struct sample_list made = {
        .counts = r->repetition != 1.0f || r->presence != 0.0f || r->frequency != 0.0f,
        .only_listed = r->n_allowed > 0,
    };
    TRY(alloc(&made, r));
    if (made.capacity > 0) {
        fill(&made, r);
    }
    const int32_t n_to_come = r->max_generated - (r->n_tokens - r->n_prompt);
    made.max = made.counts && !made.only_listed ? lower((int64_t)made.n + n_to_come, made.capacity)
                                                : made.n;
    *list = made;
    return status_ok();
}

void sample_list_destroy(struct sample_list *list)
{
    free(list->tokens);
    free(list->index);
    free(list->held);
    *list = (struct sample_list){0};
}

// ---- using it ----

void sample_list_add(struct sample_list *list, int32_t id)
{
    if (!list->counts) {
        return;
    }
    struct sample_token *token = entry(list, id);
    if (token != NULL) {
        token->n_generated++;
    }
}

void sample_list_copy(struct sample_list *to, const struct sample_list *from)
{
    assert(to->capacity == from->capacity && to->index_mask == from->index_mask);
    if (from->counts) { // else both are as they were made
        memcpy(to->tokens, from->tokens, (size_t)from->n * sizeof *to->tokens);
        memcpy(to->index, from->index, ((size_t)from->index_mask + 1) * sizeof *to->index);
        to->n = from->n;
    }
}

int32_t sample_list_write(const struct sample_list *list, enum sample_list_phase phase,
                          struct sample_token *tokens_out)
{
    if (list->n == 0 || (list->only_held && phase == SAMPLE_LIST_FREE)) {
        return 0;
    }
    memcpy(tokens_out, list->tokens, (size_t)list->n * sizeof *tokens_out);
    for (int32_t i = 0; phase == SAMPLE_LIST_HELD && i < list->n_held; i++) {
        tokens_out[list->held[i]].bias = -INFINITY;
    }
    return list->n;
}

#include "coordinator/tokenizer/added_tokens.h"

#include <stdlib.h>

#include "coordinator/tokenizer/unicode_class.h"

static status_t add_node(struct added_tokens *tokens, uint8_t byte, uint32_t *index_out)
{
    if (tokens->n_nodes == tokens->capacity) {
        const size_t capacity = 2 * tokens->capacity + 64;
        struct added_token_node *nodes = realloc(tokens->nodes, capacity * sizeof *nodes);
        if (nodes == NULL) {
            return status_errorf(STATUS_RESOURCE_EXHAUSTED, "out of memory for added tokens");
        }
        tokens->nodes = nodes;
        tokens->capacity = capacity;
    }
    tokens->nodes[tokens->n_nodes] = (struct added_token_node){.id = -1, .byte = byte};
    *index_out = (uint32_t)tokens->n_nodes++;
    return status_ok();
}

static uint32_t find_child(const struct added_tokens *tokens, uint32_t node, uint8_t byte)
{
    if (node == 0) {
        return tokens->first[byte];
    }
    uint32_t child = tokens->nodes[node].child;
    while (child != 0 && tokens->nodes[child].byte != byte) {
        child = tokens->nodes[child].sibling;
    }
    return child;
}

static status_t step_or_add(struct added_tokens *tokens, uint32_t node, uint8_t byte,
                            uint32_t *child_out)
{
    *child_out = find_child(tokens, node, byte);
    if (*child_out != 0) {
        return status_ok();
    }
    TRY(add_node(tokens, byte, child_out));
    if (node == 0) {
        tokens->first[byte] = *child_out;
    } else {
        tokens->nodes[*child_out].sibling = tokens->nodes[node].child;
        tokens->nodes[node].child = *child_out;
    }
    return status_ok();
}

status_t added_tokens_insert(struct added_tokens *tokens, const void *text, size_t size, int32_t id,
                             int flags)
{
    uint32_t node;
    if (tokens->n_nodes == 0) {
        TRY(add_node(tokens, 0, &node)); // the root, so that index 0 can mean "none"
    }
    node = 0;
    for (size_t i = 0; i < size; i++) {
        TRY(step_or_add(tokens, node, ((const uint8_t *)text)[i], &node));
    }
    if (tokens->nodes[node].id < 0) {
        tokens->nodes[node].id = id;
        tokens->nodes[node].flags = (uint8_t)flags;
    }
    return status_ok();
}

void added_tokens_destroy(struct added_tokens *tokens)
{
    free(tokens->nodes);
    *tokens = (struct added_tokens){0};
}

int32_t added_tokens_find(const struct added_tokens *tokens, const void *text, size_t size)
{
    if (size == 0 || tokens->n_nodes == 0) {
        return -1;
    }
    const uint8_t *bytes = text;
    uint32_t node = tokens->first[bytes[0]];
    for (size_t i = 1; i < size && node != 0; i++) {
        node = find_child(tokens, node, bytes[i]);
    }
    return node != 0 ? tokens->nodes[node].id : -1;
}

/* The longest token that starts at `at`. */
static struct added_token_match match_at(const struct added_tokens *tokens, const uint8_t *text,
                                         size_t size, size_t at)
{
    struct added_token_match match = {.begin = at, .end = at, .id = -1};
    uint32_t node = tokens->first[text[at]];
    while (node != 0) {
        at++;
        if (tokens->nodes[node].id >= 0) {
            match.end = at;
            match.id = tokens->nodes[node].id;
            match.flags = tokens->nodes[node].flags;
        }
        node = at < size ? find_child(tokens, node, text[at]) : 0;
    }
    return match;
}

/* Widens a match over the white space that the token takes with it, not beyond `from` on the left. */
static void strip(struct added_token_match *match, const uint8_t *text, size_t size, size_t from)
{
    while ((match->flags & ADDED_TOKEN_LSTRIP) != 0 && match->begin > from) {
        size_t start = match->begin - 1;
        while (start > from && (text[start] & 0xC0) == 0x80) {
            start--;
        }
        size_t length;
        if (unicode_class_next(text + start, &length) != UNICODE_SPACE) {
            break;
        }
        match->begin = start;
    }
    while ((match->flags & ADDED_TOKEN_RSTRIP) != 0 && match->end < size) {
        size_t length;
        if (unicode_class_next(text + match->end, &length) != UNICODE_SPACE) {
            break;
        }
        match->end += length;
    }
}

struct added_token_match added_tokens_next(const struct added_tokens *tokens, const uint8_t *text,
                                           size_t size, size_t from, bool keep_special_as_text)
{
    size_t at = from;
    while (tokens->n_nodes > 0 && at < size) {
        if (tokens->first[text[at]] == 0) {
            at++;
            continue;
        }
        struct added_token_match match = match_at(tokens, text, size, at);
        if (match.id < 0) {
            at++;
        } else if (keep_special_as_text && (match.flags & ADDED_TOKEN_SPECIAL) != 0) {
            at = match.end; // passed over as a whole, as Hugging Face tokenizers does
        } else {
            strip(&match, text, size, from);
            return match;
        }
    }
    return (struct added_token_match){.begin = size, .end = size, .id = -1};
}
